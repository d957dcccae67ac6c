"""What a repository knows about one version of one model, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from headrace.config import ModelConfig


class ModelSource(msgspec.Struct, frozen=True):
    """One servable version, found on disk.

    ``format``: ``onnx``, ``openvino``, ``python``, ``null``. ``path`` is the file to load,
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
