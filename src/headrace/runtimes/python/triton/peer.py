"""One child of a Triton model, seen from the server: what it is asked, and what it says.

A thread of its own receives. Whoever executes waits for the end of ``execute``; answers go to
whoever asked as they come, perhaps long after.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.errors import HeadraceError, InferenceFailed
from headrace.runtimes.base import Emit, Emitted, ModelRequest
from headrace.runtimes.host import Host
from headrace.runtimes.python.child import Child
from headrace.runtimes.python.messages import Disconnected
from headrace.runtimes.python.triton.wire import (
    Answer,
    Cancel,
    Execute,
    Executed,
    HostAnswer,
    HostCall,
    Line,
    Outbox,
    RequestInfo,
    TensorInfo,
    ToServer,
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
        host: through which the model may call others; None where it may not.
    """

    def __init__(
        self,
        child: Child,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        host: Host | None,
    ) -> None:
        self._child = child
        self._model = child.spec.model
        self._inputs = inputs
        self._outputs = {spec.name: (i, spec) for i, spec in enumerate(outputs)}
        self._host = host
        self._line = Line(child.channel.duplicate(), ToServer)
        self._lock = threading.Lock()
        self._open: dict[int, Emit] = {}
        self._executed = threading.Event()
        self._outcome: Executed | None = None  # set by the receiving thread
        self.gone = False
        self._thread = threading.Thread(
            target=self._receive, name=f"headrace-peer-{child.pid}", daemon=True
        )
        self._thread.start()

    def execute(self, requests: Sequence[ModelRequest], emit: Emit) -> None:
        """One ``execute``; one caller at a time. As ``RequestModel.execute_requests``."""
        self._begin()
        keys = [request.key for request in requests]
        with self._lock:
            self._open.update(dict.fromkeys(keys, emit))
            gone = self.gone
        outbox = Outbox()
        infos = [self._info(request, outbox) for request in requests]
        try:
            if gone:
                raise Disconnected("it died before")
            self._line.send(Execute(infos), outbox)
        except Disconnected as error:
            self._forget(keys)
            raise self._child.obituary() from error
        self._executed.wait()
        outcome: Executed | None = self._outcome
        if outcome is None:
            self._forget(keys)
            raise self._child.obituary()
        self._forget(outcome.again)
        if outcome.error:
            self._forget(keys)
            if outcome.traceback:
                _LOG.error("model %s: %s\n%s", self._model, outcome.error, outcome.traceback)
            raise InferenceFailed(
                f"Failed to process the request(s) for model instance '{self._model}', message: "
                f"{outcome.error}",
                model=self._model,
            )

    def _begin(self) -> None:
        self._executed.clear()
        self._outcome = None

    def cancel(self, key: int) -> bool:
        """Tells the child that nobody waits for ``key``; False if it is not known here."""
        with self._lock:
            if key not in self._open:
                return False
        try:
            self._line.send(Cancel(key))
        except Disconnected:
            pass  # it will be told in another way
        return True

    def _forget(self, keys: Sequence[int]) -> None:
        with self._lock:
            for key in keys:
                self._open.pop(key, None)

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

    # -- the receiving thread --------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            while True:
                message, buffer = self._line.receive()
                if isinstance(message, Answer):
                    self._on_answer(message, buffer)
                elif isinstance(message, Executed):
                    self._outcome = message
                    self._executed.set()
                else:
                    self._on_call(message, buffer)
        except Disconnected:
            pass
        except Exception:  # noqa: BLE001 - whatever it sent, the others must be told
            _LOG.exception("model %s: its child is not understood", self._model)
            self._child.kill()
        self._end()

    def _end(self) -> None:
        """The child is gone: whoever still waits for an answer is told so."""
        with self._lock:
            self.gone = True
            open_, self._open = self._open, {}
        waiting = not self._executed.is_set()
        if open_ and not waiting:
            died = self._child.obituary()
            for key, emit in open_.items():
                emit(key, died, True)
        self._executed.set()
        self._line.close()

    def _on_answer(self, answer: Answer, buffer: Any) -> None:
        with self._lock:
            emit = self._open.pop(answer.key, None) if answer.final else self._open.get(answer.key)
        if emit is not None:
            emit(answer.key, self._read(answer, buffer), answer.final)

    def _read(self, answer: Answer, buffer: Any) -> Emitted:
        if answer.error:
            return InferenceFailed(answer.error, code="model_error", model=self._model)
        if answer.outputs is None:
            return None
        arrays: list[np.ndarray | None] = [None] * len(self._outputs)
        for info in answer.outputs:
            known = self._outputs.get(info.name)
            if known is None:
                continue  # as Triton: what the configuration does not name is not sent
            index, spec = known
            if info.datatype != spec.datatype:
                return InferenceFailed(
                    f"model '{self._model}' returned output '{info.name}' as {info.datatype}, "
                    f"expected {spec.datatype}",
                    code="wrong_output_datatype",
                    model=self._model,
                    output=info.name,
                )
            # A copy where the packet's own memory is used again is not needed: it is not.
            arrays[index] = read_tensor(info, buffer)
        return arrays

    # -- the model calls another -----------------------------------------------------------------

    def _on_call(self, call: HostCall, buffer: Any) -> None:
        host = self._host
        if host is None:
            self._reply(call.call, error="models cannot call one another here")
            return
        if call.question == "ready":
            ready = host.is_ready(call.model, call.version)
            self._reply(call.call, error="" if ready else "not ready")
            return
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
        host.submit(request, _HostReply(self, call.call))

    def _reply(
        self, call: int, outputs: Sequence[Tensor] = (), *, error: str = "", final: bool = True
    ) -> None:
        outbox = Outbox()
        infos: tuple[TensorInfo, ...] = tuple(
            outbox.add(tensor.name, tensor.datatype, tensor.data) for tensor in outputs
        )
        try:
            self._line.send(HostAnswer(call, infos, error, final), outbox)
        except Disconnected:
            pass  # it died; there is nobody to tell


class _HostReply:
    """The answers of the other model, on their way back."""

    def __init__(self, peer: Peer, call: int) -> None:
        self._peer = peer
        self._call = call

    def part(self, response: InferenceResponse) -> None:
        self._peer._reply(self._call, response.outputs, final=False)

    def complete(self, response: InferenceResponse, _record: object) -> None:
        self._peer._reply(self._call, response.outputs)

    def fail(self, error: HeadraceError) -> None:
        self._peer._reply(self._call, error=error.message)
