"""What a repository knows about its models, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from headrace.config import ModelConfig
from headrace.errors import OperatorError, detached


class ModelSource(msgspec.Struct, frozen=True):
    """One servable version, found on disk.

    ``format``: ``onnx``, ``openvino``, ``python``, ``null``, or ``ensemble``, whose ``path`` is
    the configuration that names its steps. For the others ``path`` is the file to load,
    ``folder`` what it may not leave. ``task`` is the detected task ("tensor" where nothing
    suggests another) and ``task_options`` what detection found out for it (tokenizer path,
    pooling, labels, columns). ``config`` is the merge of defaults, the folder's own
    ``model.toml`` and the server's configuration, strongest last.
    """

    name: str
    version: str
    format: str
    path: Path
    folder: Path
    task: str = "tensor"
    task_options: dict[str, Any] = {}
    config: ModelConfig = ModelConfig()
    digest: str = ""
    notes: tuple[str, ...] = ()
    """What the model's ``config.pbtxt`` says without effect, a sentence each."""

    may_run_code: bool = False
    """Whether ``server.code_from`` lets the server run ``path`` if that is code."""

    try_first: bool = False
    """Whether it is opened in a child process before the server opens it, because it came from a
    store or with a load request."""


class Problem(msgspec.Struct, frozen=True):
    """One model, or one version of it, that cannot be served, and why.

    ``version`` is "" where the whole model is concerned.
    """

    name: str
    version: str
    path: Path
    error: OperatorError

    def __post_init__(self) -> None:
        """Kept for long, so without its traceback, which holds the files of an upload."""
        detached(self.error)

    @property
    def reason(self) -> str:
        """The error as one line, its hint included."""
        return (
            f"{self.error.message} ({self.error.hint})" if self.error.hint else self.error.message
        )


class ScanResult(msgspec.Struct, frozen=True):
    """What was found.

    Attributes:
        models: every servable version, by name, newest version first.
        problems: what was meant to be a model and cannot be served.
        unused: names in ``Config.models`` that match nothing found: perhaps misspelt.
        uploaded_to: the temporary folder with the files that came with a load request; None:
            there were none. See ``repository.control.discard``.
    """

    models: tuple[ModelSource, ...]
    problems: tuple[Problem, ...] = ()
    unused: tuple[str, ...] = ()
    uploaded_to: Path | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the models' ``config.pbtxt`` files say without effect, each once."""
        return tuple(dict.fromkeys(note for model in self.models for note in model.notes))
