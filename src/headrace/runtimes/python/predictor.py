"""One object that answers batches: the class, function or object of a model file.

The same code runs inside the server (``isolation = "thread"``) and in a child process.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from headrace.errors import InferenceFailed, ModelLoadError
from headrace.runtimes.python.loader import (
    describe,
    find_entry,
    forget_module,
    line_of,
    load_module,
)
from headrace.runtimes.python.messages import Started
from headrace.runtimes.python.options import PythonOptions
from headrace.runtimes.python.signature import Signature, read_signature
from headrace.runtimes.python.values import rows_of, to_arguments, to_outputs

_Result = TypeVar("_Result")


class ModelFile:
    """A loaded ``model.py``: makes as many independent predictors as are asked for.

    Args:
        path: the model file.
        model: name of the model.
        options: which object it is, and what overrides its hints.

    Raises:
        ModelLoadError: see :func:`load_module`, :func:`find_entry`, :func:`read_signature`.
    """

    def __init__(self, path: Path, *, model: str, options: PythonOptions) -> None:
        self.path = path.absolute()
        self._options = options
        self._module: ModuleType = load_module(self.path, model)
        self._coroutines = CoroutineThread()
        self._shared_is_loaded = False
        try:
            self._entry = find_entry(self._module, options.entry)
        except ModelLoadError:
            self.close()
            raise

    def make_predictor(self) -> Predictor:
        """A new object of the class, its ``load`` done.

        Where the entry is no class but a function or an object, all predictors share it.

        Raises:
            ModelLoadError: it cannot be made, ``load`` raised, or the hints are not clear.
        """
        target = self._entry
        is_new = inspect.isclass(target)
        if is_new:
            target = self._run(target, f"{target.__name__}()")
        function = getattr(target, "predict", target)
        if not callable(function):
            raise ModelLoadError(
                f"{self._options.entry!r} in {self.path} is a {type(target).__name__} without a "
                "predict method",
                hint="runtime_options.entry names a class, a function, or an object with predict",
            )
        options = self._options
        try:
            signature = read_signature(function, inputs=options.inputs, outputs=options.outputs)
        except ModelLoadError as error:
            raise ModelLoadError(f"{self.path}: {error.message}", hint=error.hint) from None
        load = getattr(target, "load", None)
        if function is not target and callable(load) and (is_new or not self._shared_is_loaded):
            self._run(load, f"{type(target).__name__}.load()")
            self._shared_is_loaded = not is_new
        return Predictor(function, signature, path=self.path, coroutines=self._coroutines)

    def close(self) -> None:
        """Forgets the module and ends the thread of its coroutines."""
        self._coroutines.close()
        forget_module(self._module)

    def _run(self, function: Callable[[], Any], what: str) -> Any:
        try:
            return finished(function(), self._coroutines)
        except (Exception, SystemExit) as error:
            raise ModelLoadError(
                f"{what} raised {describe(error, self.path)}",
                hint="the traceback is in the log",
                line=line_of(error, self.path),
            ) from error


class Predictor:
    """Calls ``predict`` with one batch after the other. Not for two threads at once."""

    def __init__(
        self,
        function: Callable[..., Any],
        signature: Signature,
        *,
        path: Path,
        coroutines: CoroutineThread,
    ) -> None:
        self.signature = signature
        self._function = function
        self._path = path
        self._coroutines = coroutines

    def __call__(self, arrays: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Runs one batch.

        Args:
            arrays: one for each input, None for an optional one that was left out.

        Returns:
            One array for each output, in any memory order; it may be one that the model
            keeps, so copy it before the next call.

        Raises:
            InvalidRequest: the arrays are not what ``predict`` takes; it was not called.
            InferenceFailed: ``predict`` raised (it is the ``__cause__``), or returned what
                its signature does not say.
            SystemExit: ``predict`` called ``sys.exit``.
        """
        signature = self.signature
        keywords = to_arguments(signature.arguments, arrays)
        try:
            value = finished(self._function(**keywords), self._coroutines)
        except Exception as error:  # an author may raise anything
            raise InferenceFailed(
                f"predict raised {describe(error, self._path)}",
                exception=type(error).__name__,
                line=line_of(error, self._path),
            ) from error
        return to_outputs(signature, value, rows_of(arrays))


class OneOfFile:
    """A model file and the one predictor that a child process makes of it."""

    def __init__(self, path: Path, *, model: str, options: PythonOptions) -> None:
        self._file = ModelFile(path, model=model, options=options)
        self._predictor = self._file.make_predictor()

    def started(self, next_segment: int) -> Started:
        """What the server is told of it."""
        signature = self._predictor.signature
        return Started(signature.inputs, signature.outputs, next_segment)

    def __call__(self, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """One batch; see :class:`Predictor`."""
        return self._predictor(inputs)

    def close(self) -> None:
        """Forgets the module."""
        self._file.close()


class CoroutineThread:
    """Runs coroutines on an event loop that lives as long as the model.

    A loop of its own thread, because the caller's thread may have a running loop already,
    and because what a model starts in the background (a connection pool) should go on
    between two batches.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Waits for the coroutine's result, from any thread but the loop's own."""
        return asyncio.run_coroutine_threadsafe(_guarded(coroutine), self._started()).result()

    def start(self, coroutine: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        """Does not wait for it."""
        return asyncio.run_coroutine_threadsafe(_guarded(coroutine), self._started())

    def close(self) -> None:
        """Cancels what still runs and ends the thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="headrace-model-coroutines", daemon=True
                )
                self._thread.start()
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    # At its end the runner cancels what is left, ends asynchronous generators, closes the loop.
    with asyncio.Runner(loop_factory=lambda: loop):
        while True:
            try:
                loop.run_forever()
            except SystemExit:
                continue  # of a task in the background; asyncio reports it, the others go on
            return


class _Exit(Exception):
    """A ``SystemExit`` on its way through the event loop, which would end with it."""


async def _guarded(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    try:
        return await coroutine
    except SystemExit as error:
        raise _Exit(error) from error


def finished(value: Any, coroutines: CoroutineThread) -> Any:
    """``value``, or its result if it is a coroutine. Raises what that raises."""
    if not inspect.iscoroutine(value):
        return value
    try:
        return coroutines.run(value)
    except _Exit as error:
        raise error.args[0] from None
