"""A model in child processes, one for each batch that may run at one time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from headrace.errors import ModelLoadError
from headrace.machine import can_hold_children
from headrace.runtimes.base import Artifact, InstanceConfig, ShapePolicy
from headrace.runtimes.python.child import ChildSpec
from headrace.runtimes.python.options import PythonOptions
from headrace.runtimes.python.pinned import PinnedProcess, Place
from headrace.runtimes.python.supervisor import Supervisor


class InProcesses:
    """What every model has whose ``execute`` runs in children.

    Raises:
        ModelLoadError: one of the children could not load the model.
    """

    may_run_inline = False
    """However quick it was when it was measured: ``execute`` waits for another process, which
    may be slow, stuck or starting again, and an event loop that waits serves nobody."""

    def __init__(self, spec: ChildSpec, *, children: int) -> None:
        if not can_hold_children():
            raise ModelLoadError(
                'isolation = "process" needs Linux 5.3 or later (pidfd_open, memfd_create)',
                hint='set isolation = "thread"',
            )
        self.on_event: Callable[[str], None] | None = None
        self.concurrency = children
        self._supervisor = Supervisor(spec, children=children, notify=self._tell)
        self._pool = self._supervisor.pool
        self._started = self._supervisor.start()
        self.inputs = self._started.inputs
        self.outputs = self._started.outputs
        self.shape_policy: ShapePolicy = self._started.shape_policy

    def execute(self, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """See :meth:`headrace.runtimes.base.LoadedModel.execute`.

        Raises:
            InferenceFailed: as documented there, with what the model raised.
            InstanceDied: the child that ran the batch died; or none is alive, and none
                will be soon (see :mod:`.pool` for how long a batch waits).
        """
        child = self._pool.take()
        try:
            return child.call(inputs)
        finally:
            self._pool.put(child)

    @property
    def serving(self) -> bool:
        """See :class:`headrace.runtimes.base.LoadedModel`."""
        return self._pool.serving

    def interrupt(self, thread: int, reason: str) -> None:
        """See :class:`headrace.runtimes.base.LoadedModel`. Ends the child."""
        self._pool.interrupt(thread, reason)

    def process_ids(self) -> tuple[int, ...]:
        """The children alive now, so that their memory can be read from ``/proc``."""
        return self._supervisor.process_ids()

    def unload(self) -> None:
        """Ends the children; with SIGKILL those that have not left after six seconds."""
        self._supervisor.stop()

    def _tell(self, event: str) -> None:
        if self.on_event is not None:
            self.on_event(event)


class ProcessModel(InProcesses):
    """A Python model; a :class:`headrace.runtimes.base.LoadedModel` whose code runs elsewhere."""

    def __init__(self, artifact: Artifact, options: PythonOptions, config: InstanceConfig) -> None:
        spec = ChildSpec(artifact.name, artifact.path.absolute(), options, config.threads)
        self._name = artifact.name
        super().__init__(spec, children=config.concurrency)

    def instance(self, index: int) -> PinnedProcess:
        """The child of one place; see :class:`headrace.runtimes.base.PinnedModel`."""
        return PinnedProcess(self, Place(self._pool, index, self._name))
