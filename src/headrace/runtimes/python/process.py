"""A model in child processes, one for each batch that may run at one time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.runtimes.base import Artifact, InstanceConfig, ShapePolicy
from headrace.runtimes.python.child import ChildSpec
from headrace.runtimes.python.options import PythonOptions
from headrace.runtimes.python.pinned import PinnedProcess, Place
from headrace.runtimes.python.supervisor import Supervisor


class ProcessModel:
    """A :class:`headrace.runtimes.base.LoadedModel` whose code runs elsewhere.

    Raises:
        ModelLoadError: one of the children could not load the model.
    """

    may_run_inline = False
    """However quick it was when it was measured: ``execute`` waits for another process, which
    may be slow, stuck or starting again, and an event loop that waits serves nobody."""

    def __init__(self, artifact: Artifact, options: PythonOptions, config: InstanceConfig) -> None:
        spec = ChildSpec(artifact.name, artifact.path.absolute(), options, config.threads)
        self._name = artifact.name
        self._supervisor = Supervisor(spec, children=config.concurrency)
        self._pool = self._supervisor.pool
        started = self._supervisor.start()
        self.inputs = started.inputs
        self.outputs = started.outputs
        self.concurrency = config.concurrency
        self.shape_policy = ShapePolicy()

    def execute(self, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """See :meth:`headrace.runtimes.base.LoadedModel.execute`.

        Raises:
            InferenceFailed: as documented there, with what ``predict`` raised.
            InstanceDied: the child that ran the batch died; or none is alive, and none
                will be soon (see :mod:`.pool` for how long a batch waits).
        """
        child = self._pool.take()
        try:
            return child.call(inputs)
        finally:
            self._pool.put(child)

    def instance(self, index: int) -> PinnedProcess:
        """The child of one place; see :class:`headrace.runtimes.base.PinnedModel`."""
        return PinnedProcess(self, Place(self._pool, index, self._name))

    def unload(self) -> None:
        """Ends the children; with SIGKILL those that have not left after six seconds."""
        self._supervisor.stop()
