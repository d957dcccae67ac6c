from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest

from headrace.errors import InferenceFailed, InvalidRequest, MissingExtra, ModelLoadError
from headrace.repository.onnx_writer import Node, write_model
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.runtimes.openvino import OpenVinoRuntime
from headrace.testing import onnx_models
from headrace.types import TensorSpec
from tests.unit.runtimes.memory import growth_mb

openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")


def load(path, *, model_format="onnx", concurrency=1, **options):
    artifact = Artifact("m", "1", path, path.parent, model_format, options=options)
    return OpenVinoRuntime().load(artifact, InstanceConfig(concurrency=concurrency))


@pytest.fixture
def write(tmp_path):
    def write(content: bytes):
        path = tmp_path / "my model.onnx"
        path.write_bytes(content)
        return path

    return write


class TestWhatCannotBeLoaded:
    @pytest.mark.parametrize(
        ("datatype", "why"), [("FP64", "as FP32"), ("UINT64", "as INT32"), ("BYTES", "tokenizers")]
    )
    def test_a_datatype_that_would_not_be_exact(self, write, datatype, why):
        with pytest.raises(ModelLoadError, match=why) as caught:
            load(write(onnx_models.identity(datatype)))
        assert "onnxruntime" in caught.value.hint

    def test_an_operator_without_a_rule(self, write):
        with pytest.raises(ModelLoadError, match="OptionalHasElement") as caught:
            load(write(onnx_models.optional_bias()))
        assert "onnxruntime" in caught.value.hint

    def test_an_input_of_any_rank(self, write):
        model = onnx.load_from_string(onnx_models.identity("FP32"))
        model.graph.input[0].type.tensor_type.ClearField("shape")
        with pytest.raises(ModelLoadError, match="dynamic rank") as caught:
            load(write(model.SerializeToString()))
        assert "shape for every input" in caught.value.hint

    def test_weights_outside_of_the_folder(self, write, tmp_path):
        inside = tmp_path / "inside"
        inside.mkdir()
        onnx.save(
            onnx.load_from_string(onnx_models.mlp()),
            tmp_path / "split.onnx",
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
        )
        model = onnx.load(tmp_path / "split.onnx", load_external_data=False)
        for weight in model.graph.initializer:
            for entry in weight.external_data:
                if entry.key == "location":
                    entry.value = "../weights.bin"
        path = inside / "model.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelLoadError, match="outside") as caught:
            load(path)
        assert "own folder" in caught.value.hint

    @pytest.mark.parametrize(
        ("name", "options"),
        [("WATERWHEEL", {"device": "WATERWHEEL"}), ("SPIN", {"properties": {"SPIN": "2"}})],
    )
    def test_a_device_or_property_that_is_not_there(self, write, name, options):
        with pytest.raises(ModelLoadError, match=name) as caught:
            load(write(onnx_models.mlp()), **options)
        assert "runtime_options" in caught.value.hint

    def test_nothing_is_written_beside_the_error(self, write, tmp_path, capfd):
        xml = tmp_path / "model.xml"
        xml.write_text("garbage")
        for path, model_format in ((write(b"garbage"), "onnx"), (xml, "openvino")):
            with pytest.raises(ModelLoadError) as caught:
                load(path, model_format=model_format)
            assert ".cpp" not in caught.value.message
        assert capfd.readouterr() == ("", "")

    def test_anything_without_the_library(self, write, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        monkeypatch.setattr("headrace.runtimes.openvino._loaded", [])
        with pytest.raises(MissingExtra, match="openvino"):
            load(write(onnx_models.mlp()))


class TestExecution:
    @pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 2**62])
    def test_what_does_not_fit_32_bits_is_refused(self, write, number):
        model = load(write(onnx_models.identity("INT64")))
        with pytest.raises(InvalidRequest, match=str(number)):
            model.execute([np.array([[1, 2, number, 4]])])
        fits = np.array([[2**31 - 1, -(2**31), 0, 1]])
        assert model.execute([fits])[0].tolist() == fits.tolist()

    def test_another_datatype_is_refused_not_converted(self, write):
        model = load(write(onnx_models.mlp()))
        with pytest.raises(InferenceFailed, match="f64"):
            model.execute([np.zeros((1, 16))])

    def test_a_missing_input_is_not_taken_from_the_last_call(self, write):
        model = load(write(onnx_models.embedder()))
        ids, mask = np.ones((1, 3), np.int64), np.ones((1, 3), np.int64)
        model.execute([ids, mask])
        with pytest.raises(InferenceFailed, match="'attention_mask'"):
            model.execute([ids, None])

    def test_no_rows_are_no_rows(self, write):
        (y,) = load(write(onnx_models.mlp())).execute([np.empty((0, 16), np.float32)])
        assert y.shape == (0, 2)

    def test_a_slice_of_a_larger_array_is_understood(self, write):
        x = np.random.default_rng(0).random((6, 32), np.float32)[::2, ::2]
        (y,) = load(write(onnx_models.mlp())).execute([x])
        np.testing.assert_allclose(y, onnx_models.mlp_reference(x), rtol=1e-4, atol=1e-5)

    def test_a_state_is_not_carried_from_caller_to_caller(self, tmp_path):
        """IR can remember: here the sum of everything seen."""
        path = tmp_path / "sum.xml"
        openvino.save_model(running_sum(), path)
        model = load(path, model_format="openvino")
        x = np.full((1, 2), 3, np.float32)
        assert [model.execute([x])[0].tolist() for _ in range(3)] == [[[3, 3]]] * 3

    def test_properties_win(self, write, tmp_path):
        load(write(onnx_models.mlp()), properties={"CACHE_DIR": str(tmp_path / "cache")})
        assert list((tmp_path / "cache").iterdir())

    def test_bfloat16_keeps_every_bit_of_a_read_only_slice(self, write):
        model = load(write(onnx_models.identity("BF16")))
        bits = np.arange(0x3F80, 0x3F80 + 16, dtype=np.uint16).reshape(2, 8)[:, ::2]
        bits.flags.writeable = False
        assert model.execute([bits])[0].tolist() == bits.tolist()


@pytest.mark.parametrize("inner", ["a", "z"])
def test_an_output_keeps_its_name_where_the_last_operator_is_optimised_away(tmp_path, inner):
    """Exporters end models with Identity; then the port has the names of both tensors."""
    path, spec = tmp_path / "model.onnx", TensorSpec("x", "FP32", (-1, 3))
    nodes = [Node("Relu", ["x"], [inner]), Node("Identity", [inner], ["logits"])]
    outputs = [TensorSpec("logits", "FP32", (-1, 3))]
    write_model(path, nodes, inputs=[spec], outputs=outputs)
    assert [output.name for output in load(path).outputs] == ["logits"]


def running_sum():
    opset = openvino.opset13
    x = opset.parameter([-1, 2], np.float32, name="x")
    start = opset.constant(np.zeros((1, 2), np.float32))
    state = opset.read_value(start, "total", np.float32, openvino.PartialShape([-1, 2]))
    total = opset.add(x, state)
    return openvino.Model(
        [opset.result(total, name="y")], [opset.assign(total, "total")], [x], "running_sum"
    )


@pytest.mark.slow
def test_first_executions_from_two_threads_do_not_hang(write):
    """In OpenVINO's own ``infer(arrays)``, which needs the tables that the runtime has primed.

    Without them about one process in ten hangs, so that 30 in a row do with 96 %.
    """
    path = write(onnx_models.embedder())
    script = textwrap.dedent(
        """
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        import numpy as np
        import openvino
        from headrace.runtimes.base import Artifact, InstanceConfig
        from headrace.runtimes.openvino import OpenVinoRuntime
        path = Path(sys.argv[1])
        artifact = Artifact("m", "1", path, path.parent, "onnx")
        OpenVinoRuntime().load(artifact, InstanceConfig())
        compiled = openvino.Core().compile_model(path, "CPU", {"NUM_STREAMS": 2})
        requests = [compiled.create_infer_request() for _ in range(2)]
        x = np.ones((2, 3), np.int64)
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda r: r.infer([x, x], share_inputs=True), requests))
        """
    )
    for _ in range(30):
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=120)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_shapes(write):
    """8 layers, each of its own size: with OpenVINO's own limit this grows by a gigabyte."""
    path = write(onnx_models.mlp(widths=(16, *range(64, 128, 8), 2)))
    script = """
        rows = rng.permutation(2000)

        def run(sizes):
            for size in sizes.tolist():
                model.execute([np.zeros((size, 16), np.float32)])
            return resident_mb()

        before = run(rows[:300])
        print(run(rows[300:800]) - before)
    """
    assert growth_mb("openvino", path, script) < 100
