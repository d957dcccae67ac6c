"""Tensors, requests, responses and errors of ``triton_python_backend_utils``; see ``utils``."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from headrace.types import DATATYPE_OF

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2


class TritonModelException(Exception):
    """Raised by a model, or to it when a call to another model failed."""


class TritonError:
    """The error of one response."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message = str(message)
        self._code = code

    def message(self) -> str:
        """What went wrong."""
        return self._message

    def code(self) -> int:
        """One of the class's numbers."""
        return self._code

    def __str__(self) -> str:
        return self._message


class Tensor:
    """A named array."""

    def __init__(self, name: str, data: Any, _datatype: str = "") -> None:
        if not isinstance(data, np.ndarray):
            raise TritonModelException(f"tensor {name!r} must be made of a numpy array")
        if data.dtype.kind in "SU":
            encoded = np.empty(data.shape, dtype=object)
            encoded.reshape(-1)[:] = [
                each.encode() if isinstance(each, str) else bytes(each) for each in data.ravel()
            ]
            data = encoded
        datatype = _datatype or DATATYPE_OF.get(data.dtype, "")
        if not datatype:
            raise TritonModelException(f"tensor {name!r} of {data.dtype} has no Triton datatype")
        self._name = name
        self._data: np.ndarray = data
        self.datatype = datatype

    def name(self) -> str:
        """The tensor's name."""
        return self._name

    def as_numpy(self) -> np.ndarray:
        """The array itself; BF16 as its raw bits in ``uint16``."""
        return self._data

    def shape(self) -> list[int]:
        """The sizes of its dimensions."""
        return list(self._data.shape)

    def triton_dtype(self) -> int:
        """The number of its datatype in ``model_config.proto``."""
        return DATATYPE_NUMBERS[self.datatype]

    def is_cpu(self) -> bool:
        """Always: there is no GPU here."""
        return True

    def to_dlpack(self, *_: Any, **__: Any) -> Any:
        """A DLPack capsule."""
        return self._data.__dlpack__()

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._data.__dlpack__(**{k: v for k, v in kwargs.items() if k == "stream"})

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # kDLCPU

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """A tensor on the memory of another library's, where it lies in main memory."""
        exported = tensor if hasattr(tensor, "__dlpack__") else _Capsule(tensor)
        return Tensor(name, np.from_dlpack(exported))


class _Capsule:
    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


DATATYPE_NUMBERS = {
    "BOOL": 1,
    "UINT8": 2,
    "UINT16": 3,
    "UINT32": 4,
    "UINT64": 5,
    "INT8": 6,
    "INT16": 7,
    "INT32": 8,
    "INT64": 9,
    "FP16": 10,
    "FP32": 11,
    "FP64": 12,
    "BYTES": 13,
    "BF16": 14,
}


class InferenceResponse:
    """Output tensors, or an error."""

    def __init__(
        self,
        output_tensors: Iterable[Tensor] = (),
        error: TritonError | str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._tensors = list(output_tensors)
        self._error = TritonError(error) if isinstance(error, str) else error
        self._parameters = dict(parameters or {})

    def output_tensors(self) -> list[Tensor]:
        """The tensors."""
        return self._tensors

    def has_error(self) -> bool:
        """Whether there is one."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """It."""
        return self._error

    def parameters(self) -> str:
        """As JSON text, as Triton has it."""
        return json.dumps(self._parameters)


class Session(Protocol):
    """What requests and responses need of the child."""

    def send(self, key: int, response: InferenceResponse | None, *, final: bool) -> None:
        """One answer to the request ``key``."""
        ...

    def is_cancelled(self, key: int) -> bool:
        """Whether nobody waits for ``key`` any more."""
        ...

    def call(
        self, request: InferenceRequest, each: Callable[[InferenceResponse, bool], None]
    ) -> None:
        """Asks another model; ``each(response, final)`` on another thread."""
        ...

    def is_ready(self, model: str, version: str) -> bool:
        """Whether another model can be asked."""
        ...


class InferenceResponseSender:
    """The way to any number of answers to one request; any thread, at any time."""

    def __init__(self, session: Session, key: int) -> None:
        self._session = session
        self._key = key
        self._final = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """One more answer; ``flags`` TRITONSERVER_RESPONSE_COMPLETE_FINAL makes it the last."""
        if self._final:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        final = bool(flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        if response is None and not final:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        self._final = final
        self._session.send(self._key, response, final=final)

    def is_cancelled(self) -> bool:
        """Whether the client has left."""
        return self._session.is_cancelled(self._key)


class InferenceRequest:
    """A request that the model is given; or, made by the model, one to another model."""

    def __init__(  # noqa: PLR0917 - the backend's own signature
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: Any = None,
        trace: Any = None,
        parameters: Mapping[str, Any] | str | None = None,
    ) -> None:
        self._id = request_id
        self._correlation_id = correlation_id
        self._inputs = list(inputs)
        self._outputs = list(requested_output_names)
        self._model_name = model_name
        self._model_version = model_version
        self._flags = flags
        self._timeout = timeout
        self._preferred_memory = preferred_memory
        self._trace = trace
        given = json.loads(parameters) if isinstance(parameters, str) else dict(parameters or {})
        self._parameters: dict[str, Any] = given
        self._priority = 0
        self.session: Session | None = None
        self.key = 0
        self.decoupled = False
        self.again = False

    def inputs(self) -> list[Tensor]:
        """The tensors."""
        return self._inputs

    def request_id(self) -> str:
        """As the client sent it."""
        return self._id

    def correlation_id(self) -> int | str:
        """Of its sequence; 0 for none."""
        return self._correlation_id

    def requested_output_names(self) -> list[str]:
        """What the client wants; all outputs if it did not say."""
        return self._outputs

    def model_name(self) -> str:
        """Which model it is for."""
        return self._model_name

    def model_version(self) -> int:
        """-1: the one that is served."""
        return self._model_version

    def flags(self) -> int:
        """Start and end of a sequence."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """Sets them."""
        self._flags = flags

    def timeout(self) -> int:
        """In microseconds; 0 for none."""
        return self._timeout

    def priority(self) -> int:
        """0 for none."""
        return self._priority

    def set_priority(self, priority: int) -> None:
        """Sets it."""
        self._priority = priority

    def parameters(self) -> str:
        """As JSON text, as Triton has it."""
        return json.dumps(self._parameters)

    def preferred_memory(self) -> Any:
        """As it was given."""
        return self._preferred_memory

    def trace(self) -> Any:
        """As it was given."""
        return self._trace

    def is_cancelled(self) -> bool:
        """Whether the client has left."""
        return self.session is not None and self.session.is_cancelled(self.key)

    def get_response_sender(self) -> InferenceResponseSender:
        """The way to this request's answers. Raises TritonModelException: it has but one."""
        if self.session is None or not self.decoupled:
            raise TritonModelException(
                "'get_response_sender' function must be called only when the model is using the "
                "decoupled transaction policy."
            )
        return InferenceResponseSender(self.session, self.key)

    def set_release_flags(self, flags: int) -> None:
        """What becomes of it when ``execute`` returns: RESCHEDULE runs it again.

        For models with ``iterative_sequence``. Where there is but one response, it is then
        None: the answer is that of the last run.
        """
        self.again = bool(flags & TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)

    def exec(self, decoupled: bool = False) -> Any:
        """Asks the model that it names: its response, or an iterator of responses."""
        return Responses(call_later(self)) if decoupled else call_later(self).single()

    def async_exec(self, decoupled: bool = False) -> Any:
        """The same, to be awaited."""

        async def wait() -> Any:
            return await asyncio.to_thread(self.exec, decoupled)

        return wait()


class _Pending:
    """The answers of another model, as they come."""

    def __init__(self) -> None:
        import queue

        self._answers: queue.SimpleQueue[tuple[InferenceResponse, bool]] = queue.SimpleQueue()

    def each(self, response: InferenceResponse, final: bool) -> None:
        self._answers.put((response, final))

    def single(self) -> InferenceResponse:
        answers = [response for response in self if response.output_tensors() or response.error()]
        if len(answers) != 1:
            raise TritonModelException(
                f"expected one response of the model, got {len(answers)}; exec(decoupled=True) "
                "takes any number"
            )
        return answers[0]

    def __iter__(self) -> Iterator[InferenceResponse]:
        final = False
        while not final:
            response, final = self._answers.get()
            yield response


class Responses:
    """An iterator over the answers of a decoupled model."""

    def __init__(self, pending: _Pending) -> None:
        self._answers = iter(pending)

    def __iter__(self) -> Iterator[InferenceResponse]:
        return self._answers


def call_later(request: InferenceRequest) -> _Pending:
    """Asks another model; its answers as they come. Raises TritonModelException."""
    session = SESSIONS[-1] if SESSIONS else None
    if session is None:
        raise TritonModelException("other models can only be called while this one is served")
    pending = _Pending()
    session.call(request, pending.each)
    return pending


SESSIONS: list[Session] = []
