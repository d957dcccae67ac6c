"""What is kept of a compiled model gives the same answers, and is never needed."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.artifacts import MANIFEST, ArtifactCache
from headrace.runtimes import compiled, registry
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.testing import onnx_models

X = np.random.default_rng(0).random((3, 16), np.float32)
WIDE = (16, 512, 64, 2)
"""Weights of 32 and 128 KB: those from 4 KB on go into a file of their own."""

runtimes = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "compiled")


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    return write(tmp_path, onnx_models.mlp(widths=WIDE))


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return path


ALONE = InstanceConfig()
_loaded: list[Any] = []


@pytest.fixture(autouse=True)
def unloaded():
    """An entry is held until its model is unloaded."""
    yield
    while _loaded:
        _loaded.pop().unload()


def load(
    runtime: str,
    path: Path,
    cache: ArtifactCache,
    config: InstanceConfig = ALONE,
    digest: str = "sha256:1",
    **options: object,
):
    pytest.importorskip(runtime)
    model_format = "openvino" if path.suffix == ".xml" else "onnx"
    artifact = Artifact("m", "1", path, path.parent, model_format, digest, options, compiled=cache)
    model = registry.create(runtime).load(artifact, config)
    _loaded.append(model)
    return model


def from_cache(model) -> bool:
    """Whether it was loaded from an entry, which is then held."""
    return model.compiled.place._held is not None


def entries(cache: ArtifactCache) -> list[Path]:
    return sorted(each for each in cache._folder.glob("[!.]*") if each.is_dir())


def check_same(
    runtime: str,
    path: Path,
    cache: ArtifactCache,
    feeds: Sequence[Sequence[np.ndarray | None]],
    **options: object,
) -> None:
    """The signature and every answer are the original's, bit by bit."""
    original = load(runtime, path, cache, **options)
    assert not from_cache(original)
    original.keep_compiled()
    kept = load(runtime, path, cache, **options)
    assert from_cache(kept), "nothing was kept, or it was not taken"
    assert (kept.inputs, kept.outputs) == (original.inputs, original.outputs)
    assert getattr(kept, "axis_names", None) == getattr(original, "axis_names", None)
    for inputs in feeds:
        for want, got in zip(original.execute(inputs), kept.execute(inputs), strict=True):
            np.testing.assert_array_equal(got, want, strict=True)


class TestTheAnswersAreTheOriginals:
    @runtimes
    def test_of_dense_layers_in_several_sizes(self, runtime, mlp, cache):
        check_same(runtime, mlp, cache, [[X], [X[:1]], [np.repeat(X, 11, 0)]])

    @runtimes
    def test_of_token_ids_and_a_mask(self, runtime, tmp_path, cache):
        path = write(tmp_path, onnx_models.embedder(vocabulary=2000, width=32))
        ids = np.arange(12).reshape(2, 6)
        check_same(runtime, path, cache, [[ids, np.ones_like(ids)]])

    @runtimes
    @pytest.mark.parametrize("datatype", ["INT64", "BF16", "BOOL", "FP16"])
    def test_of_a_datatype(self, runtime, datatype, tmp_path, cache):
        path = write(tmp_path, onnx_models.identity(datatype))
        dtype = {"INT64": np.int64, "BF16": np.uint16, "BOOL": np.bool_, "FP16": np.float16}
        check_same(runtime, path, cache, [[np.ones((2, 4), dtype[datatype])]])

    def test_of_texts(self, tmp_path, cache):
        path = write(tmp_path, onnx_models.identity("BYTES"))
        texts = np.array([[b"a", b"", "ä".encode(), b"d"]], object)
        check_same("onnxruntime", path, cache, [[texts]])

    def test_of_inputs_that_may_be_left_out(self, tmp_path, cache):
        path = write(tmp_path, optional_weight())
        weight = np.full((16, 512), 2, np.float32)
        check_same("onnxruntime", path, cache, [[X, None], [X, weight]], optional_inputs=["w"])

    @runtimes
    def test_of_weights_beside_the_model(self, runtime, tmp_path, cache):
        path = tmp_path / "model.onnx"
        model = onnx.load_from_string(onnx_models.mlp(widths=WIDE))
        onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=0)
        check_same(runtime, path, cache, [[X]])

    def test_of_a_branch_with_weights_of_its_own(self, tmp_path, cache):
        path = write(tmp_path, branches())
        check_same("onnxruntime", path, cache, [[X, np.array(True)], [X, np.array(False)]])

    @pytest.mark.parametrize("inner", ["a", "z"])
    def test_of_an_output_whose_last_operator_is_optimised_away(self, inner, tmp_path, cache):
        nodes = [
            helper.make_node("Relu", ["x"], [inner]),
            helper.make_node("Identity", [inner], ["logits"]),
        ]
        check_same("openvino", write(tmp_path, graph(nodes, ["x"], "logits")), cache, [[X]])

    def test_of_a_state(self, tmp_path, cache):
        openvino = pytest.importorskip("openvino")
        path = tmp_path / "sum.xml"
        openvino.save_model(running_sum(openvino), path)
        check_same("openvino", path, cache, [[np.ones((1, 2), np.float32)]] * 2)


class TestDamage:
    @runtimes
    @pytest.mark.parametrize("how", ["cut", "flip", "gone"])
    def test_of_any_file_costs_the_entry_and_nothing_else(self, runtime, how, mlp, cache):
        original = load(runtime, mlp, cache)
        original.keep_compiled()
        (expected,) = original.execute([X])
        (entry,) = entries(cache)
        names = sorted(file.name for file in entry.iterdir())
        assert len(names) == (3 if runtime == "onnxruntime" else 2)
        for name in names:
            damage(entry / name, how)
            model = load(runtime, mlp, cache)
            assert not from_cache(model)
            np.testing.assert_array_equal(model.execute([X])[0], expected)
            model.keep_compiled()
            again = load(runtime, mlp, cache)
            assert from_cache(again), f"built again after {name}"
            again.unload()

    @runtimes
    def test_that_no_manifest_shows_is_found_by_the_library(self, runtime, mlp, cache, caplog):
        """Rubbish with a manifest that fits, as if another version had written it."""
        load(runtime, mlp, cache).keep_compiled()
        (entry,) = entries(cache)
        names = [file.name for file in entry.iterdir() if file.name != MANIFEST]
        cache.discard(entry.name)

        def build(folder: Path) -> None:
            for name in names:
                (folder / name).write_bytes(b"rubbish" * 1000)

        cache.entry(entry.name, build)
        model = load(runtime, mlp, cache)
        np.testing.assert_allclose(
            model.execute([X])[0], onnx_models.mlp_reference(X, widths=WIDE), rtol=1e-4, atol=1e-4
        )
        assert "thrown away" in caplog.text
        assert entries(cache) == []
        model.keep_compiled()
        assert entries(cache) == [], "it was refused once, so this process tries no more"


class TestTheKey:
    @pytest.fixture
    def kept(self, mlp, cache) -> Path:
        load("onnxruntime", mlp, cache).keep_compiled()
        assert from_cache(load("onnxruntime", mlp, cache))
        return mlp

    def test_is_another_for_another_processor(self, kept, cache, monkeypatch):
        monkeypatch.setattr(compiled, "cpu_flags", lambda: frozenset({"fpu"}))
        assert not from_cache(load("onnxruntime", kept, cache))

    def test_is_another_for_another_version(self, kept, cache, monkeypatch):
        monkeypatch.setattr("onnxruntime.__version__", "99.0")
        assert not from_cache(load("onnxruntime", kept, cache))

    @pytest.mark.parametrize(
        "options",
        [
            {"graph_optimization": "basic"},
            {"session_config": {"session.set_denormal_as_zero": "1"}},
        ],
    )
    def test_is_another_for_other_options(self, kept, cache, options):
        assert not from_cache(load("onnxruntime", kept, cache, **options))

    def test_is_another_for_other_content(self, kept, cache):
        assert not from_cache(load("onnxruntime", kept, cache, digest="sha256:2"))

    def test_is_the_same_for_other_threads_of_onnx_runtime(self, kept, cache):
        assert from_cache(load("onnxruntime", kept, cache, InstanceConfig(threads=2)))

    def test_is_another_for_other_streams_of_openvino(self, mlp, cache):
        load("openvino", mlp, cache).keep_compiled()
        assert from_cache(load("openvino", mlp, cache))
        assert not from_cache(load("openvino", mlp, cache, InstanceConfig(concurrency=2)))

    def test_is_none_for_a_model_that_is_not_to_be_optimised(self, mlp, cache):
        model = load("onnxruntime", mlp, cache, graph_optimization="off")
        model.keep_compiled()
        assert entries(cache) == []

    def test_is_none_where_the_owner_has_a_cache(self, mlp, cache, tmp_path):
        own = {"CACHE_DIR": str(tmp_path / "own")}
        load("openvino", mlp, cache, properties=own).keep_compiled()
        assert entries(cache) == []


class TestADiskThatTakesNothing:
    @runtimes
    def test_costs_one_warning(self, runtime, mlp, tmp_path, caplog):
        (tmp_path / "compiled").write_text("in the way")
        self.check_served(runtime, mlp, ArtifactCache(tmp_path / "compiled"), caplog)

    @runtimes
    def test_because_it_is_full(self, runtime, mlp, cache, caplog, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("headrace.artifacts.write_atomically", full)
        self.check_served(runtime, mlp, cache, caplog)
        assert "No space left" in caplog.text
        assert entries(cache) == []
        assert not list(cache._folder.glob(".*")), "half an entry fills the disk for good"

    def check_served(self, runtime, mlp, cache, caplog):
        with caplog.at_level(logging.WARNING):
            model = load(runtime, mlp, cache)
            model.keep_compiled()
        assert len(caplog.records) == 1
        assert "is not kept" in caplog.text
        assert model.execute([X])[0].shape == (3, 2)


@runtimes
def test_what_serves_is_not_removed_for_room_until_it_is_unloaded(runtime, mlp, cache):
    load(runtime, mlp, cache).keep_compiled()
    model = load(runtime, mlp, cache)
    bounded = ArtifactCache(cache._folder, max_bytes=1)
    other = lambda folder: (folder / "x").write_bytes(b"x")  # noqa: E731
    bounded.entry("other", other)
    assert len(entries(cache)) == 2
    model.unload()
    bounded.entry("another", other)
    assert [entry.name for entry in entries(cache)] == ["another"]


KEEP = """
import sys
from pathlib import Path
from headrace.artifacts import ArtifactCache
from headrace.runtimes import registry
from headrace.runtimes.base import Artifact, InstanceConfig
path = Path(sys.argv[2])
cache = ArtifactCache(Path(sys.argv[3]))
artifact = Artifact("m", "1", path, path.parent, "onnx", "sha256:1", compiled=cache)
model = registry.create(sys.argv[1]).load(artifact, InstanceConfig())
print("loaded", flush=True)
sys.stdin.readline()
model.keep_compiled()
"""


@runtimes
def test_processes_that_keep_it_at_one_time_leave_one_entry(runtime, mlp, cache):
    pytest.importorskip(runtime)
    command = [sys.executable, "-c", KEEP, runtime, str(mlp), str(cache._folder)]
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "loaded\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[1] for process in both] == ["", ""]
    assert len(entries(cache)) == 1
    assert from_cache(load(runtime, mlp, cache))


def damage(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(content)


def graph(
    nodes, inputs: Sequence[str], output: str, weights=(), flags: Sequence[str] = ()
) -> bytes:
    value = helper.make_tensor_value_info
    shape = ["batch", None]
    made = helper.make_graph(
        nodes,
        "g",
        [
            *(value(name, TensorProto.FLOAT, ["batch", 16]) for name in inputs),
            *(value(name, TensorProto.BOOL, []) for name in flags),
        ],
        [value(output, TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def optional_weight() -> bytes:
    """x @ w, where w has a default."""
    weight = numpy_helper.from_array(np.ones((16, 512), np.float32), "w")
    model = onnx.load_from_string(
        graph([helper.make_node("MatMul", ["x", "w"], ["y"])], ["x"], "y", [weight])
    )
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [16, 512]))
    return bytes(model.SerializeToString())


def branches() -> bytes:
    """If ``up``, x times one matrix, else x times another; each stands in its branch."""

    def branch(name: str, seed: int):
        weight = np.random.default_rng(seed).random((16, 128), np.float32)
        node = helper.make_node("MatMul", ["x", f"w_{name}"], [name])
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 128])
        weights = [numpy_helper.from_array(weight, f"w_{name}")]
        return helper.make_graph([node], name, [], [output], weights)

    node = helper.make_node(
        "If", ["up"], ["y"], then_branch=branch("then", 1), else_branch=branch("else", 2)
    )
    return graph([node], ["x"], "y", flags=["up"])


def running_sum(openvino):
    opset = openvino.opset13
    x = opset.parameter([-1, 2], np.float32, name="x")
    start = opset.constant(np.zeros((1, 2), np.float32))
    state = opset.read_value(start, "total", np.float32, openvino.PartialShape([-1, 2]))
    total = opset.add(x, state)
    return openvino.Model(
        [opset.result(total, name="y")], [opset.assign(total, "total")], [x], "running_sum"
    )
