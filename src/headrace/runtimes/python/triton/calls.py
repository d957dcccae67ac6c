"""The child's calls to other models, and their answers."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from typing import Any

from headrace.runtimes.python.triton import objects
from headrace.runtimes.python.triton.wire import (
    HostAnswer,
    HostCall,
    HostCancel,
    Outbox,
    RequestInfo,
    read_tensor,
)

Each = Callable[[objects.InferenceResponse, bool], None]
"""Told of each answer and whether it is the last, on the receiving thread."""

_NOTHING = RequestInfo(0, "", (), None, {}, 0, 0, 0, 0)


class Calls:
    """Any thread calls.

    Args:
        tell: sends a message to the server. Raises TritonModelException: it cannot be sent.
    """

    def __init__(self, tell: Callable[[Any, Outbox | None], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._open: dict[int, Each] = {}
        self._next = 1
        self._over = False

    def ask(self, request: objects.InferenceRequest, each: Each) -> Callable[[], None]:
        """Asks the model that the request names; what ends that."""
        outbox = Outbox()
        info = RequestInfo(
            0,
            request.request_id(),
            tuple(outbox.add(t.name(), t.datatype, t.as_numpy()) for t in request.inputs()),
            tuple(request.requested_output_names()) or None,
            json.loads(request.parameters()),
            request.correlation_id(),
            request.flags(),
            request.priority(),
            request.timeout(),
        )
        version = request.model_version()
        text = "" if version < 0 else str(version)
        number = self._begin(each)
        self._send(HostCall(number, "infer", request.model_name(), text, info), outbox)
        return lambda: self._cancel(number)

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a model can be asked."""
        answer: queue.SimpleQueue[bool] = queue.SimpleQueue()
        number = self._begin(lambda response, _: answer.put(not response.has_error()))
        self._send(HostCall(number, "ready", model, version, _NOTHING), None)
        return answer.get()

    def on_answer(self, answer: HostAnswer, buffer: Any) -> None:
        """The server has one more."""
        with self._lock:
            each = self._open.get(answer.call)
            if answer.final:
                self._open.pop(answer.call, None)
        if each is None:
            return
        error = None
        if answer.error is not None:
            error = objects.TritonError(answer.error, answer.code)
        tensors = [
            objects.Tensor(info.name, read_tensor(info, buffer), info.datatype)
            for info in answer.outputs
        ]
        each(objects.InferenceResponse(tensors, error, answer.parameters), answer.final)

    def end(self) -> None:
        """The server is gone: nobody will be answered."""
        with self._lock:
            self._over = True
            open_, self._open = self._open, {}
        gone = objects.TritonError("the server is gone", objects.TritonError.UNAVAILABLE)
        for each in open_.values():
            each(objects.InferenceResponse(error=gone), True)

    def _begin(self, each: Each) -> int:
        with self._lock:
            if self._over:
                raise objects.TritonModelException("the server is gone")
            number = self._next
            self._next += 1
            self._open[number] = each
            return number

    def _send(self, message: HostCall, outbox: Outbox | None) -> None:
        try:
            self._tell(message, outbox)
        except BaseException:
            with self._lock:
                self._open.pop(message.call, None)
            raise

    def _cancel(self, number: int) -> None:
        with self._lock:
            if self._open.pop(number, None) is None:
                return
        self._tell(HostCancel(number), None)
