"""Which models are kept compiled, what names them, and when that is done."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from headrace.config import ModelConfig
from headrace.engine import compiled, opening
from headrace.engine.compiled import SourceChanged, compiled_of
from headrace.engine.models import ModelManager
from headrace.repository.base import ModelSource
from headrace.telemetry.instruments import Instrument
from headrace.testing import onnx_models

BYTES = 10**9


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    folder = tmp_path / "model"
    folder.mkdir()
    model = onnx.load_from_string(onnx_models.mlp())
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    config = ModelConfig(runtime="onnxruntime", instances=1)
    return ModelSource("m", "1", "onnx", folder / "model.onnx", folder, config=config)


@pytest.fixture
def keep_all(monkeypatch):
    """Models of any size are kept."""
    monkeypatch.setattr(compiled, "MIN_BYTES", 0)
    monkeypatch.setattr(compiled_of, "__kwdefaults__", {"min_bytes": 0})


def digest_of(source: ModelSource, tmp_path: Path) -> str:
    digest, cache = compiled_of(source, ["w"], tmp_path / "c", max_bytes=BYTES, min_bytes=0)
    assert cache is not None
    return digest


def entries(cache_dir: Path) -> list[str]:
    folder = cache_dir / compiled.COMPILED
    return [each.name for each in folder.glob("[!.]*") if each.is_dir()]


@pytest.mark.parametrize("name", ["model.onnx", "w"])
def test_the_digest_is_that_of_every_file(source, tmp_path, name):
    before = digest_of(source, tmp_path)
    assert digest_of(source, tmp_path) == before
    path = source.folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert digest_of(source, tmp_path) != before


@pytest.mark.parametrize(
    ("max_bytes", "min_bytes"), [(0, 0), (BYTES, 10**6)], ids=["nothing kept", "too small"]
)
def test_nothing_is_read_where_nothing_is_kept(source, tmp_path, monkeypatch, max_bytes, min_bytes):
    monkeypatch.setattr(compiled, "DigestMemory", lambda _: pytest.fail("hashed"))
    told = compiled_of(source, ["w"], tmp_path / "c", max_bytes=max_bytes, min_bytes=min_bytes)
    assert told == ("", None)


def test_a_missing_file_is_left_to_the_runtime_to_tell(source, tmp_path):
    told = compiled_of(source, ["lost"], tmp_path / "c", max_bytes=BYTES, min_bytes=0)
    assert told == ("", None)


def test_what_was_replaced_since_it_was_loaded_is_not_kept(source, tmp_path):
    _, cache = compiled_of(source, ["w"], tmp_path / "c", max_bytes=BYTES, min_bytes=0)
    assert cache is not None
    os.utime(source.folder / "w", (1, 1))
    with pytest.raises(SourceChanged):
        cache.entry("key", lambda folder: (folder / "x").touch())
    assert cache.find("key") is None
    assert entries(tmp_path / "c") == []


async def test_it_is_kept_behind_the_start_and_found_by_the_next(
    bench, source, tmp_path, keep_all, monkeypatch
):
    kept = asyncio.Event()
    loop = asyncio.get_running_loop()
    original = ModelManager._finish

    async def finish(self, loaded):
        await original(self, loaded)
        loop.call_soon(kept.set)

    monkeypatch.setattr(ModelManager, "_finish", finish)
    manager = ModelManager(bench.engine, cache_dir=tmp_path / "c", instrument=Instrument())
    await manager.load(source)
    await asyncio.wait_for(kept.wait(), 30)
    await manager.close()
    assert len(entries(tmp_path / "c")) == 1
    opened = opening.open_model(source, tmp_path / "c")
    assert opened.model.compiled.place._held is not None
    (got,) = opened.model.execute([np.ones((2, 16), np.float32)])
    np.testing.assert_allclose(
        got, onnx_models.mlp_reference(np.ones((2, 16), np.float32)), rtol=1e-5
    )
    opened.model.unload()
