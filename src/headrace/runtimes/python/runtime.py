"""Loads Python models: in child processes, or in threads of this one."""

from __future__ import annotations

import logging
import queue
from collections.abc import Sequence
from functools import partial

import numpy as np

from headrace.errors import InferenceFailed, ModelLoadError
from headrace.runtimes.base import Artifact, InstanceConfig, LoadedModel, ShapePolicy
from headrace.runtimes.python.options import PythonOptions, isolation_of, parse_options
from headrace.runtimes.python.pinned import PinnedThread
from headrace.runtimes.python.predictor import ModelFile, Predictor
from headrace.runtimes.python.process import ProcessModel
from headrace.runtimes.python.triton.model import TritonModel
from headrace.runtimes.python.triton_start import is_triton_model

_log = logging.getLogger(__name__)


class PythonRuntime:
    """Runs the class or function of a ``model.py``; see the package for what it may say."""

    name = "python"
    formats: tuple[str, ...] = ("python",)

    def load(self, artifact: Artifact, config: InstanceConfig) -> LoadedModel:
        """Loads ``config.concurrency`` copies of the model. Blocks while it imports and loads.

        ``config.threads`` is what OMP_NUM_THREADS and its like say in a child process; it
        has no effect with ``isolation = "thread"``.

        Raises:
            ModelLoadError: an option is wrong, the file is broken, ``load`` raised or took
                too long, or the signature is not clear.
        """
        options = parse_options(artifact.options, model=artifact.name)
        if is_triton_model(artifact.path):
            return TritonModel(artifact, options, config)
        if isolation_of(artifact.options, artifact.config.isolation) == "thread":
            return ThreadModel(artifact, options, concurrency=config.concurrency)
        return ProcessModel(artifact, options, config)


class ThreadModel:
    """A model inside the server; a :class:`headrace.runtimes.base.LoadedModel`.

    Each of its ``concurrency`` slots has an object of its own, so ``predict`` is never
    called on one object by two threads. A plain function, or an object that the module
    made itself, is shared and has to be thread-safe.
    """

    def __init__(self, artifact: Artifact, options: PythonOptions, *, concurrency: int) -> None:
        self.concurrency = concurrency
        self.shape_policy = ShapePolicy()
        self._model = artifact.name
        self._idle: queue.SimpleQueue[Predictor] = queue.SimpleQueue()
        self._predictors: list[Predictor] = []
        try:
            self._file = ModelFile(artifact.path, model=artifact.name, options=options)
            try:
                for _ in range(concurrency):
                    predictor = self._file.make_predictor()
                    self._idle.put(predictor)
                    self._predictors.append(predictor)
            except BaseException:
                self._file.close()
                raise
        except ModelLoadError as error:
            _log.error("model %s: %s", artifact.name, error, exc_info=error.__cause__)
            raise
        self.inputs = predictor.signature.inputs
        self.outputs = predictor.signature.outputs

    def execute(self, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """See :meth:`headrace.runtimes.base.LoadedModel.execute`."""
        predictor = self._idle.get()
        try:
            return self._run(predictor, inputs)
        finally:
            self._idle.put(predictor)

    @staticmethod
    def may_be_endless() -> bool:
        """See :class:`headrace.runtimes.base.LoadedModel`: nothing is known about the code."""
        return True

    def instance(self, index: int) -> PinnedThread:
        """One object; see :class:`headrace.runtimes.base.PinnedModel`."""
        return PinnedThread(self, partial(self._run, self._predictors[index]))

    def _run(self, predictor: Predictor, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        try:
            # Copies, as a child process has them: the model may change and keep what it is
            # given, and may use a buffer that it returned again.
            own = [None if array is None else array.copy() for array in inputs]
            return [array.copy(order="C") for array in predictor(own)]
        except InferenceFailed as error:
            if error.__cause__ is not None:
                _log.error("model %s: %s", self._model, error, exc_info=error.__cause__)
            raise
        except SystemExit as error:
            raise InferenceFailed(
                f"predict called sys.exit({error.code!r})",
                hint="raise an exception instead; only a child process can exit",
                exception="SystemExit",
            ) from error

    def unload(self) -> None:
        """Forgets the module; what other modules keep of it stays."""
        self._predictors.clear()
        while not self._idle.empty():
            self._idle.get()
        self._file.close()
