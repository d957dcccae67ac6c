"""The inputs of a stateful model that no caller sends: controls, and the state itself.

Controls tell a model where in its sequence a request stands: whether it is the first or the
last, whether there is a request at all in this row, and the sequence's id. A state is an
output that comes back as an input with the next request of the same sequence. The meaning of
both is that of ``sequence_batching`` in Triton's ``model_config.proto``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from headrace.config import ControlConfig, SequenceConfig, StateConfig
from headrace.errors import InvalidRequest, ModelLoadError
from headrace.runtimes.base import LoadedModel
from headrace.types import DTYPE_OF, DYNAMIC, InferenceRequest, TensorSpec

Arrays = list["np.ndarray | None"]
States = Sequence[np.ndarray]
ReadFile = Callable[[str], bytes]

_ID_TYPES = frozenset({"INT32", "INT64", "UINT32", "UINT64", "BYTES"})
_FLAG_TYPES = frozenset({"BOOL", "INT32", "FP32"})
_TEXT_ID_MAX_BYTES = 128
"""Of an id that is a text; Triton's limit too."""


class Control(msgspec.Struct, frozen=True):
    """One control input: where it goes, and what it can say."""

    index: int
    kind: str
    datatype: str
    shape: tuple[int, ...]
    false: np.ndarray
    true: np.ndarray


class SequenceInputs:
    """What one model is given beside what callers send.

    Args:
        name: of the model.
        loaded: the model.
        public: the inputs that callers send.
        config: its sequences.
        read: a file of the model's folder, for the first values of states.

    Raises:
        ModelLoadError: a control or state is not the model's, or has another datatype or
            size than the model's; or as ``read``.
    """

    def __init__(
        self,
        name: str,
        loaded: LoadedModel,
        public: Sequence[TensorSpec],
        config: SequenceConfig,
        read: ReadFile,
    ) -> None:
        self._name = name
        inputs = {spec.name: (i, spec) for i, spec in enumerate(loaded.inputs)}
        outputs = {spec.name: (i, spec) for i, spec in enumerate(loaded.outputs)}
        self.count = len(loaded.inputs)
        # Where callers' arrays go, if they are not in the model's places already.
        self._places = [inputs[spec.name][0] for spec in public]
        self.controls = [
            _control(control, *self._found(inputs, control.name, control.datatype))
            for control in config.controls
        ]
        self._states_in: list[int] = []
        self._states_out: list[int] = []
        self.initial: list[np.ndarray] = []
        self.fixed = True
        for state in config.states:
            place, spec = self._found(inputs, state.input_name, state.datatype)
            self._states_in.append(place)
            self._states_out.append(self._found(outputs, state.output_name, state.datatype)[0])
            self.initial.append(_initial(state, read, name))
            self.fixed = self.fixed and DYNAMIC not in spec.shape[1:]

    @property
    def has_states(self) -> bool:
        """Whether anything is carried from one request to the next."""
        return bool(self._states_in)

    @property
    def ready(self) -> Control | None:
        """The control that tells a row with a request from one without."""
        return next((control for control in self.controls if control.kind == "ready"), None)

    def check(self, request: InferenceRequest) -> None:
        """Whether the request's sequence can be named to the model.

        Raises:
            InvalidRequest: its id does not fit the datatype that the model wants.
        """
        for control in self.controls:
            if control.kind == "corrid":
                _id_array(control, request.sequence_id, self._name)
        name = request.sequence_id
        if isinstance(name, str) and len(name.encode()) > _TEXT_ID_MAX_BYTES:
            raise InvalidRequest(
                f"inference request to model '{self._name}' has a correlation ID of "
                f"{len(name.encode())} bytes, more than {_TEXT_ID_MAX_BYTES}",
                code="sequence_id_too_long",
                model=self._name,
            )

    def fill(
        self, arrays: Sequence[np.ndarray | None], request: InferenceRequest, states: States
    ) -> Arrays:
        """What callers sent, in the model's places, with controls and states beside it."""
        if len(arrays) == self.count:
            filled = list(arrays)
        else:
            filled = [None] * self.count
            for place, array in zip(self._places, arrays, strict=True):
                filled[place] = array
        flags = {"start": request.sequence_start, "end": request.sequence_end, "ready": True}
        for control in self.controls:
            if control.kind == "corrid":
                filled[control.index] = _id_array(control, request.sequence_id, self._name)
            else:
                filled[control.index] = control.true if flags[control.kind] else control.false
        for place, state in zip(self._states_in, states, strict=True):
            filled[place] = state
        return filled

    def next_states(self, result: Sequence[np.ndarray | None], states: States) -> States:
        """What a result says the states are now; one that it leaves out is as it was."""
        following = []
        for place, state in zip(self._states_out, states, strict=True):
            array = result[place]
            if array is None:
                array = state
            elif array.base is not None:
                array = array.copy()  # a row of a batch must not keep the whole batch alive
            following.append(array)
        return following

    def _found(
        self, specs: dict[str, tuple[int, TensorSpec]], name: str, datatype: str
    ) -> tuple[int, TensorSpec]:
        found = specs.get(name)
        if found is None:
            raise ModelLoadError(
                f"unable to load model '{self._name}', sequence batching names the tensor "
                f"'{name}', which the model does not have; it has {sorted(specs)}",
                code="wrong_signature",
                model=self._name,
            )
        if found[1].datatype != datatype:
            raise ModelLoadError(
                f"unable to load model '{self._name}', sequence batching gives '{name}' the "
                f"datatype {datatype}, but the model expects {found[1].datatype}",
                code="wrong_signature",
                model=self._name,
            )
        return found


def _control(config: ControlConfig, index: int, spec: TensorSpec) -> Control:
    allowed = _ID_TYPES if config.kind == "corrid" else _FLAG_TYPES
    if config.datatype not in allowed:
        raise ModelLoadError(
            f"the control '{config.name}' ({config.kind}) cannot be of datatype "
            f"{config.datatype}; it can be {sorted(allowed)}",
            code="wrong_signature",
        )
    shape, dtype = (1,) * len(spec.shape), DTYPE_OF[config.datatype]
    if config.datatype == "BYTES":
        false = true = np.full(shape, b"", dtype)
    else:
        false = np.full(shape, config.false_value).astype(dtype)
        true = np.full(shape, config.true_value).astype(dtype)
    return Control(index, config.kind, config.datatype, shape, false, true)


def _id_array(control: Control, name: int | str, model: str) -> np.ndarray:
    dtype = DTYPE_OF[control.datatype]
    if control.datatype == "BYTES":
        array = np.empty(control.shape, dtype)
        array[...] = str(name).encode()
        return array
    if isinstance(name, int):
        bounds = np.iinfo(dtype)
        if bounds.min <= name <= bounds.max:
            return np.full(control.shape, name, dtype)
    raise InvalidRequest(
        f"inference request to model '{model}' has the correlation ID {name!r}, which does not "
        f"fit the model's CORRID control of datatype {control.datatype}",
        code="wrong_sequence_id",
        hint="name sequences by small integers, from 1 on",
        model=model,
    )


def _initial(state: StateConfig, read: ReadFile, model: str) -> np.ndarray:
    shape = tuple(1 if size == DYNAMIC else size for size in state.shape)
    dtype = DTYPE_OF[state.datatype]
    if not state.initial_file:
        return np.full(shape, b"", dtype) if state.datatype == "BYTES" else np.zeros(shape, dtype)
    data = read(state.initial_file)
    if state.datatype == "BYTES":
        texts = _texts(data)
        count, fits = len(texts), True
    else:
        count, left = divmod(len(data), dtype.itemsize)
        fits = not left
    if not fits or count != math.prod(shape):
        raise ModelLoadError(
            f"unable to load model '{model}', the initial state of '{state.input_name}' in "
            f"'{state.initial_file}' has {len(data)} bytes, which are not the "
            f"{math.prod(shape)} elements of {state.datatype} that it needs",
            model=model,
        )
    if state.datatype != "BYTES":
        return np.frombuffer(data, dtype).reshape(shape)
    array = np.empty(count, dtype)
    array[:] = texts
    return array.reshape(shape)


def _texts(data: bytes) -> list[bytes]:
    """Each with its length before it, four bytes, little-endian: V2's way to write BYTES."""
    texts, position = [], 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "little")
        position += 4
        texts.append(data[position : position + size])
        position += size
    return texts
