"""What the kernel says about the child processes of every kind of model."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import InferenceFailed
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.runtimes.isolated import IsolatedModel
from headrace.runtimes.python.confine import (
    MAX_OPEN_FILES,
    OOM_SCORE,
    environment_for,
    hidden_names,
)
from headrace.testing import onnx_models
from tests.unit.runtimes import python_models
from tests.unit.runtimes.triton import models as triton_models

MIB = 1 << 20
PREDICT = "def predict(x: Table) -> Table:\n    return x\n"

SECRETS = {
    "HEADRACE_SERVER__SHARED_CACHE__URL": "redis://cache",
    "AWS_SECRET_ACCESS_KEY": "x",
    "HF_TOKEN": "x",
    "DB_PASSWORD": "x",
    "openai_api_key": "x",
    "CACHE_URL": "redis://user:pass@host:6379/0",
}
HARMLESS = {
    "PATH": "/bin",
    "TOKENIZERS_PARALLELISM": "false",
    "KEYBOARD": "x",
    "URL": "http://h:1/",
}


@contextmanager
def child_of(kind: str, folder: Path):
    """The directory in /proc of the one child of a model of this kind."""
    if kind == "native":
        path = folder / "model.onnx"
        path.write_bytes(onnx_models.identity("FP32"))
        artifact = Artifact("m", "1", path, folder, "onnx")
        model = IsolatedModel("onnxruntime", artifact, InstanceConfig())
    elif kind == "triton":
        model = triton_models.load(folder, triton_models.SCRIPT)
    else:
        model = python_models.load(python_models.write_model(folder, PREDICT))
    try:
        (pid,) = model.process_ids()
        yield Path(f"/proc/{pid}")
    finally:
        model.unload()


@pytest.mark.parametrize("kind", ["python", "triton", "native"])
def test_a_child_is_confined(tmp_path, monkeypatch, kind):
    for name, value in (SECRETS | HARMLESS).items():
        monkeypatch.setenv(name, value)
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    own_score = int(Path("/proc/self/oom_score_adj").read_text())
    with listener, client, child_of(kind, tmp_path) as process:
        limits = process.joinpath("limits").read_text().splitlines()
        found = {line[:26].strip(): line[26:].split()[:2] for line in limits}
        assert found["Max core file size"] == ["0", "0"]
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert found["Max open files"] == [str(min(MAX_OPEN_FILES, hard))] * 2
        score = int(process.joinpath("oom_score_adj").read_text())
        assert score == min(1000, own_score + OOM_SCORE)
        assert "NoNewPrivs:\t1" in process.joinpath("status").read_text()
        links = [str(each.readlink()) for each in process.joinpath("fd").iterdir()]
        sockets = {link for link in links if link.startswith("socket:")}
        assert len(sockets) == 1, links  # the one through which it is spoken to
        assert all(f"[{os.fstat(s.fileno()).st_ino}]" not in str(links) for s in (listener, client))
        environment = process.joinpath("environ").read_bytes().decode().split("\0")
        names = {each.partition("=")[0] for each in environment}
        assert not names & SECRETS.keys()
        assert names >= HARMLESS.keys()


def test_what_is_hidden_can_be_passed():
    environment = SECRETS | HARMLESS
    assert environment_for(environment, ()) == HARMLESS
    assert hidden_names(environment, ["HF_TOKEN"]) == SECRETS.keys() - {"HF_TOKEN"}


def test_memory_beyond_the_limit_fails_one_batch(tmp_path):
    source = """
        def predict(x: Table) -> Table:
            np.ones(int(x[0, 0]), np.uint8)
            return x
    """
    row = np.zeros((1, 4), np.float32)
    with python_models.loaded(tmp_path, source, max_memory_bytes=1024 * MIB) as model:
        with pytest.raises(InferenceFailed, match="MemoryError"):
            model.execute([row + 1100 * MIB])
        assert model.execute([row])[0].tolist() == row.tolist()
