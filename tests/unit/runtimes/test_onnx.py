from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.errors import InferenceFailed, InvalidRequest, MissingExtra, ModelLoadError
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.runtimes.onnx import OnnxRuntime
from headrace.testing import onnx_models
from tests.unit.runtimes.memory import growth_mb


def load(folder: Path, content: bytes, *, concurrency: int = 1, **options):
    path = folder / "my model.onnx"
    path.write_bytes(content)
    artifact = Artifact("m", "1", path, folder, "onnx", options=options)
    return OnnxRuntime().load(artifact, InstanceConfig(concurrency=concurrency))


def graph(nodes, inputs, outputs, weights=(), *, domains=("",)):
    made = helper.make_graph(nodes, "g", inputs, outputs, weights)
    imports = [helper.make_opsetid(domain, 1 if domain else 18) for domain in domains]
    return helper.make_model(made, opset_imports=imports, ir_version=10)


def value(name, kind=TensorProto.FLOAT, shape=("batch", 4)):
    return helper.make_tensor_value_info(name, kind, shape)


class TestWhatCannotBeLoaded:
    def refused(self, folder, content, **options) -> ModelLoadError:
        with pytest.raises(ModelLoadError) as caught:
            load(folder, content, **options)
        error = caught.value
        assert "ONNXRuntimeError" not in error.message
        assert "/onnxruntime" not in error.message, "a source location helps nobody"
        assert error.details["model"] == "m"
        return error

    def test_a_pointer_instead_of_a_model(self, tmp_path):
        error = self.refused(
            tmp_path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
        )
        assert "git lfs pull" in error.hint

    def test_an_opset_of_the_future(self, tmp_path):
        model = graph([helper.make_node("Relu", ["x"], ["y"])], [value("x")], [value("y")])
        model.opset_import[0].version = 99
        error = self.refused(tmp_path, model.SerializeToString())
        assert "99" in error.message
        assert "lower opset" in error.hint

    def test_a_file_format_of_the_future(self, tmp_path):
        model = onnx.load_from_string(onnx_models.mlp())
        model.ir_version = 99
        error = self.refused(tmp_path, model.SerializeToString())
        assert "99" in error.message
        assert "IR version" in error.hint

    def test_an_operator_of_somebody_else(self, tmp_path):
        node = helper.make_node("Spin", ["x"], ["y"], domain="com.example")
        model = graph([node], [value("x")], [value("y")], domains=("", "com.example"))
        error = self.refused(tmp_path, model.SerializeToString())
        assert "com.example:Spin" in error.message
        assert "custom operator" in error.hint

    def test_an_operator_that_does_not_exist(self, tmp_path):
        model = graph([helper.make_node("Spin", ["x"], ["y"])], [value("x")], [value("y")])
        assert "Spin" in self.refused(tmp_path, model.SerializeToString()).message

    @pytest.mark.parametrize("kind", ["seq", "complex"])
    def test_an_output_that_no_protocol_can_carry(self, tmp_path, kind):
        if kind == "seq":
            split = helper.make_node("SplitToSequence", ["x"], ["y"], axis=0)
            output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
            model = graph([split], [value("x")], [output])
        else:
            node = helper.make_node("Identity", ["x"], ["y"])
            complex_64 = TensorProto.COMPLEX64
            model = graph([node], [value("x", complex_64)], [value("y", complex_64)])
        error = self.refused(tmp_path, model.SerializeToString())
        assert kind in error.message

    def test_a_provider_that_is_not_there(self, tmp_path):
        error = self.refused(tmp_path, onnx_models.mlp(), providers=["WaterExecutionProvider"])
        assert "'WaterExecutionProvider'" in error.message
        assert "CPUExecutionProvider" in error.hint

    def test_an_option_of_the_wrong_kind(self, tmp_path):
        error = self.refused(tmp_path, onnx_models.mlp(), graph_optimization="a lot")
        assert "graph_optimization" in error.message
        assert "providers" in error.hint, "the options that exist are listed"

    def test_nothing_is_written_beside_the_error(self, tmp_path, capfd):
        self.refused(tmp_path, b"garbage")
        self.refused(tmp_path, onnx_models.mlp()[:5000])
        assert capfd.readouterr() == ("", "")


class TestExternalWeights:
    """A model may come from a stranger: what it refers to must not leave its folder."""

    @pytest.fixture
    def split(self, tmp_path):
        """The graph, and its weights one folder higher."""
        folder = tmp_path / "inside"
        folder.mkdir()
        path = tmp_path / "split.onnx"
        onnx.save(
            onnx.load_from_string(onnx_models.mlp()),
            path,
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
        )
        return folder, path.read_bytes()

    def point_to(self, content: bytes, location: str) -> bytes:
        model = onnx.load_from_string(content)
        for weight in model.graph.initializer:
            for entry in weight.external_data:
                if entry.key == "location":
                    entry.value = location
        return model.SerializeToString()

    def test_beside_the_graph_they_are_read(self, split, tmp_path):
        folder, content = split
        (folder / "weights.bin").write_bytes((tmp_path / "weights.bin").read_bytes())
        x = np.ones((2, 16), np.float32)
        (y,) = load(folder, content).execute([x])
        np.testing.assert_allclose(y, onnx_models.mlp_reference(x), rtol=1e-5)

    def test_missing_they_are_named(self, split):
        folder, content = split
        with pytest.raises(ModelLoadError, match=r"weights\.bin") as caught:
            load(folder, content)
        assert "put the weight file" in caught.value.hint

    @pytest.mark.parametrize("way", ["..", "absolute", "symlink", "detour"])
    def test_elsewhere_they_are_refused(self, split, tmp_path, way):
        folder, content = split
        location = "weights.bin"
        if way == "symlink":
            (folder / location).symlink_to(tmp_path / location)
        elif way == "absolute":
            location = str(tmp_path / location)
        else:
            location = ("" if way == ".." else "deeper/../") + "../weights.bin"
        with pytest.raises(ModelLoadError) as caught:
            load(folder, self.point_to(content, location))
        assert "own folder" in caught.value.hint


class TestExecution:
    def test_a_bad_shape_is_said_in_the_models_words(self, tmp_path, capfd):
        model = load(tmp_path, onnx_models.mlp())
        with pytest.raises(InferenceFailed) as caught:
            model.execute([np.zeros((1, 15), np.float32)])
        message = caught.value.message
        assert "Got: 15 Expected: 16" in message
        assert "ONNXRuntimeError" not in message
        assert capfd.readouterr() == ("", "")

    def test_a_failing_node_is_named(self, tmp_path, capfd):
        embedder = load(tmp_path, onnx_models.embedder())
        with pytest.raises(InferenceFailed, match="Gather") as caught:
            embedder.execute([np.full((1, 3), 10_000), np.ones((1, 3), np.int64)])
        assert "10000" in caught.value.message
        assert ".cc" not in caught.value.message
        assert capfd.readouterr() == ("", "")

    def test_text_that_is_not_utf_8_is_refused(self, tmp_path):
        model = load(tmp_path, onnx_models.identity("BYTES"))
        with pytest.raises(InvalidRequest, match="element 2 of input 'x'"):
            model.execute([np.array([[b"a", b"b", b"\xff", b"d"]], object)])

    @pytest.mark.parametrize("datatype", ["BYTES", "BF16", "FP32", "BOOL"])
    def test_no_rows_are_no_rows(self, tmp_path, datatype):
        model = load(tmp_path, onnx_models.identity(datatype))
        dtypes = {"BYTES": object, "BF16": np.uint16, "FP32": np.float32, "BOOL": np.bool_}
        (y,) = model.execute([np.empty((0, 4), dtypes[datatype])])
        assert y.shape == (0, 4)
        assert y.dtype == dtypes[datatype]

    def test_an_output_that_is_a_weight_cannot_be_spoilt(self, tmp_path):
        relu = helper.make_node("Relu", ["x"], ["y"])
        constant = numpy_helper.from_array(np.arange(3, dtype=np.float32), "c")
        model = load(
            tmp_path,
            graph(
                [relu], [value("x")], [value("y"), value("c", shape=(3,))], [constant]
            ).SerializeToString(),
        )
        x = np.ones((1, 4), np.float32)
        model.execute([x])[1].fill(9)
        assert model.execute([x])[1].tolist() == [0, 1, 2]

    def test_after_unload_it_fails_cleanly(self, tmp_path):
        model = load(tmp_path, onnx_models.mlp())
        model.unload()
        with pytest.raises(InferenceFailed, match="unloaded"):
            model.execute([np.zeros((1, 16), np.float32)])

    def test_axes_keep_the_exporters_names(self, tmp_path):
        model = load(tmp_path, onnx_models.embedder())
        assert model.axis_names["input_ids"] == ("batch", "sequence")
        assert model.axis_names["embedding"] == ("batch", "")

    @pytest.mark.parametrize(
        "options",
        [
            {"graph_optimization": "off"},
            {"session_config": {"session.set_denormal_as_zero": "1"}},
            {"providers": [["CPUExecutionProvider", {"arena_extend_strategy": 0}]]},
        ],
    )
    def test_options_do_not_change_the_answer(self, tmp_path, options):
        x = np.random.default_rng(0).random((5, 16), np.float32)
        (y,) = load(tmp_path, onnx_models.mlp(), **options).execute([x])
        np.testing.assert_allclose(y, onnx_models.mlp_reference(x), rtol=1e-5)


class TestInputsWithDefaults:
    X = np.ones((2, 4), np.float32)

    def test_are_the_models_own_business(self, tmp_path):
        model = load(tmp_path, onnx_models.default_scale())
        assert [spec.name for spec in model.inputs] == ["x"]
        assert model.execute([self.X])[0].tolist() == (self.X * 2).tolist()

    def test_unless_asked_for(self, tmp_path):
        model = load(tmp_path, onnx_models.default_scale(), optional_inputs=["scale"])
        assert [(spec.name, spec.optional) for spec in model.inputs] == [
            ("x", False),
            ("scale", True),
        ]
        assert model.execute([self.X, None])[0].tolist() == (self.X * 2).tolist()
        scale = np.array([3], np.float32)
        assert model.execute([self.X, scale])[0].tolist() == (self.X * 3).tolist()

    def test_that_do_not_exist_are_refused(self, tmp_path):
        with pytest.raises(ModelLoadError, match="'shift'") as caught:
            load(tmp_path, onnx_models.default_scale(), optional_inputs=["shift"])
        assert "scale" in caught.value.hint


@pytest.mark.parametrize("keys", ["int64", "string"])
def test_class_scores_become_a_table(tmp_path, keys):
    """What scikit-learn converters write by default: one map for each row."""
    labels = (
        {"classlabels_int64s": [3, 1, 2]}
        if keys == "int64"
        else {"classlabels_strings": ["c", "a", "b"]}
    )
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", **labels)
    kind = TensorProto.INT64 if keys == "int64" else TensorProto.STRING
    scores = helper.make_value_info(
        "y",
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        ),
    )
    model = load(
        tmp_path,
        graph(
            [node], [value("x", shape=("batch", 3))], [scores], domains=("", "ai.onnx.ml")
        ).SerializeToString(),
    )
    assert (model.outputs[0].datatype, model.outputs[0].shape) == ("FP32", (-1, -1))
    x = np.array([[0.3, 0.1, 0.2], [0.6, 0.4, 0.5]], np.float32)
    (y,) = model.execute([x])
    assert y.tolist() == x[:, [1, 2, 0]].tolist(), "in the order of the sorted classes"


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match="onnxruntime"):
        load(tmp_path, onnx_models.mlp())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_shapes(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_models.embedder(width=64))
    script = """
        def run(count):
            for _ in range(count):
                shape = tuple(rng.integers(1, 200, 2))
                model.execute([rng.integers(0, 100, shape), np.ones(shape, np.int64)])
            return resident_mb()

        before = run(500)
        print(run(3000) - before)
    """
    assert growth_mb("onnxruntime", path, script) < 16
