"""Which tensors a text model wants, and whether they can be made from a text."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.errors import ModelLoadError
from headrace.types import DYNAMIC, TensorSpec

TEXT_INPUT = TensorSpec("text", "BYTES", (DYNAMIC,))
"""The public input of every text task: UTF-8, one element for each text."""

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""As transformers names them; in any order, of any numeric datatype, ``[rows, tokens]``."""

_NOT_NUMERIC = ("BYTES", "BOOL", "BF16")
_HINT = 'set task = "tensor" to serve its tensors as they are'


class TokenInputs:
    """A model's inputs, checked.

    Attributes:
        names: those that are filled; others are optional and left out.
        fixed_tokens: the one number of tokens the model takes; 0 where it takes any.
    """

    def __init__(self, model_inputs: Sequence[TensorSpec]) -> None:
        """Raises ModelLoadError where the inputs are not a text model's."""
        self._order = [spec.name for spec in model_inputs]
        self.names = [name for name in self._order if name in TOKEN_INPUTS]
        unknown = [s.name for s in model_inputs if s.name not in TOKEN_INPUTS and not s.optional]
        if unknown or "input_ids" not in self.names:
            what = f"an input {unknown[0]!r}" if unknown else "no input_ids"
            raise ModelLoadError(
                f"the model has {what}; a text model's inputs are {', '.join(TOKEN_INPUTS)}",
                hint=_HINT,
                inputs=self._order,
            )
        tokens = [_tokens(spec) for spec in model_inputs if spec.name in self.names]
        self.fixed_tokens = max(0, *tokens)
        mixed = len(set(tokens)) > 1
        if mixed or (self.fixed_tokens and "attention_mask" not in self.names):
            raise ModelLoadError(
                f"the model's inputs want {tokens} tokens; expected any number (-1), or one "
                "fixed number and an attention_mask that tells padding from text",
                hint="export it with a dynamic number of tokens",
                inputs=self._order,
            )

    def position(self, name: str) -> int | None:
        """Where an input stands in the model's order; None where it has none of this name."""
        return self._order.index(name) if name in self.names else None


def _tokens(spec: TensorSpec) -> int:
    if len(spec.shape) != 2 or spec.datatype in _NOT_NUMERIC:
        raise ModelLoadError(
            f"input {spec.name!r} is {spec.datatype} {list(spec.shape)}; a text model takes "
            "numbers of shape [rows, tokens]",
            hint=_HINT,
            input=spec.name,
        )
    return spec.shape[1]
