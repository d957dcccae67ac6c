"""A Triton model in child processes: a ``runtimes.base.RequestModel``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from headrace.errors import InferenceFailed
from headrace.runtimes.base import (
    Artifact,
    Emit,
    Emitted,
    InstanceConfig,
    ModelRequest,
    ShapePolicy,
)
from headrace.runtimes.host import Host
from headrace.runtimes.python.child import Child, ChildSpec
from headrace.runtimes.python.options import PythonOptions
from headrace.runtimes.python.pinned import Place
from headrace.runtimes.python.supervisor import Supervisor
from headrace.runtimes.python.triton.peer import Peer
from headrace.runtimes.python.triton.watch import Watch
from headrace.runtimes.python.triton_start import start_of
from headrace.types import TensorSpec

PATIENCE_S = 60.0
"""How long a request that is made up, of a warm-up, may take after ``execute`` has returned."""


class TritonModel:
    """``concurrency`` children with one ``TritonPythonModel`` each."""

    may_run_inline = False
    takes_requests = True

    def __init__(self, artifact: Artifact, options: PythonOptions, config: InstanceConfig) -> None:
        spec = ChildSpec(
            artifact.name,
            artifact.path.absolute(),
            options,
            config.threads,
            triton=start_of(artifact, config.concurrency),
        )
        self._name = artifact.name
        self.on_event: Callable[[str], None] | None = None
        self._supervisor = Supervisor(spec, children=config.concurrency, notify=self._tell)
        self._pool = self._supervisor.pool
        started = self._supervisor.start()
        self.inputs = started.inputs
        self.outputs = started.outputs
        self.max_batch_size = started.max_batch_size
        self.decoupled = started.decoupled
        self.concurrency = config.concurrency
        self.shape_policy = ShapePolicy()
        self._host: Host | None = None
        self._lock = threading.Lock()
        self._peers: dict[Child, Peer] = {}
        self._watch = Watch(f"headrace-watch-{artifact.name}")

    def attach(self, host: Host) -> None:
        """The model may call others through ``host``."""
        self._host = host

    def execute(self, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """One request of its own: for warm-up."""
        return execute_one(
            self.execute_requests, inputs, self.outputs, self._name, decoupled=self.decoupled
        )

    def execute_requests(self, requests: Sequence[ModelRequest], emit: Emit) -> None:
        """See :class:`headrace.runtimes.base.RequestModel`."""
        child = self._pool.take()
        try:
            self.peer(child).execute(requests, emit)
        finally:
            self._pool.put(child)

    def cancel(self, key: int) -> None:
        """Nobody waits for this request any more."""
        with self._lock:
            peers = list(self._peers.values())
        for peer in peers:
            if peer.cancel(key):
                return

    def instance(self, index: int) -> PinnedTriton:
        """The child of one place; see :class:`headrace.runtimes.base.PinnedModel`."""
        return PinnedTriton(self, Place(self._pool, index, self._name), self._name)

    def peer(self, child: Child) -> Peer:
        """The conversation with a child that was taken from the pool."""
        with self._lock:
            found = self._peers.get(child)
            if found is None:
                for gone in [each for each, peer in self._peers.items() if peer.gone]:
                    del self._peers[gone]
                found = self._peers[child] = Peer(
                    child, self.inputs, self.outputs, lambda: self._host, self._watch
                )
            return found

    @property
    def serving(self) -> bool:
        """See :class:`headrace.runtimes.base.LoadedModel`."""
        return self._pool.serving

    def interrupt(self, thread: int, reason: str) -> None:
        """See :class:`headrace.runtimes.base.LoadedModel`. Ends the child."""
        self._pool.interrupt(thread, reason)

    def process_ids(self) -> tuple[int, ...]:
        """The children alive now; see :class:`headrace.runtimes.base.LoadedModel`."""
        return self._supervisor.process_ids()

    def _tell(self, event: str) -> None:
        if self.on_event is not None:
            self.on_event(event)

    def unload(self) -> None:
        """Ends the children, after their ``finalize``."""
        self._supervisor.stop()
        with self._lock:
            peers = list(self._peers.values())
            self._peers.clear()
        self._watch.close()
        for peer in peers:
            peer.close()


class PinnedTriton:
    """One child of a :class:`TritonModel`."""

    may_run_inline = False
    takes_requests = True
    concurrency = 1

    def __init__(self, model: TritonModel, place: Place, name: str) -> None:
        self.inputs: tuple[TensorSpec, ...] = model.inputs
        self.outputs: tuple[TensorSpec, ...] = model.outputs
        self.shape_policy: ShapePolicy = model.shape_policy
        self.decoupled = model.decoupled
        self.cancel = model.cancel
        self._model = model
        self._place = place
        self._name = name

    @property
    def lost(self) -> bool:
        """See :class:`headrace.runtimes.base.PinnedInstance`."""
        return self._place.lost

    def renew(self) -> None:
        """See :class:`headrace.runtimes.base.PinnedInstance`."""
        self._place.renew()

    def execute(self, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """One request of its own."""
        return execute_one(
            self.execute_requests, inputs, self.outputs, self._name, decoupled=self.decoupled
        )

    def execute_requests(self, requests: Sequence[ModelRequest], emit: Emit) -> None:
        """See :class:`headrace.runtimes.base.RequestModel`."""
        with self._lent() as child:
            self._model.peer(child).execute(requests, emit)

    def unload(self) -> None:
        """Nothing: the model it is of is unloaded."""

    @contextmanager
    def _lent(self) -> Iterator[Child]:
        with self._place.child() as child:
            yield child


def execute_one(
    execute_requests: Callable[[Sequence[ModelRequest], Emit], None],
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[TensorSpec],
    name: str,
    *,
    decoupled: bool,
) -> list[np.ndarray]:
    """Runs one request for its arrays; of several answers the first.

    Raises:
        InferenceFailed: the model failed, or left an output out.
    """
    answers: list[object] = []
    over = threading.Event()

    def emit(_key: int, answer: Emitted, final: bool) -> None:
        answers.append(answer)
        if final:
            over.set()

    execute_requests([ModelRequest(-1, inputs)], emit)
    if decoupled and not over.wait(PATIENCE_S):
        raise InferenceFailed(f"model '{name}' did not end its answers", model=name)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, list) and all(array is not None for array in answer):
            return answer
    names = [spec.name for spec in outputs]
    raise InferenceFailed(f"model '{name}' did not answer with all of {names}", model=name)
