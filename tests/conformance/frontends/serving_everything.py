"""A repository with a model of every kind that clients are tried with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.testing import onnx_models
from headrace.types import DTYPE_OF
from tests.integration.server_process import ServerProcess, serving
from tests.unit.repository.bert_models import TinyBert

DATATYPES = tuple(DTYPE_OF)


def make_repository(folder: Path) -> Path:
    """``echo_<datatype>`` for each of them, ``mlp``, and ``bert``, which embeds text."""
    models = {f"echo_{name.lower()}": onnx_models.identity(name, ("n", 3)) for name in DATATYPES}
    for name, model in (models | {"mlp": onnx_models.mlp()}).items():
        path = folder / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(model)
    TinyBert().save(folder / "bert")
    return folder


@contextmanager
def serving_everything(folder: Path, *arguments: str) -> Iterator[ServerProcess]:
    """All of it, on a free port."""
    repository = make_repository(folder / "repository")
    env = {"HEADRACE_CACHE_DIR": str(folder / "cache")}
    with serving(repository, "--runtime", "onnxruntime", *arguments, env=env) as server:
        yield server
