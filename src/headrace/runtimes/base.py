"""The one interface between the engine and whatever computes: load, execute, unload.

A runtime knows nothing of requests, queues, tasks or protocols. It is given arrays and
gives arrays back, blocking. ``headrace.testing.runtime_kit`` is the conformance kit that
every implementation must pass; ``headrace.testing.FakeRuntime`` is the fake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from headrace.config import ModelConfig
from headrace.errors import HeadraceError
from headrace.types import TensorSpec


class CompiledCache(Protocol):
    """Folders on disk for what a library makes of a model: ``headrace.artifacts.ArtifactCache``.

    An entry is complete or absent, and nobody writes to it once it is there.
    """

    def find(self, key: str) -> Path | None:
        """The folder of ``key``, or None. Cheap."""
        ...

    def entry(self, key: str, build: Callable[[Path], None]) -> Path:
        """The folder of ``key``; ``build`` fills an empty one where there is none. Blocks.

        Raises:
            OSError: it cannot be written. Whatever ``build`` raises.
        """
        ...

    def discard(self, key: str) -> None:
        """Removes what turned out to be no good."""
        ...


class Artifact(msgspec.Struct, frozen=True):
    """What a runtime is asked to load.

    ``path`` is the model file (``model.onnx``, ``model.xml``, ``model.py``); ``folder``
    is the version's folder, which nothing the model refers to may leave. ``digest`` names
    the content (``sha256:…``) or is "" where it was not computed. ``options`` are the
    model's own runtime options, as configured; ``config`` is all of its configuration.
    ``compiled`` is where a runtime may keep what loading computes, under keys that it makes;
    None: nowhere. ``may_run_code``: a runtime that runs code of the model's may load it; checked
    by ``registry.load``.
    """

    name: str
    version: str
    path: Path
    folder: Path
    format: str
    digest: str = ""
    options: Mapping[str, Any] = {}
    config: ModelConfig = ModelConfig()
    compiled: CompiledCache | None = None
    may_run_code: bool = False


class InstanceConfig(msgspec.Struct, frozen=True):
    """How to load it. ``threads`` per execution; ``concurrency``: executions at one time."""

    threads: int = 1
    concurrency: int = 1


class ShapePolicy(msgspec.Struct, frozen=True):
    """Which batch shapes this runtime likes.

    Runtimes that compile per shape keep memory for every shape they have met, so the
    engine rounds rows and lengths up to these multiples (1 = leave as it is) where padding
    is safe. Rows are rounded to ``row_multiple`` only when there is more than one.
    """

    row_multiple: int = 1
    length_multiple: int = 1


class LoadedModel(Protocol):
    """A model in memory.

    ``inputs`` and ``outputs`` are the model's own signature in its own order;
    ``concurrency`` is how many threads may be inside ``execute`` at one time. A model whose
    ``execute`` may wait for something other than the processor (a child process) says so with
    an attribute ``may_run_inline = False``: it is then never run on the event loop.

    An optional method ``keep_compiled()`` writes what loading computed to the artefact's
    ``compiled``, if it is not there: called at most once, by who keeps the model, from any thread.
    It blocks about as long as loading did, does not hinder ``execute`` or ``unload`` meanwhile,
    and raises nothing.

    An optional method ``may_be_endless()`` says whether an input may make an execution run for
    ever: it is then never run on the event loop either. It may read a file.

    An optional method ``interrupt(thread, reason)`` ends the execution that the thread of this
    number (``threading.get_ident``) is in, as a failure, soon; it does not wait, and does nothing
    where that thread is in none. Any thread.

    A model in child processes has three names more. ``serving``: whether one of them is alive
    and has loaded the model. ``on_event``, None until somebody sets it: is
    called with a line for each child that dies or serves again, on a thread of the model's, and
    must not wait. ``process_ids()``: the children that are alive.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    concurrency: int
    shape_policy: ShapePolicy

    def execute(self, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """Runs one batch. Blocks.

        Args:
            inputs: one array for each of ``self.inputs``, same order, dtypes as in
                ``headrace.types``; None for an optional input that was left out.

        Returns:
            One array for each of ``self.outputs``, same order, owned by the caller.

        Raises:
            RequestError: the inputs are the caller's mistake, found before the model ran. It does
                not count against the model, and others of the batch are run again.
            InferenceFailed: the model refused or failed; it can be called again.
            InstanceDied: the process that held it is gone; it may be coming back.
        """
        ...

    def unload(self) -> None:
        """Gives everything back. Called once, with no ``execute`` under way."""
        ...


class ModelRequest(msgspec.Struct, eq=False):
    """One request, for a model that is given requests and not rows.

    ``key`` names it in ``emit`` and ``cancel``. ``outputs`` None: all are wanted.
    """

    key: int
    arrays: Sequence[np.ndarray | None]
    id: str = ""
    outputs: tuple[str, ...] | None = None
    parameters: Mapping[str, Any] = {}
    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    priority: int = 0
    timeout_ns: int = 0


class Outputs(list["np.ndarray | None"]):
    """The arrays of one answer that has parameters too."""

    def __init__(self, arrays: Sequence[np.ndarray | None], parameters: dict[str, Any]) -> None:
        super().__init__(arrays)
        self.parameters = parameters


Emitted = Sequence[np.ndarray | None] | HeadraceError | None
"""One answer: an array for each output of the signature (None where it has none this time),
perhaps as :class:`Outputs`; or an error, or nothing, where only the end is told."""

Emit = Callable[[int, Emitted, bool], None]
"""``emit(key, answer, final)``; any thread; exactly one call for each key has ``final``."""


class RequestModel(LoadedModel, Protocol):
    """A model that is given the requests of a batch one beside another, unconcatenated.

    ``takes_requests`` is True. Unless ``decoupled``, every request has had its one final answer
    when ``execute_requests`` returns; otherwise answers may come later, and there may be
    several or none before the final one. With ``sequence.iterative`` a request that has had no
    final answer by then is given to the model again, under another ``key``.

    A model that finds out its own signature may say with an attribute ``max_batch_size`` whether
    the first axis counts rows (above 0) and how many it takes at most, where its configuration
    does not.

    Two optional methods: ``cancel(key)`` (nobody waits for this one any more, while it runs or
    later; any thread; does not wait) and ``attach(host)`` (called once, before the first
    execution: through ``host``, a ``runtimes.host.Host``, the model may call other models).
    """

    takes_requests: bool
    decoupled: bool

    def execute_requests(self, requests: Sequence[ModelRequest], emit: Emit) -> None:
        """Runs one batch. Blocks.

        Raises:
            InferenceFailed, InstanceDied: nothing was, or will be, emitted for any of them.
        """
        ...


class PinnedInstance(LoadedModel, Protocol):
    """One instance of a model, which keeps what it is told from one execution to the next."""

    @property
    def lost(self) -> bool:
        """Whether what it kept since :meth:`renew` is gone. Cheap; any thread."""
        ...

    def renew(self) -> None:
        """Nothing that it kept is expected of it any more. Until this is called, an execution
        that finds it gone raises InstanceDied instead of beginning from nothing."""
        ...


class PinnedModel(LoadedModel, Protocol):
    """A model whose instances are told apart: what a sequence needs.

    ``concurrency`` instances, each with a state of its own (a child process).
    """

    def instance(self, index: int) -> PinnedInstance:
        """The instance alone, as a model of concurrency 1 that is never unloaded by itself.

        Its ``execute`` takes one caller at a time, and whoever uses instances does not call
        ``execute`` of the model itself.
        """
        ...


class Runtime(Protocol):
    """A way to run models of some formats. Constructed without arguments; cheap.

    A runtime that treats every model as data, and runs no code of the model's, says so with an
    attribute ``runs_code = False``. Without it, models from stores and load requests are kept
    from it unless ``server.code_from`` is "anywhere".
    """

    name: str
    formats: tuple[str, ...]

    def load(self, artifact: Artifact, config: InstanceConfig) -> LoadedModel:
        """Loads it. Blocks, for seconds perhaps.

        Raises:
            ModelLoadError: the file is not what it claims, or needs what is not there.
            MissingExtra: the library behind this runtime is not installed.
        """
        ...
