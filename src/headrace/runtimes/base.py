"""The one interface between the engine and whatever computes: load, execute, unload.

A runtime knows nothing of requests, queues, tasks or protocols. It is given arrays and
gives arrays back, blocking. ``headrace.testing.runtime_kit`` is the conformance kit that
every implementation must pass; ``headrace.testing.FakeRuntime`` is the fake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from headrace.types import TensorSpec


class Artifact(msgspec.Struct, frozen=True):
    """What a runtime is asked to load.

    ``path`` is the model file (``model.onnx``, ``model.xml``, ``model.py``); ``folder``
    is the version's folder, which nothing the model refers to may leave. ``digest`` names
    the content (``sha256:…``) or is "" where it was not computed. ``options`` are the
    model's own runtime options, as configured.
    """

    name: str
    version: str
    path: Path
    folder: Path
    format: str
    digest: str = ""
    options: Mapping[str, Any] = {}


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
            InferenceFailed: the model refused or failed; it can be called again.
            InstanceDied: the process that held it is gone; it may be coming back.
        """
        ...

    def unload(self) -> None:
        """Gives everything back. Called once, with no ``execute`` under way."""
        ...


class Runtime(Protocol):
    """A way to run models of some formats. Constructed without arguments; cheap."""

    name: str
    formats: tuple[str, ...]

    def load(self, artifact: Artifact, config: InstanceConfig) -> LoadedModel:
        """Loads it. Blocks, for seconds perhaps.

        Raises:
            ModelLoadError: the file is not what it claims, or needs what is not there.
            MissingExtra: the library behind this runtime is not installed.
        """
        ...
