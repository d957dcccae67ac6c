"""Building once, finding again, and never serving a broken or half-written model."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest

from headrace.artifacts import ArtifactCache
from headrace.config import ModelConfig
from headrace.errors import ConfigError, ModelLoadError
from headrace.repository.base import ModelSource
from headrace.repository.huggingface import inspect
from headrace.repository.prepare import prepare
from tests.unit.repository.bert_models import TinyBert

TEXT = [2, 9, 30, 41, 3]


def source(folder: Path, **task_options: Any) -> ModelSource:
    """As the layout finds it; ``task_options`` are those of the configuration."""
    found = inspect(folder)
    assert found is not None
    return ModelSource(
        name="tiny",
        version="1",
        format=found.format,
        path=found.path,
        folder=folder,
        task=found.task,
        task_options=found.task_options,
        config=ModelConfig(task_options=task_options),
    )


def answer(prepared: ModelSource) -> np.ndarray:
    loaded = onnxruntime.InferenceSession(prepared.path, providers=["CPUExecutionProvider"])
    ids = np.int64([TEXT])
    return loaded.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]


@pytest.fixture
def model(tmp_path):
    return source(TinyBert().save(tmp_path / "model"))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "graphs").iterdir() if path.is_dir())


@pytest.mark.parametrize("format_", ["onnx", "openvino", "python", "null"])
def test_other_formats_are_returned_as_they_are(tmp_path, cache, format_):
    given = ModelSource("m", "1", format_, tmp_path / "x", tmp_path)
    assert prepare(given, cache) is given
    assert not cache.exists()


def test_the_built_model_answers_as_the_weights_say(model, cache):
    prepared = prepare(model, cache)
    assert prepared.format == "onnx"
    assert prepared.path.is_relative_to(cache)
    assert prepared.folder == prepared.path.parent
    assert prepared.digest.startswith("sha256:")
    np.testing.assert_allclose(answer(prepared), TinyBert().embedding_of(TEXT), atol=1e-5)


def test_a_classifier_keeps_its_options(tmp_path, cache):
    tiny = TinyBert("distilbert", labels=3)
    given = source(tiny.save(tmp_path / "model"))
    prepared = prepare(given, cache)
    np.testing.assert_allclose(answer(prepared), tiny.logits(TEXT), atol=1e-4)
    assert prepared.task_options["labels"] == given.task_options["labels"]


def test_what_the_graph_does_is_not_asked_of_the_task_again(model, cache):
    assert model.task_options["normalize"] is True
    assert prepare(model, cache).task_options["normalize"] is False


def test_the_configuration_goes_before_what_the_folder_says(model, cache):
    changed = source(model.folder, pooling="cls", normalize=False)
    one, other = prepare(model, cache), prepare(changed, cache)
    assert one.path != other.path
    expected = TinyBert().embedding_of(TEXT, "cls", normalize=False)
    np.testing.assert_allclose(answer(other), expected, atol=1e-4)


@pytest.mark.parametrize("options", [{"pooling": "median"}, {"normalize": "yes"}])
def test_an_option_that_does_not_exist_is_named(model, cache, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        prepare(source(model.folder, **options), cache)


def test_a_second_start_finds_the_same_file(model, cache):
    first = prepare(model, cache)
    before = first.path.stat()
    again = prepare(model, cache)
    assert again == first
    assert (before.st_ino, before.st_mtime_ns) == (
        again.path.stat().st_ino,
        again.path.stat().st_mtime_ns,
    )


def test_new_weights_are_another_model(model, cache):
    first = answer(prepare(model, cache))
    TinyBert(seed=8).save(model.folder)
    second = answer(prepare(model, cache))
    np.testing.assert_allclose(second, TinyBert(seed=8).embedding_of(TEXT), atol=1e-5)
    assert np.abs(first - second).max() > 0.01
    assert len(entries(cache)) == 2


def test_new_numbers_in_the_configuration_are_another_model(model, cache):
    prepare(model, cache)
    changed = TinyBert(extra={"layer_norm_eps": 0.5})
    changed.save(model.folder)
    expected = changed.embedding_of(TEXT)
    np.testing.assert_allclose(answer(prepare(model, cache)), expected, atol=1e-5)


def test_the_same_content_elsewhere_is_the_same_model(model, cache, tmp_path):
    copied = shutil.copytree(model.folder, tmp_path / "copy")
    assert prepare(source(copied), cache).path == prepare(model, cache).path
    assert len(entries(cache)) == 1


def _truncate(entry: Path) -> None:
    data = entry / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])


def _flip(entry: Path) -> None:
    data = bytearray((entry / "model.onnx.data").read_bytes())
    data[5] ^= 0x40
    (entry / "model.onnx.data").write_bytes(data)


def _break_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip,
        _break_manifest,
        lambda entry: (entry / "model.onnx.data").unlink(),
        lambda entry: (entry / "model.onnx").write_bytes(b""),
        lambda entry: (entry / "manifest.json").unlink(),
        lambda entry: (entry / "manifest.json").write_text('{"model.onnx'),
    ],
    ids=["truncated", "flipped", "empty-manifest", "data", "graph", "manifest", "half-manifest"],
)
def test_a_damaged_entry_is_built_again(model, cache, damage):
    prepared = prepare(model, cache)
    damage(prepared.folder)
    again = prepare(model, cache)
    assert again.path == prepared.path
    np.testing.assert_allclose(answer(again), TinyBert().embedding_of(TEXT), atol=1e-5)


def test_a_copied_cache_is_as_good(model, cache, tmp_path):
    """Times change when a cache is copied into an image; contents do not."""
    prepare(model, cache)
    copied = tmp_path / "copied"
    shutil.copytree(cache, copied, copy_function=shutil.copyfile)
    inode = prepare(model, copied).path.stat().st_ino
    assert prepare(model, copied).path.stat().st_ino == inode


def test_what_a_crash_left_behind_goes_with_the_next_build(model, cache):
    prepared = prepare(model, cache)
    left = prepared.folder.with_name(f".{prepared.folder.name}.99999.abc")
    prepared.folder.rename(left)
    prepare(model, cache)
    assert entries(cache) == [prepared.folder.name]


def test_a_build_that_fails_leaves_nothing(model, cache):
    config = json.loads((model.folder / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (model.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"layer\.2"):
        prepare(model, cache)
    assert entries(cache) == []


def test_a_full_disk_is_said_before_it_is_filled(model, cache, monkeypatch):
    usage = shutil.disk_usage(model.folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelLoadError, match=r"1,000 are free") as raised:
        prepare(model, cache)
    assert str(cache) in raised.value.message
    assert "cache_dir" in raised.value.hint
    assert entries(cache) == []


def test_a_write_that_fails_half_way_leaves_nothing(model, cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, hard))
        with pytest.raises(ModelLoadError, match=os.strerror(errno.EFBIG)):
            prepare(model, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert entries(cache) == []
    np.testing.assert_allclose(
        answer(prepare(model, cache)), TinyBert().embedding_of(TEXT), atol=1e-5
    )


def test_a_cache_that_is_no_folder_is_named(model, cache):
    cache.write_text("")
    with pytest.raises(ModelLoadError, match=str(cache)) as raised:
        prepare(model, cache)
    assert raised.value.details["cache_dir"] == str(cache)


def test_weights_that_disappeared_are_named(model, cache):
    model.path.unlink()
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        prepare(model, cache)


def test_threads_that_start_together_build_once(tmp_path):
    built: list[int] = []
    ready = threading.Barrier(4)
    results: list[Path] = []

    def build(folder: Path) -> None:
        built.append(1)
        (folder / "model.onnx").write_text("graph")

    def start() -> None:
        ready.wait()
        results.append(ArtifactCache(tmp_path).entry("key", build))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "key"] * 4
    assert len(built) == 1


PREPARE = """
import sys, msgspec
from pathlib import Path
from headrace.repository.base import ModelSource
from headrace.repository.prepare import prepare
source = msgspec.json.decode(sys.argv[1], type=ModelSource, dec_hook=lambda _, value: Path(value))
sys.stdin.readline()
print(prepare(source, Path(sys.argv[2])).path)
"""


def test_processes_that_start_together_share_one_model(model, cache):
    told = msgspec.json.encode(model, enc_hook=str).decode()
    command = [sys.executable, "-c", PREPARE, told, str(cache)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    paths = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert paths == {str(prepare(model, cache).path)}
    assert len(entries(cache)) == 1
