"""The child process of a Triton model: loads the class, executes requests, sends answers.

Three kinds of threads meet here: the main thread runs ``execute``, one thread receives, and the
model's own threads may send answers and call other models. A message is sent under the line's
lock; everything else that they share is a dictionary or a queue.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.errors import ModelLoadError
from headrace.runtimes.python.loader import describe, line_of, load_module
from headrace.runtimes.python.messages import MAX_TEXT, Disconnected, Started, cut
from headrace.runtimes.python.triton import objects, utils
from headrace.runtimes.python.triton.model_config import ModelConfig
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
    ToChild,
    read_tensor,
)
from headrace.runtimes.python.triton_start import CLASS, TritonStart
from headrace.types import DYNAMIC, TensorSpec

_MAX_ERROR = MAX_TEXT


class Child:
    """One model in this process.

    Args:
        path: the model file.
        model: its name.
        start: what else the server says.

    Raises:
        ModelLoadError: the file, its class or its ``initialize`` raised.
    """

    def __init__(self, path: Path, model: str, start: TritonStart) -> None:
        self._path = path
        self._model_name = model
        self._start = start
        self._line: Line | None = None
        self._batches: queue.SimpleQueue[tuple[Execute, Any] | None] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._open: set[int] = set()
        self._calls: dict[int, Callable[[objects.InferenceResponse, bool], None]] = {}
        self._next_call = 1
        self._lock = threading.Lock()
        self._utils = utils.install(self, str(path.parent))
        self._module: ModuleType = load_module(path, model)
        self._config: dict[str, Any] = json.loads(start.config)
        self._object = self._make()
        self.decoupled = utils.using_decoupled_model_transaction_policy(self._config)
        self._outputs = {spec.name: spec for spec in self.signature()[1]}

    def started(self) -> Started:
        """What the server is told."""
        inputs, outputs = self.signature()
        rows = int(self._config.get("max_batch_size", 0))
        return Started(inputs, outputs, 0, rows, self.decoupled)

    def signature(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """As declared; completed by the model where nothing was."""
        start = self._start
        if start.inputs and start.outputs:
            return start.inputs, start.outputs
        rows = int(self._config.get("max_batch_size", 0)) > 0
        completed = [
            tuple(_spec(each, rows=rows) for each in self._config.get(kind, ()))
            for kind in ("input", "output")
        ]
        return start.inputs or completed[0], start.outputs or completed[1]

    def serve(self, end: socket.socket) -> None:
        """Executes what comes, until the server hangs up; then ``finalize``."""
        self._line = Line(end, ToChild)
        threading.Thread(target=self._receive, name="headrace-receive", daemon=True).start()
        while (batch := self._batches.get()) is not None:
            self._execute(*batch)
        finalize = getattr(self._object, "finalize", None)
        if callable(finalize):
            finalize()

    # -- the model -------------------------------------------------------------------------------

    def _make(self) -> Any:
        found = getattr(self._module, CLASS)
        complete = getattr(found, "auto_complete_config", None)
        if complete is not None and not (self._start.inputs and self._start.outputs):
            completed = self._run(
                lambda: complete(ModelConfig(self._config)), f"{CLASS}.auto_complete_config"
            )
            if completed is not None:
                self._config = completed.as_dict()
        made = self._run(found, f"{CLASS}()")
        initialize = getattr(made, "initialize", None)
        if initialize is not None:
            self._run(lambda: initialize(self._arguments()), f"{CLASS}.initialize")
        if not callable(getattr(made, "execute", None)):
            raise ModelLoadError(
                f"{CLASS} in {self._path} has no method execute",
                hint="execute(self, requests) returns one response for each request",
            )
        return made

    def _arguments(self) -> dict[str, str]:
        start = self._start
        return {
            "model_config": json.dumps(self._config),
            "model_instance_kind": "CPU",
            "model_instance_name": f"{self._model_name}_0_{start.place}",
            "model_instance_device_id": "0",
            "model_repository": start.repository,
            "model_version": start.version,
            "model_name": self._model_name,
        }

    def _run(self, function: Callable[[], Any], what: str) -> Any:
        try:
            return function()
        except (Exception, SystemExit) as error:
            raise ModelLoadError(
                f"{what} raised {describe(error, self._path)}",
                hint="the traceback is in the log",
                line=line_of(error, self._path),
            ) from error

    def _execute(self, batch: Execute, buffer: Any) -> None:
        requests = [self._request(info, buffer) for info in batch.requests]
        del buffer
        keys = [request.key for request in requests]
        with self._lock:
            self._open.update(keys)
        try:
            responses = self._object.execute(requests)
            if not self.decoupled:
                self._answer_all(requests, responses)
            elif responses is not None:
                raise ValueError(
                    "Python model has the decoupled transaction policy and must return None"
                )
        except Exception as error:  # noqa: BLE001 - an author may raise anything
            self._tell(
                Executed(
                    cut(describe(error, self._path)),
                    cut("".join(traceback.format_exception(error))),
                )
            )
            with self._lock:
                self._open.difference_update(keys)
            return
        again = tuple(request.key for request in requests if request.again)
        with self._lock:
            self._open.difference_update(again)
        self._tell(Executed("", "", again))

    def _answer_all(self, requests: list[objects.InferenceRequest], responses: Any) -> None:
        if not isinstance(responses, list | tuple) or len(responses) != len(requests):
            got = (
                len(responses) if isinstance(responses, list | tuple) else type(responses).__name__
            )
            raise ValueError(
                f"Number of InferenceResponse objects do not match the number of InferenceRequest "
                f"objects. InferenceRequest(s) size is:{len(requests)}, and InferenceResponse(s) "
                f"size is:{got}"
            )
        for request, response in zip(requests, responses, strict=True):
            if not request.again:
                self.send(request.key, response, final=True)

    def _request(self, info: RequestInfo, buffer: Any) -> objects.InferenceRequest:
        request = objects.InferenceRequest(
            info.id,
            info.sequence_id,
            [
                objects.Tensor(tensor.name, read_tensor(tensor, buffer), tensor.datatype)
                for tensor in info.inputs
            ],
            list(self._outputs) if info.outputs is None else list(info.outputs),
            self._model_name,
            int(self._start.version) if self._start.version.isdigit() else -1,
            info.flags,
            info.timeout_us,
            parameters=info.parameters,
        )
        request.set_priority(info.priority)
        request.session, request.key, request.decoupled = self, info.key, self.decoupled
        return request

    # -- utils.Session ---------------------------------------------------------------------------

    def send(self, key: int, response: objects.InferenceResponse | None, *, final: bool) -> None:
        """One answer to the request ``key``; from any thread."""
        if final:
            with self._lock:
                self._open.discard(key)
                self._cancelled.discard(key)
        if response is None:
            self._tell(Answer(key, None, "", final))
            return
        if not isinstance(response, objects.InferenceResponse):
            raise TypeError(f"expected an InferenceResponse, got {type(response).__name__}")
        error = response.error()
        if error is not None:
            self._tell(Answer(key, None, str(error)[:_MAX_ERROR] or "unknown error", final))
            return
        outbox = Outbox()
        outputs = tuple(self._put(outbox, tensor) for tensor in response.output_tensors())
        self._tell(Answer(key, outputs, "", final), outbox)

    def _put(self, outbox: Outbox, tensor: objects.Tensor) -> TensorInfo:
        spec = self._outputs.get(tensor.name())
        datatype = tensor.datatype
        if spec is not None and spec.datatype == "BF16" and datatype == "UINT16":
            datatype = "BF16"
        return outbox.add(tensor.name(), datatype, tensor.as_numpy())

    def is_cancelled(self, key: int) -> bool:
        """Whether nobody waits for ``key`` any more."""
        return key in self._cancelled

    def call(
        self,
        request: objects.InferenceRequest,
        each: Callable[[objects.InferenceResponse, bool], None],
    ) -> None:
        """Asks another model."""
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
        with self._lock:
            number = self._next_call
            self._next_call += 1
            self._calls[number] = each
        text = "" if int(version) < 0 else str(version)
        self._tell(HostCall(number, "infer", request.model_name(), text, info), outbox)

    def is_ready(self, model: str, version: str) -> bool:
        """Whether another model can be asked."""
        answer: queue.SimpleQueue[bool] = queue.SimpleQueue()
        with self._lock:
            number = self._next_call
            self._next_call += 1
            self._calls[number] = lambda response, _: answer.put(not response.has_error())
        nothing = RequestInfo(0, "", (), None, {}, 0, 0, 0, 0)
        self._tell(HostCall(number, "ready", model, version, nothing))
        return answer.get()

    # -- the line --------------------------------------------------------------------------------

    def _tell(self, message: Any, outbox: Outbox | None = None) -> None:
        line = self._line
        if line is None:
            raise objects.TritonModelException(
                "the server cannot be asked before the model is loaded"
            )
        try:
            line.send(message, outbox)
        except Disconnected:
            self._batches.put(None)  # the server is gone; so is whoever wanted to know

    def _receive(self) -> None:
        line = self._line
        assert line is not None
        try:
            while True:
                message, buffer = line.receive()
                if isinstance(message, Execute):
                    self._batches.put((message, buffer))
                elif isinstance(message, Cancel):
                    with self._lock:
                        if message.key in self._open:
                            self._cancelled.add(message.key)
                else:
                    self._on_host_answer(message, buffer)
        except Disconnected:
            pass
        finally:
            for each in tuple(self._calls.values()):
                each(objects.InferenceResponse(error="the server is gone"), True)
            self._batches.put(None)

    def _on_host_answer(self, answer: HostAnswer, buffer: Any) -> None:
        with self._lock:
            each = self._calls.get(answer.call)
            if answer.final:
                self._calls.pop(answer.call, None)
        if each is None:
            return
        tensors = [
            objects.Tensor(info.name, read_tensor(info, buffer), info.datatype)
            for info in answer.outputs
        ]
        error = objects.TritonError(answer.error) if answer.error else None
        each(objects.InferenceResponse(tensors, error), answer.final)


def _spec(told: dict[str, Any], *, rows: bool) -> TensorSpec:
    kind = str(told["data_type"]).removeprefix("TYPE_")
    dims = tuple(int(size) for size in told["dims"])
    return TensorSpec(
        str(told["name"]),
        "BYTES" if kind == "STRING" else kind,
        (DYNAMIC, *dims) if rows else dims,
        bool(told.get("optional", False)),
    )
