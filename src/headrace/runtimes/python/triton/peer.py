"""One child of a Triton model, seen from the server: what it is asked, and what it says.

Whoever executes reads what the child says until ``execute`` is over; the model's watch reads at
all other times. Answers go to whoever asked as they come, perhaps long after. What the event
loop has to say to the child is sent by a thread: a child that is stopped or stuck does not read.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

from headrace.errors import HeadraceError, InferenceFailed, PayloadTooLarge
from headrace.runtimes.base import Emit, Emitted, ModelRequest, Outputs
from headrace.runtimes.host import Host, HostCalled
from headrace.runtimes.python.child import Child
from headrace.runtimes.python.messages import Disconnected
from headrace.runtimes.python.triton.codes import INTERNAL, UNSUPPORTED, code_of, error_of
from headrace.runtimes.python.triton.watch import Turns, Watch
from headrace.runtimes.python.triton.wire import (
    Answer,
    Cancel,
    Execute,
    Executed,
    HostAnswer,
    HostCall,
    HostCancel,
    Line,
    Measured,
    Outbox,
    RequestInfo,
    ToServer,
    fitting,
    read_tensor,
)
from headrace.types import (
    InferenceRequest,
    InferenceResponse,
    RequestedOutput,
    Tensor,
    TensorSpec,
)

_LOG = logging.getLogger(__name__)

_START, _END = 1, 2


class Peer:
    """The conversation with one child that has loaded the model.

    Args:
        child: it.
        inputs, outputs: the model's signature.
        host: through which the model may call others; None as long as it may not.
        watch: reads when nobody executes.
    """

    def __init__(
        self,
        child: Child,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        host: Callable[[], Host | None],
        watch: Watch,
    ) -> None:
        self._child = child
        self._model = child.spec.model
        told = child.spec.triton
        self._version = "" if told is None else told.version
        self._inputs = inputs
        self._outputs = {spec.name: (i, spec) for i, spec in enumerate(outputs)}
        self._host = host
        most = self._most_bytes = child.spec.options.max_shared_bytes
        self._line = Line(child.channel.duplicate(), ToServer, max_bytes=most)
        self._lock = threading.Lock()
        self._open: dict[int, Emit] = {}
        self._running: frozenset[int] = frozenset()  # the keys of the execute() under way
        self._calls: dict[int, HostCalled | None] = {}  # to other models, under way
        self._outgoing: SimpleQueue[tuple[Any, Sequence[Tensor]] | None] = SimpleQueue()
        self._sender: threading.Thread | None = None
        self.gone = False
        self._turns = Turns(watch, self._line.fileno(), lambda: self._receive(wait=False))

    def execute(self, requests: Sequence[ModelRequest], emit: Emit) -> None:
        """One ``execute``; one caller at a time. As ``RequestModel.execute_requests``."""
        keys = frozenset(request.key for request in requests)
        with self._lock:
            self._open.update(dict.fromkeys(keys, emit))
            self._running = keys
            gone = self.gone
        outcome: Executed | None = None
        try:
            if not gone:
                outbox = Outbox()
                infos = [self._info(request, outbox) for request in requests]
                self._check_size(outbox)
                with self._turns:
                    self._line.send(Execute(infos), outbox)
                    outcome = self._read_until_executed()
        except Disconnected:
            pass
        finally:
            self._turns.leave()
            forget = keys if outcome is None or outcome.error else outcome.again
            with self._lock:
                self._running = frozenset()
                for key in forget:
                    self._open.pop(key, None)
        if outcome is None:
            raise self._child.obituary()
        if outcome.error:
            if outcome.traceback:
                _LOG.error("model %s: %s\n%s", self._model, outcome.error, outcome.traceback)
            raise InferenceFailed(outcome.error, model=self._model)

    def cancel(self, key: int) -> bool:
        """Tells the child that nobody waits for ``key``; False if it is not known here.

        Any thread; does not wait. What the child says of ``key`` from now on goes nowhere.
        """
        with self._lock:
            if self._open.pop(key, None) is None:
                return False
        self._post(Cancel(key))
        return True

    def _check_size(self, outbox: Outbox) -> None:
        if outbox.size > self._most_bytes:
            raise PayloadTooLarge(
                f"the tensors of one batch for model '{self._model}' take {outbox.size} bytes, and "
                f"max_shared_bytes is {self._most_bytes}",
                hint="send smaller requests, or raise max_shared_bytes in runtime_options",
                limit="max_shared_bytes",
                allowed=self._most_bytes,
            )

    def _info(self, request: ModelRequest, outbox: Outbox) -> RequestInfo:
        flags = (_START if request.sequence_start else 0) | (_END if request.sequence_end else 0)
        return RequestInfo(
            request.key,
            request.id,
            tuple(
                outbox.add(spec.name, spec.datatype, array)
                for spec, array in zip(self._inputs, request.arrays, strict=True)
                if array is not None
            ),
            request.outputs,
            dict(request.parameters),
            request.sequence_id,
            flags,
            request.priority,
            request.timeout_ns // 1000,
        )

    # -- reading ---------------------------------------------------------------------------------

    def _read_until_executed(self) -> Executed | None:
        """Reads what comes until ``execute`` is over. None: the child is gone."""
        while not self.gone:
            received = self._receive(wait=True)
            if isinstance(received, Executed):
                return received
        return None

    def _receive(self, *, wait: bool) -> Any:
        """Reads one message and does what it says; the message."""
        try:
            received = self._line.receive(wait=wait)
            if received is None:
                return None
            message, buffer = received
            if isinstance(message, Executed):
                for answer in message.answers:
                    self._on_answer(answer, buffer)
                for measured in message.measured:
                    self._on_call(measured, buffer)
            elif isinstance(message, Answer):
                self._on_answer(message, buffer)
            else:
                self._on_call(message, buffer)
            return message
        except Disconnected:
            self._end()
        except Exception:  # noqa: BLE001 - whatever it sent, the others must be told
            _LOG.exception("model %s: its child is not understood", self._model)
            with contextlib.suppress(OSError):  # it is closed already
                self._child.kill()
            self._end()
        return None

    def close(self) -> None:
        """The child has been ended, and nobody executes any more."""
        with self._turns:
            if not self.gone:
                self._end()

    def _end(self) -> None:
        """The child is gone: whoever still waits for an answer is told so; what is running is
        left to whoever executes.
        """
        with self._lock:
            self.gone = True
            left = {k: emit for k, emit in self._open.items() if k not in self._running}
            self._open = {}
            calls = [call for call in self._calls.values() if call is not None]
            self._calls = {}
            self._outgoing.put(None)
        for call in calls:
            call.cancel()
        if left:
            died = self._child.obituary()
            for key, emit in left.items():
                emit(key, died, True)
        self._turns.end()
        self._line.hang_up()
        self._line.close()

    def _on_answer(self, answer: Answer, buffer: Any) -> None:
        with self._lock:
            emit = self._open.pop(answer.key, None) if answer.final else self._open.get(answer.key)
        if emit is not None:
            emit(answer.key, self._read(answer, buffer), answer.final)

    def _read(self, answer: Answer, buffer: Any) -> Emitted:
        if answer.error is not None:
            return error_of(answer.code, answer.error, self._model)
        if answer.outputs is None:
            return None
        arrays: list[np.ndarray | None] = [None] * len(self._outputs)
        for info in answer.outputs:
            known = self._outputs.get(info.name)
            if known is None:
                continue  # as Triton: what the configuration does not name is not sent
            index, spec = known
            array = fitting(read_tensor(info, buffer), info.datatype, spec.datatype)
            if array is None:
                return InferenceFailed(
                    f"model '{self._model}' returned output '{info.name}' as {info.datatype}, "
                    f"expected {spec.datatype}",
                    code="wrong_output_datatype",
                    model=self._model,
                    output=info.name,
                )
            arrays[index] = array
        return Outputs(arrays, answer.parameters) if answer.parameters else arrays

    # -- the model calls another -----------------------------------------------------------------

    def _on_call(self, message: HostCall | HostCancel | Measured, buffer: Any) -> None:
        host = self._host()
        if host is None:
            if isinstance(message, HostCall):
                error = "models cannot call one another here"
                self._post(HostAnswer(message.call, (), error, True, UNSUPPORTED))
        elif isinstance(message, Measured):
            host.measured(self._model, self._version, self._child.place, message)
        elif isinstance(message, HostCancel):
            with self._lock:
                call = self._calls.pop(message.call, None)
            if call is not None:
                call.cancel()
        elif message.question == "ready":
            ready = host.is_ready(message.model, message.version)
            self._post(HostAnswer(message.call, (), None if ready else "not ready", True))
        else:
            self._calls[message.call] = None
            called = host.submit(_request_of(message, buffer), _HostReply(self, message.call))
            with self._lock:
                if message.call in self._calls:  # it may have ended already
                    self._calls[message.call] = called

    def reply(self, answer: HostAnswer, outputs: Sequence[Tensor] = ()) -> None:
        """Tells the model what another one answered. On the event loop; does not wait."""
        if answer.final:
            with self._lock:
                self._calls.pop(answer.call, None)
        self._post(answer, outputs)

    # -- the sending thread ----------------------------------------------------------------------

    def _post(self, message: Any, outputs: Sequence[Tensor] = ()) -> None:
        """Sends it soon: a child that does not read must not hold up who has something for it."""
        with self._lock:
            if self.gone:
                return
            if self._sender is None:
                self._sender = threading.Thread(
                    target=self._send, name=f"headrace-to-peer-{self._child.pid}", daemon=True
                )
                self._sender.start()
            self._outgoing.put((message, outputs))

    def _send(self) -> None:
        try:
            while (posted := self._outgoing.get()) is not None:
                message, outputs = posted
                outbox = Outbox()
                if outputs:
                    message.outputs = tuple(
                        outbox.add(tensor.name, tensor.datatype, tensor.data) for tensor in outputs
                    )
                try:
                    self._line.send(message, outbox)
                except InferenceFailed as error:  # it is too large
                    self._line.send(HostAnswer(message.call, (), error.message, True, INTERNAL))
        except Disconnected:
            pass  # it died; there is nobody to tell


class _HostReply:
    """The answers of the other model, on their way back."""

    def __init__(self, peer: Peer, call: int) -> None:
        self._peer = peer
        self._call = call

    def part(self, response: InferenceResponse) -> None:
        self._peer.reply(self._answer(response, final=False), response.outputs)

    def complete(self, response: InferenceResponse, _record: object) -> None:
        self._peer.reply(self._answer(response, final=True), response.outputs)

    def fail(self, error: HeadraceError) -> None:
        self._peer.reply(HostAnswer(self._call, (), error.message, True, code_of(error)))

    def _answer(self, response: InferenceResponse, *, final: bool) -> HostAnswer:
        return HostAnswer(self._call, (), None, final, 0, response.parameters or {})


def _request_of(call: HostCall, buffer: Any) -> InferenceRequest:
    info = call.request
    request = InferenceRequest(
        call.model,
        [
            Tensor(each.name, each.datatype, each.shape, read_tensor(each, buffer))
            for each in info.inputs
        ],
        call.version,
        info.id,
        None if info.outputs is None else [RequestedOutput(name) for name in info.outputs],
        info.parameters or None,
        info.timeout_us * 1000,
        info.priority,
    )
    request.sequence_id = info.sequence_id
    request.sequence_start = bool(info.flags & _START)
    request.sequence_end = bool(info.flags & _END)
    return request
