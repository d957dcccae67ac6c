"""What a model is seen to take and give, where that is not simply what it takes and gives.

A declared signature (``ModelConfig.inputs`` and ``outputs``, Triton's ``input`` and
``output``) may name fewer tensors than the model has, in another order and another shape.
Some inputs nobody sends: controls and states of a sequence, batch inputs of ragged rows. All
of it is settled here, once, when the model is loaded: a request's arrays are put where the
model wants them by the very look-up that checks them, so a declared order costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import numpy as np

from headrace.config import ModelConfig, TensorConfig
from headrace.errors import InvalidRequest, ModelLoadError
from headrace.runtimes.base import LoadedModel
from headrace.types import DTYPE_OF, DYNAMIC, TensorSpec

Shape = tuple[int, ...]


class InputCheck(msgspec.Struct, frozen=True):
    """One input of the public signature, laid out for the check of every request."""

    index: int
    datatype: str
    shape: tuple[int, ...]
    rank: int
    fixed: tuple[tuple[int, int], ...]  # (axis, size) of the dimensions the model decides


def check_of(index: int, datatype: str, shape: tuple[int, ...]) -> InputCheck:
    """The check of the input that is the model's number ``index``."""
    fixed = tuple((axis, size) for axis, size in enumerate(shape) if size != DYNAMIC)
    return InputCheck(index, datatype, shape, len(shape), fixed)


class Reshape(msgspec.Struct, frozen=True):
    """Arrays of shape ``given`` are handed on as ``wanted``; -1 are free, and pair in order."""

    given: Shape
    wanted: Shape

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The same elements in the other shape (a view).

        Raises:
            ValueError: they do not fill it.
        """
        sizes = iter([array.shape[i] for i, size in enumerate(self.given) if size == DYNAMIC])
        return array.reshape(
            [next(sizes, DYNAMIC) if size == DYNAMIC else size for size in self.wanted]
        )


class OutputRule(msgspec.Struct, frozen=True):
    """A public output: the model's output number ``index``."""

    index: int
    spec: TensorSpec
    reshape: Reshape | None = None


class Signature(msgspec.Struct, frozen=True):
    """A public signature and the way to the model's own.

    ``inputs`` and ``outputs`` are public. ``slots`` counts the model's inputs: request arrays
    have one place for each, in the model's order, None where nobody sends it. ``hidden`` are
    the places that somebody else fills. ``rows`` is whether the first axis counts rows; None
    leaves that to be proved. ``rows_max`` 0: no declared limit.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    checks: dict[str, InputCheck]
    slots: int
    hidden: tuple[tuple[int, TensorSpec], ...] = ()
    reshapes: tuple[tuple[int, Reshape], ...] = ()
    results: tuple[OutputRule, ...] = ()
    ragged: frozenset[int] = frozenset()
    rows: bool | None = None
    rows_max: int = 0

    def shaped(self, name: str, arrays: Sequence[np.ndarray | None]) -> Sequence[np.ndarray | None]:
        """A request's arrays in the shapes that the model ``name`` itself takes.

        Raises:
            InvalidRequest: one cannot be brought into it.
        """
        if not self.reshapes:
            return arrays
        shaped = list(arrays)
        for index, reshape in self.reshapes:
            array = arrays[index]
            if array is not None:
                shaped[index] = _reshaped(array, reshape, name)
        return shaped

    def filled(self, arrays: Sequence[np.ndarray | None], rows: int) -> Sequence[np.ndarray | None]:
        """With zeros where nobody sends anything; open dimensions are 1."""
        filled = list(arrays)
        for index, spec in self.hidden:
            shape = [1 if size == DYNAMIC else size for size in spec.shape]
            if spec.shape[:1] == (DYNAMIC,):
                shape[0] = rows
            if filled[index] is None:
                filled[index] = np.zeros(shape, DTYPE_OF[spec.datatype])
        return filled


def is_declared(config: ModelConfig) -> bool:
    """Whether anything makes the public signature differ from the model's."""
    return bool(config.inputs or config.outputs or config.batch_inputs or config.sequence)


def counts_rows(config: ModelConfig) -> bool | None:
    """Whether the first axis counts rows, as far as the configuration tells.

    Triton's ``max_batch_size`` above zero says so; elsewhere shapes that all begin with a free
    dimension do. None: nothing is declared.
    """
    if "max_batch_size" in config.triton_config:
        return int(config.triton_config["max_batch_size"]) > 0
    declared = (*config.inputs, *config.outputs)
    if not declared:
        return None
    return all(tensor.shape[:1] == (DYNAMIC,) for tensor in declared)


def signature_of(name: str, config: ModelConfig, loaded: LoadedModel) -> Signature:
    """Checks what is declared against the model and lays the way from one to the other.

    Raises:
        ModelLoadError: a declared tensor is not the model's, has another datatype or a shape
            that cannot be its, or an input that the model needs is not declared.
    """
    rows, rows_max = counts_rows(config), int(config.triton_config.get("max_batch_size", 0))
    found_max = getattr(loaded, "max_batch_size", None)
    if found_max is not None and "max_batch_size" not in config.triton_config:
        rows, rows_max = found_max > 0, found_max
    hidden_inputs, hidden_outputs = _hidden(config)
    inputs = config.inputs or _as_declared(loaded.inputs, hidden_inputs)
    outputs = config.outputs or _as_declared(loaded.outputs, hidden_outputs)
    index = {spec.name: i for i, spec in enumerate(loaded.inputs)}
    checker = _Checker(name, loaded, rows=bool(rows))
    checks: dict[str, InputCheck] = {}
    reshapes: list[tuple[int, Reshape]] = []
    for tensor in inputs:
        spec = checker.found("input", tensor)
        place = index[tensor.name]
        narrow = tensor.model_shape is None and not tensor.ragged
        shape = _narrowed(tensor.shape, spec.shape) if narrow else tensor.shape
        checks[tensor.name] = check_of(place, tensor.datatype, shape)
        if tensor.model_shape is not None:
            reshapes.append((place, Reshape(tensor.shape, tensor.model_shape)))
    checker.all_fed({*checks, *hidden_inputs})
    return Signature(
        inputs=specs_of(inputs, checker.optional),
        outputs=specs_of(outputs),
        checks=checks,
        slots=len(loaded.inputs),
        hidden=tuple((i, s) for i, s in enumerate(loaded.inputs) if s.name in hidden_inputs),
        reshapes=tuple(reshapes),
        results=tuple(checker.rule(tensor) for tensor in outputs),
        ragged=frozenset(index[tensor.name] for tensor in inputs if tensor.ragged),
        rows=rows,
        rows_max=rows_max,
    )


def _reshaped(array: np.ndarray, reshape: Reshape, name: str) -> np.ndarray:
    try:
        return reshape(array)
    except ValueError as error:
        raise InvalidRequest(
            f"unexpected shape for input of model '{name}'. {list(array.shape)} cannot be "
            f"reshaped to {list(reshape.wanted)}",
            code="wrong_shape",
            model=name,
            got=list(array.shape),
        ) from error


def specs_of(
    tensors: Sequence[TensorConfig], optional: Collection[str] = ()
) -> tuple[TensorSpec, ...]:
    """Declared tensors as they are shown; ``optional`` are so beside those that say it."""
    return tuple(
        TensorSpec(t.name, t.datatype, t.shape, t.optional or t.name in optional) for t in tensors
    )


def _hidden(config: ModelConfig) -> tuple[set[str], set[str]]:
    """The inputs that no caller sends, and the outputs that none is given."""
    inputs = {batch_input.name for batch_input in config.batch_inputs}
    outputs: set[str] = set()
    if config.sequence is not None:
        inputs |= {control.name for control in config.sequence.controls}
        inputs |= {state.input_name for state in config.sequence.states}
        outputs = {state.output_name for state in config.sequence.states}
    return inputs, outputs


def _as_declared(specs: Sequence[TensorSpec], hidden: set[str]) -> tuple[TensorConfig, ...]:
    return tuple(
        TensorConfig(
            name=spec.name, datatype=spec.datatype, shape=spec.shape, optional=spec.optional
        )
        for spec in specs
        if spec.name not in hidden
    )


def _narrowed(declared: Shape, model: Shape) -> Shape:
    """What both allow: the declaration may leave open what the model does not."""
    return tuple(m if d == DYNAMIC else d for d, m in zip(declared, model, strict=True))


class _Checker:
    """Holds declared tensors against the model's own. The texts are Triton's, where it has one."""

    def __init__(self, name: str, loaded: LoadedModel, *, rows: bool) -> None:
        self._name = name
        self._rows = rows
        self._specs = {
            "input": {spec.name: spec for spec in loaded.inputs},
            "output": {spec.name: spec for spec in loaded.outputs},
        }
        self.optional = {spec.name for spec in loaded.inputs if spec.optional}
        self._output_index = {spec.name: i for i, spec in enumerate(loaded.outputs)}

    def found(self, kind: str, tensor: TensorConfig) -> TensorSpec:
        """The model's own spec of a declared tensor."""
        specs = self._specs[kind]
        spec = specs.get(tensor.name)
        if spec is None:
            raise self._error(
                f"unexpected inference {kind} '{tensor.name}', allowed {kind}s are: "
                f"{', '.join(specs)}"
            )
        if spec.datatype != tensor.datatype:
            raise self._error(
                f"unexpected datatype {_triton_type(tensor.datatype)} for inference {kind} "
                f"'{tensor.name}', expecting {_triton_type(spec.datatype)}"
            )
        if not tensor.ragged:
            self._check_shape(tensor, spec)
        return spec

    def rule(self, tensor: TensorConfig) -> OutputRule:
        """How a declared output is made of the model's."""
        self.found("output", tensor)
        inner = tensor.model_shape
        return OutputRule(
            self._output_index[tensor.name],
            TensorSpec(tensor.name, tensor.datatype, tensor.shape),
            None if inner is None else Reshape(inner, tensor.shape),
        )

    def all_fed(self, fed: set[str]) -> None:
        """Raises if an input that the model cannot do without has nowhere to come from."""
        specs = self._specs["input"]
        missing = [name for name, spec in specs.items() if name not in fed and not spec.optional]
        if missing:
            raise self._error(
                f"configuration expects {len(fed & specs.keys())} inputs, model provides "
                f"{len(specs)}: {missing} not declared"
            )
        unknown = sorted(fed - specs.keys())
        if unknown and specs:
            raise self._error(
                f"unexpected inference input '{unknown[0]}', allowed inputs are: {', '.join(specs)}"
            )

    def _check_shape(self, tensor: TensorConfig, spec: TensorSpec) -> None:
        declared = tensor.shape if tensor.model_shape is None else tensor.model_shape
        if self._rows and spec.shape[:1] != (DYNAMIC,):
            raise self._error(
                f"tensor '{tensor.name}': for the model to support batching the shape should "
                "have at least 1 dimension and the first dimension must be -1; but shape "
                f"expected by the model is {_brackets(spec.shape)}"
            )
        fits = len(declared) == len(spec.shape) and all(
            d == m or DYNAMIC in (d, m) for d, m in zip(declared, spec.shape, strict=True)
        )
        if not fits:
            raise self._error(
                f"tensor '{tensor.name}': the model expects {len(spec.shape)} dimensions (shape "
                f"{_brackets(spec.shape)}) but the model configuration specifies "
                f"{len(declared)} dimensions (shape {_brackets(declared)})"
            )

    def _error(self, what: str) -> ModelLoadError:
        return ModelLoadError(
            f"unable to load model '{self._name}', {what}",
            code="wrong_signature",
            hint="make the declared inputs and outputs those of the model",
            model=self._name,
        )


def _triton_type(datatype: str) -> str:
    return f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}"


def _brackets(shape: Shape) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
