"""Text embedding and text classification: UTF-8 in, vectors or labels out.

Each text of a request is one item, tokenised by the model's own tokeniser; the engine puts
texts of like length together. A text longer than ``max_tokens`` is cut off, as the libraries
that trained these models do, unless the option ``truncate`` is false. The empty text is a
text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from headrace.errors import InferenceFailed, ModelLoadError
from headrace.tasks.base import Item, Prepared
from headrace.tasks.text_inputs import TEXT_INPUT
from headrace.tasks.text_items import TextItems
from headrace.tasks.text_options import TextOptions, read_options
from headrace.tasks.text_pooling import normalized, pool, probabilities
from headrace.types import DYNAMIC, InferenceRequest, Tensor, TensorSpec

_FLOATS = ("FP32", "FP16", "FP64")
_POOLED = ("embedding", "sentence_embedding", "embeddings", "text_embeds")
"""What exporters call an output that is one vector for each text."""


class TextEmbedding:
    """``text`` BYTES ``[n]`` -> ``embedding`` FP32 ``[n, width]``.

    The model may give one vector for each text, or one for each token, which are then
    pooled here as ``pooling`` says.
    """

    kind = "text-embedding"

    def __init__(
        self,
        model_inputs: Sequence[TensorSpec],
        output: int,
        spec: TensorSpec,
        options: TextOptions,
    ) -> None:
        self._items = TextItems(model_inputs, options)
        self._output = output
        self._pooling = options.pooling if len(spec.shape) == 3 else None
        self._normalize = options.normalize
        self.inputs = (TEXT_INPUT,)
        self.outputs = (TensorSpec("embedding", "FP32", (DYNAMIC, spec.shape[-1])),)
        self.padding = self._items.padding

    @classmethod
    def create(
        cls,
        model_inputs: tuple[TensorSpec, ...],
        model_outputs: tuple[TensorSpec, ...],
        options: Mapping[str, Any],
    ) -> Self:
        """Fits the task to a loaded model; ``options`` are those of TextOptions.

        Raises:
            ModelLoadError: inputs, outputs or tokeniser are not a text embedding model's.
            ConfigError: an option is unknown or has a value it cannot have.
            MissingExtra: ``tokenizers`` is not installed.
        """
        read = read_options(options)
        floats = [s for s in model_outputs if s.datatype in _FLOATS and len(s.shape) in (2, 3)]
        ranked = [s for s in floats if s.name in _POOLED and len(s.shape) == 2]
        ranked += [s for s in floats if len(s.shape) == 3]
        ranked += floats
        spec = _chosen(model_outputs, ranked, read.output, "[rows, width] or [rows, tokens, width]")
        return cls(model_inputs, model_outputs.index(spec), spec, read)

    def prepare(self, request: InferenceRequest) -> Prepared:
        """See :meth:`headrace.tasks.text_items.TextItems.prepare`."""
        return self._items.prepare(request)

    def finish(
        self,
        request: InferenceRequest,  # noqa: ARG002 - the Task protocol
        items: Sequence[Item],
        results: Sequence[Sequence[np.ndarray]],
    ) -> list[Tensor]:
        """One row for each text, in the order of the request."""
        rows = [result[self._output] for result in results]
        if self._pooling is not None:
            counts = [self._items.token_count(item) for item in items]
            rows = [pool(r, n, self._pooling) for r, n in zip(rows, counts, strict=True)]
        embeddings = _together(rows)
        if self._normalize:
            embeddings = normalized(embeddings)
        return [Tensor("embedding", "FP32", embeddings.shape, embeddings)]


class TextClassification:
    """``text`` BYTES ``[n]`` -> ``label`` BYTES ``[n]``, ``score`` FP32 ``[n]`` and
    ``probabilities`` FP32 ``[n, labels]``.

    ``label`` is the one with the highest score, also where several may be true (``function``
    ``sigmoid``); ``probabilities`` has all, in the order of the model's labels.
    """

    kind = "text-classification"

    def __init__(
        self, model_inputs: Sequence[TensorSpec], output: int, count: int, options: TextOptions
    ) -> None:
        self._items = TextItems(model_inputs, options)
        self._output = output
        self._function = options.function
        names = options.labels or tuple(f"LABEL_{number}" for number in range(count))
        self._labels = np.array([name.encode() for name in names], dtype=object)
        self.inputs = (TEXT_INPUT,)
        self.outputs = (
            TensorSpec("label", "BYTES", (DYNAMIC,)),
            TensorSpec("score", "FP32", (DYNAMIC,)),
            TensorSpec("probabilities", "FP32", (DYNAMIC, len(names))),
        )
        self.padding = self._items.padding

    @classmethod
    def create(
        cls,
        model_inputs: tuple[TensorSpec, ...],
        model_outputs: tuple[TensorSpec, ...],
        options: Mapping[str, Any],
    ) -> Self:
        """Fits the task to a loaded model; ``options`` are those of TextOptions.

        Raises:
            ModelLoadError: inputs, outputs or tokeniser are not a text classifier's, or the
                number of its classes is not that of ``labels``.
            ConfigError: an option is unknown or has a value it cannot have.
            MissingExtra: ``tokenizers`` is not installed.
        """
        read = read_options(options)
        floats = [s for s in model_outputs if s.datatype in _FLOATS and len(s.shape) == 2]
        ranked = [s for s in floats if s.name == "logits"] + floats
        spec = _chosen(model_outputs, ranked, read.output, "[rows, labels]")
        count, named = spec.shape[1], len(read.labels)
        if count == DYNAMIC and not named:
            raise ModelLoadError(
                f"output {spec.name!r} does not say how many classes it has",
                hint="name them in task_options.labels",
            )
        if named and count not in (DYNAMIC, named):
            raise ModelLoadError(
                f"output {spec.name!r} has {count} classes, but {named} labels are named",
                hint="name every class in task_options.labels, in the model's order",
                expected=count,
                got=named,
            )
        return cls(model_inputs, model_outputs.index(spec), count, read)

    def prepare(self, request: InferenceRequest) -> Prepared:
        """See :meth:`headrace.tasks.text_items.TextItems.prepare`."""
        return self._items.prepare(request)

    def finish(
        self,
        request: InferenceRequest,  # noqa: ARG002 - the Task protocol
        items: Sequence[Item],  # noqa: ARG002 - the Task protocol
        results: Sequence[Sequence[np.ndarray]],
    ) -> list[Tensor]:
        """One label, score and row of probabilities for each text, in the request's order."""
        logits = _together([result[self._output] for result in results])
        if logits.shape[1] != len(self._labels):
            raise InferenceFailed(
                f"the model returned {logits.shape[1]} classes; it has {len(self._labels)} labels"
            )
        scores = probabilities(logits, self._function)
        best = scores.argmax(axis=1)
        top = scores[np.arange(len(best)), best]
        labels = self._labels[best]
        return [
            Tensor("label", "BYTES", labels.shape, labels),
            Tensor("score", "FP32", top.shape, top),
            Tensor("probabilities", "FP32", scores.shape, scores),
        ]


def _chosen(
    outputs: Sequence[TensorSpec], ranked: Sequence[TensorSpec], wanted: str, expected: str
) -> TensorSpec:
    """The first of ``ranked``, or the one that the options name."""
    if wanted:
        ranked = [spec for spec in ranked if spec.name == wanted]
    if not ranked:
        shown = ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in outputs)
        named = f"named {wanted!r} " if wanted else ""
        raise ModelLoadError(
            f"no output {named}of shape {expected} among the model's: {shown}",
            hint='name another in task_options.output, or set task = "tensor"',
        )
    return ranked[0]


def _together(rows: Sequence[np.ndarray]) -> np.ndarray:
    joined = rows[0] if len(rows) == 1 else np.concatenate(rows)
    return joined.astype(np.float32, copy=False)
