"""Tensors, requests, responses and errors of ``triton_python_backend_utils``; see ``utils``."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from headrace.runtimes.python.triton import codes
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

    UNKNOWN = codes.UNKNOWN
    INTERNAL = codes.INTERNAL
    NOT_FOUND = codes.NOT_FOUND
    INVALID_ARG = codes.INVALID_ARG
    UNAVAILABLE = codes.UNAVAILABLE
    UNSUPPORTED = codes.UNSUPPORTED
    ALREADY_EXISTS = codes.ALREADY_EXISTS
    CANCELLED = codes.CANCELLED

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
        name = _text(name)
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
        for tensor in self._tensors:
            if not isinstance(tensor, Tensor):
                raise TritonModelException(f"expected a Tensor, got {type(tensor).__name__}")
        self._error = TritonError(error) if isinstance(error, str) else error
        self._parameters = dict(parameters or {})
        for name, value in self._parameters.items():
            if not isinstance(name, str) or not isinstance(value, bool | int | str):
                raise TritonModelException(
                    f"parameter {name!r} is {type(value).__name__}, expected bool, int or str"
                )

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

    @property
    def parameter_values(self) -> dict[str, Any]:
        """Not as text."""
        return self._parameters


class Session(Protocol):
    """What requests and responses need of the child."""

    def send(
        self, request: InferenceRequest, response: InferenceResponse | None, *, final: bool
    ) -> None:
        """One answer to a request."""
        ...

    def call(
        self, request: InferenceRequest, each: Callable[[InferenceResponse, bool], None]
    ) -> Callable[[], None]:
        """Asks another model; ``each(response, final)`` on another thread. What ends it."""
        ...

    def is_ready(self, model: str, version: str) -> bool:
        """Whether another model can be asked."""
        ...


class InferenceResponseSender:
    """The way to the answers to one request: any number, where the model is decoupled.

    Any thread, at any time.
    """

    def __init__(self, session: Session, request: InferenceRequest) -> None:
        self._session = session
        self._request = request

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """One more answer; ``flags`` TRITONSERVER_RESPONSE_COMPLETE_FINAL makes it the last.

        Raises:
            TritonModelException: there is nothing to say, or the last one was sent.
        """
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        final = bool(flags)
        if response is None and not final:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        self._session.send(self._request, response, final=final)

    def is_cancelled(self) -> bool:
        """Whether the client has left."""
        return self._request.is_cancelled()


class InferenceTrace:
    """The trace of a request, which is not followed into models."""

    def get_context(self) -> str | None:
        """None: there is no context."""
        return None


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
        self._id = _text(request_id)
        is_text = isinstance(correlation_id, str | bytes)
        self._correlation_id = _text(correlation_id) if is_text else int(correlation_id)
        self._inputs = list(inputs)
        for tensor in self._inputs:
            if not isinstance(tensor, Tensor):
                raise TritonModelException(f"expected a Tensor, got {type(tensor).__name__}")
        self._outputs = [_text(name) for name in requested_output_names]
        self._model_name = _text(model_name)
        self._model_version = int(model_version)
        self._flags = int(flags)
        self._timeout = int(timeout)
        self._preferred_memory = preferred_memory
        self._trace = InferenceTrace() if trace is None else trace
        given = json.loads(parameters) if isinstance(parameters, str) else dict(parameters or {})
        self._parameters: dict[str, Any] = given
        self._priority = 0
        self._sender: InferenceResponseSender | None = None
        # Of the child, for a request that it was given.
        self.session: Session | None = None
        self.key = 0
        self.again = False
        self.cancelled = False
        self.answered = False
        self.told = False
        self.closed = False

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
        return self.cancelled

    @property
    def sender_taken(self) -> bool:
        """Whether the model means to answer by a sender."""
        return self._sender is not None

    def get_response_sender(self) -> InferenceResponseSender:
        """The way to this request's answers; the same one each time.

        Raises:
            TritonModelException: the request is the model's own.
        """
        if self._sender is None:
            if self.session is None:
                raise TritonModelException("a request to another model has no response sender")
            self._sender = InferenceResponseSender(self.session, self)
        return self._sender

    def set_release_flags(self, flags: int) -> None:
        """What becomes of it when ``execute`` returns: RESCHEDULE runs it again.

        For models with ``iterative_sequence``. Where there is but one response, it is then
        None: the answer is that of the last run.
        """
        self.again = bool(flags & TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)

    def exec(self, decoupled: bool = False) -> Any:
        """Asks the model that it names: its response, or an iterator of responses."""
        responses = ResponseIterator(self)
        return responses if decoupled else _sole(list(responses))

    def async_exec(self, decoupled: bool = False) -> Awaitable[Any]:
        """The same, to be awaited; it is asked at once.

        Raises:
            RuntimeError: there is no event loop running.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if decoupled:
            future.set_result(ResponseIterator(self))
            return future
        answers: list[InferenceResponse] = []

        def set_result() -> None:
            if not future.done():
                future.set_result(_sole(answers))

        def each(response: InferenceResponse, final: bool) -> None:
            answers.append(response)
            if final:
                try:
                    loop.call_soon_threadsafe(set_result)
                except RuntimeError:
                    pass  # the loop is closed: nobody is left to be told

        end = _ask(self, each)
        future.add_done_callback(lambda done: end() if done.cancelled() else None)
        return future


class ResponseIterator:
    """The answers of another model, as they come."""

    def __init__(self, request: InferenceRequest) -> None:
        self._answers: queue.SimpleQueue[tuple[InferenceResponse, bool]] = queue.SimpleQueue()
        self._final = False
        self._end = _ask(request, lambda response, final: self._answers.put((response, final)))

    def __iter__(self) -> Iterator[InferenceResponse]:
        return self

    def __next__(self) -> InferenceResponse:
        if self._final:
            raise StopIteration
        response, self._final = self._answers.get()
        return response

    def cancel(self) -> None:
        """The model need not go on; what it has answered already is still there to be read."""
        if not self._final:
            self._end()
            error = TritonError("the request was cancelled", TritonError.CANCELLED)
            self._answers.put((InferenceResponse(error=error), True))


def _sole(answers: Sequence[InferenceResponse]) -> InferenceResponse:
    """The one answer among those of a model that may give several, or why there is none."""
    told = [each for each in answers if each.has_error() or each.output_tensors()]
    if len(told) == 1:
        return told[0]
    if len(answers) == 1:
        return answers[0]  # a model without outputs, or with none asked for
    error = f"expected one response, got {len(told)}; exec(decoupled=True) takes any number"
    return InferenceResponse(error=TritonError(error, TritonError.UNSUPPORTED))


def _ask(
    request: InferenceRequest, each: Callable[[InferenceResponse, bool], None]
) -> Callable[[], None]:
    """Asks another model, and says what ends that."""
    if not SESSIONS:
        raise TritonModelException("other models can only be called from a model that is served")
    return SESSIONS[-1].call(request, each)


def _text(value: Any) -> str:
    """As Triton takes it: names may be an element of a BYTES tensor."""
    return value.decode() if isinstance(value, bytes) else str(value)


SESSIONS: list[Session] = []
