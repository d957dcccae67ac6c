"""A runtime whose every execution the test decides, without sleeping and without luck."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from headrace.errors import InferenceFailed, ModelLoadError
from headrace.runtimes.base import Artifact, InstanceConfig, ShapePolicy
from headrace.types import TensorSpec

Arrays = Sequence[np.ndarray | None]
Compute = Callable[..., Sequence[np.ndarray]]

X = TensorSpec("x", "FP32", (-1, 4))
Y = TensorSpec("y", "FP32", (-1, 4))

_PATIENCE_S = 30.0
"""A test that waits for so long has failed; far above what a busy machine needs."""


class Gate:
    """Stops who passes through, and tells how many have come."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self._arrived = 0

    def enter(self) -> None:
        """Counts the caller, and keeps it until the gate is open."""
        with self._changed:
            self._arrived += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._open, _PATIENCE_S):
                raise AssertionError(f"held for {_PATIENCE_S:.0f} s: who opens the gate?")

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Within the block, everybody who enters waits for its end."""
        with self._changed:
            self._open = False
        try:
            yield
        finally:
            with self._changed:
                self._open = True
                self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Returns once ``count`` have entered, since the beginning.

        Raises:
            AssertionError: they did not come.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._arrived >= count, _PATIENCE_S):
                raise AssertionError(f"expected {count} to arrive, {self._arrived} did")


class FakeModel:
    """A :class:`headrace.runtimes.base.LoadedModel` that does what the test says.

    By default ``x`` FP32 [-1,4] is doubled into ``y``. Breaking the contract (more threads
    than ``concurrency``, use after ``unload``, ``unload`` under way) raises AssertionError
    and is kept in ``violations``, because an engine may turn what is raised into an answer.

    Args:
        compute: called with the input arrays (None for one left out), returns the outputs.

    Attributes:
        calls: the inputs of every execution, copied, in the order they began.
        most_running: the largest number of executions that ran at one time.
        gate: ``with model.gate.closed():`` holds executions back, ``model.gate.wait_for(n)``
            waits until n have begun.
    """

    def __init__(
        self,
        compute: Compute = lambda x: [x * 2],
        *,
        inputs: Sequence[TensorSpec] = (X,),
        outputs: Sequence[TensorSpec] = (Y,),
        concurrency: int = 1,
        shape_policy: ShapePolicy | None = None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.concurrency = concurrency
        self.shape_policy = shape_policy or ShapePolicy()
        self.compute = compute
        self.calls: list[tuple[np.ndarray | None, ...]] = []
        self.violations: list[str] = []
        self.most_running = 0
        self.unloaded = False
        self.gate = Gate()
        self._lock = threading.Lock()
        self._running = 0
        self._failures: list[Exception] = []
        self._refuses: Callable[[Arrays], bool] = lambda _: False

    def fail_next(self, error: Exception | None = None, *, times: int = 1) -> None:
        """The next ``times`` executions raise ``error`` (default: InferenceFailed)."""
        self._failures += [error or InferenceFailed("told to fail")] * times

    def fail_on(self, refuses: Callable[[Arrays], bool]) -> None:
        """From now on, executions whose inputs ``refuses`` says True of raise InferenceFailed."""
        self._refuses = refuses

    def execute(self, inputs: Arrays) -> Sequence[np.ndarray]:
        """See :class:`headrace.runtimes.base.LoadedModel`."""
        failure = self._begin(inputs)
        try:
            self.gate.enter()
            if failure is not None:
                raise failure
            if self._refuses(inputs):
                raise InferenceFailed("told to fail on these inputs")
            return self.compute(*inputs)
        finally:
            with self._lock:
                self._running -= 1

    def unload(self) -> None:
        """See :class:`headrace.runtimes.base.LoadedModel`."""
        with self._lock:
            if self.unloaded:
                self._violation("unloaded twice")
            if self._running:
                self._violation(f"unloaded with {self._running} executions under way")
            self.unloaded = True

    def _begin(self, inputs: Arrays) -> Exception | None:
        with self._lock:
            if self.unloaded:
                self._violation("executed after it was unloaded")
            if self._running >= self.concurrency:
                self._violation(f"more than {self.concurrency} executions at one time")
            if len(inputs) != len(self.inputs):
                self._violation(f"{len(inputs)} inputs instead of {len(self.inputs)}")
            self.calls.append(tuple(None if array is None else array.copy() for array in inputs))
            self._running += 1
            self.most_running = max(self.most_running, self._running)
            return self._failures.pop(0) if self._failures else None

    def _violation(self, what: str) -> None:
        self.violations.append(what)
        raise AssertionError(what)


class FakeRuntime:
    """A :class:`headrace.runtimes.base.Runtime` for the format ``fake``.

    Args:
        models: what ``load`` returns, by the artifact's name; any other name gets a new
            :class:`FakeModel` with the concurrency that was asked for.

    Attributes:
        loads: the artifact and configuration of every load, in order.
        gate: holds loads back, as :attr:`FakeModel.gate` does executions.
    """

    name = "fake"
    formats: tuple[str, ...] = ("fake",)

    def __init__(self, models: Mapping[str, FakeModel] | None = None) -> None:
        self.loads: list[tuple[Artifact, InstanceConfig]] = []
        self.gate = Gate()
        self._models = dict(models or {})
        self._failures: list[Exception] = []

    def fail_next(self, error: Exception | None = None, *, times: int = 1) -> None:
        """The next ``times`` loads raise ``error`` (default: ModelLoadError)."""
        self._failures += [error or ModelLoadError("told to fail")] * times

    def load(self, artifact: Artifact, config: InstanceConfig) -> FakeModel:
        """See :class:`headrace.runtimes.base.Runtime`."""
        self.loads.append((artifact, config))
        self.gate.enter()
        if self._failures:
            raise self._failures.pop(0)
        return self._models.get(artifact.name) or FakeModel(concurrency=config.concurrency)
