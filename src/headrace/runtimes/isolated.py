"""Any runtime's model in child processes: a crash costs one batch, unloading returns it all.

What a library allocates, threads it starts, files it maps: the kernel takes them back from a
process that has ended, whatever the library does. And where it has an error of its own, the
server and every other model go on. The price is a hop to another process and a copy each way.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.errors import ModelLoadError
from headrace.runtimes import registry
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.runtimes.python.child import ChildSpec
from headrace.runtimes.python.native_start import native_start
from headrace.runtimes.python.options import PythonOptions
from headrace.runtimes.python.process import InProcesses

CHILD_OPTIONS = frozenset(
    {"start_timeout_s", "restart_delay_s", "max_shared_bytes", "max_memory_bytes", "environment"}
)
"""``runtime_options`` that are ours here, as they are for Python models; see ``PythonOptions``.
The runtime is given the others."""


class IsolatedModel(InProcesses):
    """A model that ``config.concurrency`` children have loaded, each for itself.

    A child has its own copy of the weights and runs one batch at a time with
    ``config.threads``; ``memory_bytes``, if not 0, is what it may allocate. ``axis_names`` are
    those of the model in the child, {} if it has none.

    Raises:
        ModelLoadError: the runtime's, from the child, with its hint; or an option is wrong.
        MissingExtra, ConfigError: there is no such runtime here.
    """

    def __init__(
        self, runtime: str, artifact: Artifact, config: InstanceConfig, memory_bytes: int = 0
    ) -> None:
        if not registry.installed(runtime):
            registry.create(runtime)  # says what it needs
        options, left = _ours(artifact)
        told = native_start(runtime, msgspec.structs.replace(artifact, options=left), config)
        spec = ChildSpec(
            artifact.name,
            artifact.path.absolute(),
            options,
            config.threads,
            native=told,
            memory_bytes=memory_bytes,
        )
        super().__init__(spec, children=config.concurrency)
        self.axis_names = self._started.axis_names


def _ours(artifact: Artifact) -> tuple[PythonOptions, dict[str, Any]]:
    """What is for the children, and what is for the runtime."""
    given = dict(artifact.options)
    ours = {name: given.pop(name) for name in CHILD_OPTIONS & given.keys()}
    try:
        return msgspec.convert(ours, PythonOptions), given
    except msgspec.ValidationError as error:
        raise ModelLoadError(
            f"runtime_options of {artifact.name!r}: {error}",
            hint=f"of its processes these can be said: {', '.join(sorted(CHILD_OPTIONS))}",
            model=artifact.name,
        ) from error
