"""What a child is told that holds a model of another runtime: ONNX Runtime's, a plugin's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from headrace.config import ModelConfig
from headrace.runtimes.base import Artifact, InstanceConfig


class NativeStart(msgspec.Struct, array_like=True):
    """The name of the runtime and its ``Artifact``, but for what ``Start`` says already.

    ``threads``: per execution, of which a child has one at a time.
    """

    runtime: str
    version: str
    folder: str
    format: str
    digest: str
    options: dict[str, Any]
    config: ModelConfig
    threads: int
    may_run_code: bool

    def artifact(self, name: str, path: str) -> Artifact:
        """The artifact again, in the child."""
        return Artifact(
            name,
            self.version,
            Path(path),
            Path(self.folder),
            self.format,
            self.digest,
            self.options,
            self.config,
            may_run_code=self.may_run_code,
        )


def native_start(runtime: str, artifact: Artifact, config: InstanceConfig) -> NativeStart:
    """What the children of this model are told.

    Without what is the engine's alone: the names of a thousand classes fit no message.
    """
    told = msgspec.structs.replace(artifact.config, task_options={}, warmup=())
    return NativeStart(
        runtime,
        artifact.version,
        str(artifact.folder.absolute()),
        artifact.format,
        artifact.digest,
        dict(artifact.options),
        told,
        config.threads,
        artifact.may_run_code,
    )
