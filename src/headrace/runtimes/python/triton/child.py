"""The child process of a Triton model: loads the class, executes requests, sends answers.

Several kinds of threads meet here: the main thread reads and runs ``execute``, another one reads
meanwhile, the model's own threads may send answers and call other models, and where ``execute``
is a coroutine it runs on an event loop of its own. A message is sent under the line's lock;
everything else that they share is behind the child's own.
"""

from __future__ import annotations

import inspect
import json
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.errors import InferenceFailed, ModelLoadError
from headrace.runtimes.python.loader import describe, line_of, load_module
from headrace.runtimes.python.messages import Disconnected, Started, cut
from headrace.runtimes.python.predictor import CoroutineThread, finished
from headrace.runtimes.python.triton import codes, metrics, objects, utils
from headrace.runtimes.python.triton.calls import Calls, Each
from headrace.runtimes.python.triton.model_config import ModelConfig
from headrace.runtimes.python.triton.watch import Turns, Watch
from headrace.runtimes.python.triton.wire import (
    Answer,
    Cancel,
    Execute,
    Executed,
    Line,
    Measured,
    Outbox,
    RequestInfo,
    ToChild,
    read_tensor,
)
from headrace.runtimes.python.triton_start import CLASS, TritonStart, instance_name
from headrace.types import DYNAMIC, TensorSpec

_Batch = list[objects.InferenceRequest]


class _Refused(objects.TritonModelException):
    """What ``execute`` returned is not what it may."""


class Child:
    """One model in this process.

    Args:
        path: the model file.
        model: its name.
        start: what else the server says.
        max_shared_bytes: of the tensors of one message.

    Raises:
        ModelLoadError: the file, its class or its ``initialize`` raised.
    """

    def __init__(
        self, path: Path, model: str, start: TritonStart, *, max_shared_bytes: int
    ) -> None:
        self._path = path
        self._model_name = model
        self._start = start
        self._max_shared_bytes = max_shared_bytes
        self._version = int(start.version) if start.version.isdigit() else -1
        self._line: Line | None = None
        self._turns: Turns | None = None
        self._changed = threading.Condition()
        self._open: dict[int, objects.InferenceRequest] = {}
        self._executing = False
        self._gone = False
        self._unshown: dict[metrics.Metric, None] = {}
        self._coroutines = CoroutineThread()
        self._calls = Calls(self._tell)
        self._config: dict[str, Any] = json.loads(start.config)
        for key, nothing in (("input", []), ("output", []), ("max_batch_size", 0)):
            self._config.setdefault(key, nothing)
        utils.install(self, str(path.parent))
        metrics.BOARDS.append(self)
        self._module: ModuleType = load_module(path, model)
        self._object = self._make()
        self.decoupled = utils.using_decoupled_model_transaction_policy(self._config)
        self._output_names = [spec.name for spec in self.signature()[1]]

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
        self._line = Line(end, ToChild, max_bytes=self._max_shared_bytes)
        with self._changed:
            unshown = self._take_unshown()
        for measured in unshown:
            self._tell(measured)
        watch, number = Watch("headrace-receive"), self._line.fileno()
        self._turns = turns = Turns(watch, number, lambda: self._receive(wait=False))
        while self._serve_one(turns):
            pass
        # Whoever stops the server is patient: SIGTERM is to interrupt ``execute``, not this.
        signal.signal(signal.SIGTERM, lambda _signal, _frame: None)
        finalize = getattr(self._object, "finalize", None)
        if callable(finalize):
            finalize()
        self._coroutines.close()

    # -- the model -------------------------------------------------------------------------------

    def _make(self) -> Any:
        found = getattr(self._module, CLASS)
        complete = getattr(found, "auto_complete_config", None)
        if complete is not None and not (self._start.inputs and self._start.outputs):
            completed = self._run(
                lambda: complete(ModelConfig(self._config)), f"{CLASS}.auto_complete_config"
            )
            if not isinstance(completed, ModelConfig):
                raise ModelLoadError(
                    f"{CLASS}.auto_complete_config returned {type(completed).__name__}",
                    hint="it returns the ModelConfig that it was given",
                )
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

    @property
    def _instance_name(self) -> str:
        return instance_name(self._model_name, self._config, self._start.place)

    def _arguments(self) -> dict[str, str]:
        start = self._start
        return {
            "model_config": json.dumps(self._config),
            "model_instance_kind": "CPU",
            "model_instance_name": self._instance_name,
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

    def _serve_one(self, turns: Turns) -> bool:
        """Reads one message and does what it says; False: there will be no more."""
        with turns:
            batch = self._receive(wait=True)
        if batch is None:
            return not self._gone
        turns.leave()  # while this thread executes
        outbox = Outbox()
        executed = self._execute(batch, outbox)
        del batch
        with turns:  # the next batch is for this thread
            try:
                self._tell(executed, outbox)
            except InferenceFailed as error:  # it is too large
                self._tell(Executed(error.message, ""))
        return True

    def _execute(self, batch: _Batch, outbox: Outbox) -> Executed:
        with self._changed:
            self._executing = True
        try:
            returned = self._object.execute(batch)
            if self.decoupled and inspect.iscoroutine(returned):
                self._go_on(batch, returned)
                returned = None
            answers = self._answers(batch, finished(returned, self._coroutines), outbox)
        except Exception as error:  # noqa: BLE001 - an author may raise anything
            with self._changed:
                for request in batch:
                    request.closed = True
                    self._open.pop(request.key, None)
            trace = cut("".join(traceback.format_exception(error)))
            return Executed(self._failed(error), trace, (), (), self._over())
        again = tuple(request.key for request in batch if request.again)
        done = again if self.decoupled else tuple(request.key for request in batch)
        with self._changed:
            for key in done:
                self._open.pop(key, None)
        return Executed("", "", again, answers, self._over())

    def _failed(self, error: BaseException) -> str:
        """In Triton's words."""
        name = self._instance_name
        return f"Failed to process the request(s) for model '{name}', message: {self._said(error)}"

    def _said(self, error: BaseException) -> str:
        if isinstance(error, InferenceFailed | _Refused):
            return cut(str(error))
        return cut(describe(error, self._path))

    def _answers(self, batch: _Batch, returned: Any, outbox: Outbox) -> tuple[Answer, ...]:
        """What ``execute`` returned, as answers. Raises _Refused: it may not be."""
        if returned is None:
            returned = [None] * len(batch)
        elif self.decoupled:
            raise _Refused(
                f"Python model '{self._instance_name}' is using the decoupled mode and the execute "
                "function must return None."
            )
        if not isinstance(returned, list | tuple):
            raise _Refused(f"Expected a list in the execute return, found type '{type(returned)}'.")
        if len(returned) != len(batch):
            raise _Refused(
                "Number of InferenceResponse objects do not match the number of InferenceRequest "
                f"objects. InferenceRequest(s) size is:{len(batch)}, and InferenceResponse(s) "
                f"size is:{len(returned)}"
            )
        answers = []
        for request, response in zip(batch, returned, strict=True):
            if response is None:
                continue
            if request.again:
                raise _Refused(
                    "Expected a None object in the execute function return list for rescheduled "
                    f"request, found type '{type(response)}'."
                )
            if not isinstance(response, objects.InferenceResponse):
                raise _Refused(
                    "Expected an 'InferenceResponse' object in the execute function return list, "
                    f"found type '{type(response)}'."
                )
            if request.sender_taken:
                self._advance(request, response, final=True)
            request.answered = request.closed = True
            answers.append(_answer(request.key, response, outbox, final=True))
        if not self.decoupled:
            self._wait_for_senders(batch)
        return tuple(answers)

    def _wait_for_senders(self, batch: _Batch) -> None:
        """A model with one response each may send it from another thread, a little later."""
        with self._changed:
            for request in batch:
                while request.sender_taken and not (
                    request.told or request.again or request.cancelled
                ):
                    self._changed.wait()

    def _go_on(self, batch: _Batch, coroutine: Coroutine[Any, Any, Any]) -> None:
        """A decoupled model's coroutine is not waited for: the next batch may come meanwhile."""

        def over(done: Future[Any]) -> None:
            error = done.exception()
            if error is None:
                return
            trace = "".join(traceback.format_exception(error))
            sys.stderr.write(f"execute raised:\n{trace}")
            failed = objects.InferenceResponse(error=self._failed(error))
            for request in batch:
                if not request.closed:
                    self.send(request, failed, final=True)

        self._coroutines.start(coroutine).add_done_callback(over)

    def _request(self, info: RequestInfo, buffer: Any) -> objects.InferenceRequest:
        request = objects.InferenceRequest(
            info.id,
            info.sequence_id,
            [
                objects.Tensor(tensor.name, read_tensor(tensor, buffer), tensor.datatype)
                for tensor in info.inputs
            ],
            self._output_names if info.outputs is None else info.outputs,
            self._model_name,
            self._version,
            info.flags,
            info.timeout_us,
            parameters=info.parameters,
        )
        request.set_priority(info.priority)
        request.session, request.key = self, info.key
        return request

    # -- objects.Session and metrics.Board -------------------------------------------------------

    def send(
        self,
        request: objects.InferenceRequest,
        response: objects.InferenceResponse | None,
        *,
        final: bool,
    ) -> None:
        """One answer to a request; from any thread."""
        if response is not None and not isinstance(response, objects.InferenceResponse):
            raise objects.TritonModelException(
                f"expected an InferenceResponse, got {type(response).__name__}"
            )
        self._advance(request, response, final=final)
        if request.cancelled:
            return  # nobody waits for it
        outbox = Outbox()
        try:
            self._tell(_answer(request.key, response, outbox, final=final), outbox)
        except Exception as error:  # it cannot be sent, and whoever waits must not for ever
            request.closed = True
            self._tell(Answer(request.key, None, self._said(error), True, codes.INTERNAL))
            raise
        finally:
            with self._changed:
                request.told = True
                self._changed.notify_all()

    def _advance(
        self,
        request: objects.InferenceRequest,
        response: objects.InferenceResponse | None,
        *,
        final: bool,
    ) -> None:
        """Notes that a request is being answered. Raises TritonModelException: it cannot be."""
        with self._changed:
            if not self.decoupled:
                if response is not None and request.answered:
                    raise objects.TritonModelException(
                        "Unable to send response. Non-decoupled model cannot send more than one "
                        "response."
                    )
                if response is None and final and not request.answered:
                    raise objects.TritonModelException(
                        "Unable to send response. Non-decoupled model cannot send complete final "
                        "before sending a response."
                    )
            if request.closed:
                raise objects.TritonModelException(
                    "Unable to send response. Response sender has been closed."
                )
            request.closed = final
            request.answered = request.answered or response is not None
            if final:
                self._open.pop(request.key, None)

    def call(self, request: objects.InferenceRequest, each: Each) -> Callable[[], None]:
        """Asks another model."""
        return self._calls.ask(request, each)

    def is_ready(self, model: str, version: str) -> bool:
        """Whether another model can be asked."""
        return self._calls.is_ready(model, version)

    def changed(self, metric: metrics.Metric) -> None:
        """A metric has another value."""
        with self._changed:
            self._unshown[metric] = None
            if self._executing or self._line is None:
                return  # it will be told with the end of it
            unshown = self._take_unshown()
        for measured in unshown:
            self._tell(measured)

    def _take_unshown(self) -> tuple[Measured, ...]:
        unshown, self._unshown = self._unshown, {}
        return tuple(metric.measured() for metric in unshown)

    def _over(self) -> tuple[Measured, ...]:
        with self._changed:
            self._executing = False
            return self._take_unshown()

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
            pass  # the server is gone; so is whoever wanted to know

    def _receive(self, *, wait: bool) -> _Batch | None:
        """Reads one message; what is to be executed now, if that is what it says."""
        line = self._line
        assert line is not None
        try:
            received = line.receive(wait=wait)
        except Disconnected:
            self._end()
            return None
        if received is None:
            return None
        message, buffer = received
        if isinstance(message, Execute):
            batch = [self._request(info, buffer) for info in message.requests]
            with self._changed:
                self._open.update((request.key, request) for request in batch)
            return batch
        if isinstance(message, Cancel):
            self._cancel(message.key)
        else:
            self._calls.on_answer(message, buffer)
        return None

    def _end(self) -> None:
        """The server has hung up: whoever waits for it is told so."""
        self._gone = True
        if self._turns is not None:
            self._turns.end()
        with self._changed:
            left = list(self._open)
        for key in left:
            self._cancel(key)
        self._calls.end()

    def _cancel(self, key: int) -> None:
        with self._changed:
            request = self._open.pop(key, None)
            if request is not None:
                request.cancelled = True
                self._changed.notify_all()


def _answer(
    key: int, response: objects.InferenceResponse | None, outbox: Outbox, *, final: bool
) -> Answer:
    if response is None:
        return Answer(key, None, None, final)
    error = response.error()
    if error is not None:
        return Answer(key, None, cut(error.message()), final, error.code())
    outputs = tuple(
        outbox.add(tensor.name(), tensor.datatype, tensor.as_numpy())
        for tensor in response.output_tensors()
    )
    return Answer(key, outputs, None, final, 0, response.parameter_values)


def _spec(told: dict[str, Any], *, rows: bool) -> TensorSpec:
    kind = str(told["data_type"]).removeprefix("TYPE_")
    dims = tuple(int(size) for size in told["dims"])
    return TensorSpec(
        str(told["name"]),
        "BYTES" if kind == "STRING" else kind,
        (DYNAMIC, *dims) if rows else dims,
        bool(told.get("optional", False)),
    )
