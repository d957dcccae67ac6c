"""The reader that stands between a model file and the runtimes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from headrace.errors import ModelLoadError
from headrace.repository import onnx_check, onnx_tensors
from headrace.repository.onnx_check import OnnxSummary, check_onnx
from tests.fuzzing import examples


def linear_model(**extra: object) -> onnx.ModelProto:
    """x [batch, 4] @ w [4, 2] + b -> y [batch, 2]."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"]),
            helper.make_node("Add", ["xw", "b"], ["y"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.ones((4, 2), np.float32), "w"),
            numpy_helper.from_array(np.zeros(2, np.float32), "b"),
        ],
    )
    graph.initializer.extend(extra.pop("initializers", []))  # type: ignore[arg-type]
    graph.sparse_initializer.extend(extra.pop("sparse", []))  # type: ignore[arg-type]
    graph.node.extend(extra.pop("nodes", []))  # type: ignore[arg-type]
    assert not extra
    return helper.make_model(
        graph, producer_name="test", opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def check(folder: Path, model: onnx.ModelProto | bytes) -> OnnxSummary:
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return check_onnx(path, folder)


def external(name: str, dims: list[int], **where: object) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_summary_tells_the_signature_and_the_operators(tmp_path: Path) -> None:
    summary = check(tmp_path, linear_model())
    assert summary.ir_version == 8
    assert summary.opsets == {"": 17}
    assert summary.producer == "test"
    assert summary.operators == {"Add": 1, "MatMul": 1}
    assert summary.weight_bytes == (8 + 2) * 4
    (x,), (y,) = summary.inputs, summary.outputs
    assert (x.name, x.kind, x.datatype, x.shape) == ("x", "tensor", "FP32", ("batch", 4))
    assert (y.name, y.shape) == ("y", ("batch", 2))


def test_free_dimensions_without_a_name_are_minus_one(tmp_path: Path) -> None:
    model = linear_model()
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].Clear()
    dims[1].dim_value = 0
    model.graph.output[0].type.tensor_type.ClearField("shape")
    summary = check(tmp_path, model)
    assert summary.inputs[0].shape == (-1, -1)
    assert summary.outputs[0].shape is None


def test_initialisers_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    model = linear_model()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 2]))
    assert [value.name for value in check(tmp_path, model).inputs] == ["x"]


def test_outputs_that_are_no_tensors_are_told_apart(tmp_path: Path) -> None:
    model = linear_model()
    element = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    model.graph.output.append(
        helper.make_value_info("probabilities", helper.make_sequence_type_proto(element))
    )
    assert check(tmp_path, model).outputs[1].kind == "sequence"


@pytest.mark.parametrize(
    ("dtype", "raw"),
    [
        *((dtype, raw) for raw in (True, False) for dtype in (
            TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32,
            TensorProto.INT8, TensorProto.UINT8, TensorProto.UINT64, TensorProto.BOOL,
            TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.COMPLEX64,
            TensorProto.COMPLEX128, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.UINT4,
        )),
    ],
)  # fmt: skip
@pytest.mark.parametrize("count", [0, 1, 7])
def test_every_encoding_that_onnx_writes_is_accepted(
    tmp_path: Path, dtype: int, raw: bool, count: int
) -> None:
    values = np.ones(count, helper.tensor_dtype_to_np_dtype(dtype))
    if raw:
        tensor = numpy_helper.from_array(values, "t")
    else:
        tensor = helper.make_tensor("t", dtype, [count], values)
    assert tensor.data_type == dtype
    check(tmp_path, linear_model(initializers=[tensor]))


def test_strings_are_counted(tmp_path: Path) -> None:
    tensor = helper.make_tensor("t", TensorProto.STRING, [2], [b"a", b"b"])
    check(tmp_path, linear_model(initializers=[tensor]))
    tensor.dims[0] = 3
    with pytest.raises(ModelLoadError, match="needs 3 strings, but has 2"):
        check(tmp_path, linear_model(initializers=[tensor]))


@pytest.mark.parametrize(
    "dims",
    [[2**32, 2**32], [2**62, 4], [2**63 - 1], [5], [3], [2, 2, 2], [-1, -4], [-4], [0]],
)
def test_a_size_that_disagrees_with_the_data_is_refused(tmp_path: Path, dims: list[int]) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(16))
    with pytest.raises(ModelLoadError, match="'t'"):
        check(tmp_path, linear_model(initializers=[tensor]))


@pytest.mark.parametrize("field", ["float_data", "int32_data", "int64_data", "double_data"])
def test_typed_data_must_be_as_long_as_the_shape_says(tmp_path: Path, field: str) -> None:
    types = {"float_data": 1, "int32_data": 6, "int64_data": 7, "double_data": 11}
    tensor = TensorProto(name="t", data_type=types[field], dims=[1000])
    getattr(tensor, field).extend([1] * 4)
    with pytest.raises(ModelLoadError, match="needs 1,000 values"):
        check(tmp_path, linear_model(initializers=[tensor]))


def test_a_tensor_without_data_is_refused(tmp_path: Path) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[10_000_000])
    with pytest.raises(ModelLoadError, match="needs 40,000,000 bytes, but has 0"):
        check(tmp_path, linear_model(initializers=[tensor]))


def test_tensors_in_attributes_and_subgraphs_are_checked(tmp_path: Path) -> None:
    bad = TensorProto(name="bad", data_type=TensorProto.FLOAT, dims=[99], raw_data=bytes(4))
    constant = helper.make_node("Constant", [], ["c"], value=bad)
    branch = helper.make_graph([constant], "branch", [], [])
    for node in (
        constant,
        helper.make_node("If", ["x"], ["z"], then_branch=branch),
        helper.make_node("Custom", ["x"], ["z"], domain="mine", graphs=[branch]),
        helper.make_node("Custom", ["x"], ["z"], domain="mine", tensors=[bad]),
    ):
        with pytest.raises(ModelLoadError, match="'bad' of shape"):
            check(tmp_path, linear_model(nodes=[node]))


def test_tensors_in_functions_are_checked(tmp_path: Path) -> None:
    bad = TensorProto(name="bad", data_type=TensorProto.FLOAT, dims=[99], raw_data=bytes(4))
    model = linear_model()
    model.functions.append(
        helper.make_function(
            "mine", "F", [], ["c"], [helper.make_node("Constant", [], ["c"], value=bad)],
            [helper.make_opsetid("", 17)],
        )
    )  # fmt: skip
    with pytest.raises(ModelLoadError, match="'bad' of shape"):
        check(tmp_path, model)


def test_lists_of_an_attribute_do_not_hide_what_follows(tmp_path: Path) -> None:
    bad = TensorProto(name="bad", data_type=TensorProto.FLOAT, dims=[99], raw_data=bytes(4))
    attribute = onnx.AttributeProto(
        name="all",
        floats=[0.5] * 300,
        ints=[-1, 0, 127, 128, 2**40] * 100,
        strings=[b"", b"LEAF", b"x" * 127, b"y" * 300],
        tensors=[bad],
    )
    node = helper.make_node("Custom", ["x"], ["z"], domain="mine")
    node.attribute.append(attribute)
    with pytest.raises(ModelLoadError, match="'bad' of shape"):
        check(tmp_path, linear_model(nodes=[node]))


def test_nesting_is_bounded(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["z"])
    for _ in range(onnx_check.MAX_DEPTH + 1):
        node = helper.make_node(
            "If", ["x"], ["z"], then_branch=helper.make_graph([node], "g", [], [])
        )
    with pytest.raises(ModelLoadError, match="nested more than 32 deep"):
        check(tmp_path, linear_model(nodes=[node]))


def test_a_message_that_protobuf_would_merge_is_refused(tmp_path: Path) -> None:
    model = linear_model()
    once = model.SerializeToString()
    graph_again = onnx.ModelProto(graph=model.graph).SerializeToString()
    with pytest.raises(ModelLoadError, match="two graphs"):
        check(tmp_path, once + graph_again)


def sparse(dense: list[int], values: int) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(values, np.float32), "s"),
        numpy_helper.from_array(np.arange(values, dtype=np.int64), "i"),
        dense,
    )


def test_sparse_tensors_may_be_large_but_not_absurd(tmp_path: Path) -> None:
    summary = check(tmp_path, linear_model(sparse=[sparse([1000, 1000], 10)]))
    assert summary.weight_bytes >= 4_000_000
    with pytest.raises(ModelLoadError, match="claim 4,000,000,"):
        check(tmp_path, linear_model(sparse=[sparse([1_000_000_000], 10)]))
    with pytest.raises(ModelLoadError, match="the limit is"):
        check(tmp_path, linear_model(sparse=[sparse([2**40, 2**40], 10)]))


class TestExternalData:
    def test_inside_the_folder_is_fine(self, tmp_path: Path) -> None:
        (tmp_path / "weights.bin").write_bytes(bytes(64))
        tensor = external("t", [4], location="weights.bin", offset=48, length=16)
        summary = check(tmp_path, linear_model(initializers=[tensor]))
        assert summary.external_files == {"weights.bin": 64}

    def test_offset_and_length_may_be_left_out(self, tmp_path: Path) -> None:
        (tmp_path / "weights.bin").write_bytes(bytes(16))
        check(tmp_path, linear_model(initializers=[external("t", [4], location="weights.bin")]))

    @pytest.mark.parametrize(
        ("where", "complaint"),
        [
            ({"offset": 50}, "wants bytes 50 to 66"),
            ({"offset": 2**62}, "wants bytes"),
            ({"length": 12}, "needs 16 bytes, but has 12"),
            ({"offset": "-1"}, "offset '-1' is not a number"),
            ({"offset": "1e3"}, "is not a number"),
            ({"length": "\u0664"}, "is not a number"),
        ],
    )
    def test_stretches_outside_the_file_are_refused(
        self, tmp_path: Path, where: dict[str, object], complaint: str
    ) -> None:
        (tmp_path / "weights.bin").write_bytes(bytes(64))
        tensor = external("t", [4], location="weights.bin", **where)
        with pytest.raises(ModelLoadError, match=complaint):
            check(tmp_path, linear_model(initializers=[tensor]))

    @pytest.mark.parametrize(
        "location",
        ["../secret", "/etc/hostname", "a/../../secret", "..\\secret", "missing", "", ".", "a\0b",
         "*/_ORT_MEM_ADDR_/*"],
    )  # fmt: skip
    def test_anything_but_a_file_inside_the_folder_is_refused(
        self, tmp_path: Path, location: str
    ) -> None:
        folder = tmp_path / "model"
        (folder / "a").mkdir(parents=True)
        (tmp_path / "secret").write_bytes(bytes(16))
        with pytest.raises(ModelLoadError):
            check(folder, linear_model(initializers=[external("t", [4], location=location)]))

    def test_links_may_not_leave_the_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        (tmp_path / "secret").write_bytes(bytes(16))
        (folder / "weights.bin").symlink_to("../secret")
        model = linear_model(initializers=[external("t", [4], location="weights.bin")])
        with pytest.raises(ModelLoadError, match="outside the model's folder"):
            check(folder, model)

    def test_links_inside_the_folder_are_fine(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_bytes(bytes(16))
        (tmp_path / "weights.bin").symlink_to("data")
        check(tmp_path, linear_model(initializers=[external("t", [4], location="weights.bin")]))

    def test_hard_links_are_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        (tmp_path / "secret").write_bytes(bytes(16))
        os.link(tmp_path / "secret", folder / "weights.bin")
        model = linear_model(initializers=[external("t", [4], location="weights.bin")])
        with pytest.raises(ModelLoadError, match="hard links") as caught:
            check(folder, model)
        assert "cp -r" in caught.value.hint

    def test_a_location_said_twice_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "weights.bin").write_bytes(bytes(16))
        tensor = external("t", [4], location="weights.bin")
        tensor.external_data.add(key="location", value="../other")
        with pytest.raises(ModelLoadError, match="which one file"):
            check(tmp_path, linear_model(initializers=[tensor]))

    def test_entries_without_the_flag_are_checked_as_well(self, tmp_path: Path) -> None:
        tensor = external("t", [4], location="/etc/hostname")
        tensor.data_location = TensorProto.DEFAULT
        with pytest.raises(ModelLoadError, match="not a path inside"):
            check(tmp_path, linear_model(initializers=[tensor]))

    def test_one_file_shared_many_times_is_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnx_tensors, "EXPANSION_FLOOR_BYTES", 0)
        monkeypatch.setattr(onnx_tensors, "MAX_EXPANSION", 2)
        (tmp_path / "weights.bin").write_bytes(bytes(40_000))
        tensors = [external(f"t{i}", [10_000], location="weights.bin") for i in range(4)]
        check(tmp_path, linear_model(initializers=tensors[:2]))
        with pytest.raises(ModelLoadError, match="the files hold"):
            check(tmp_path, linear_model(initializers=tensors))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b"\x80\x04\x95" + bytes(100), "a Python pickle"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (bytes([64]) + bytes(7) + b'{"w":{}}', "safetensors"),
        (b"GGUF" + bytes(100), "GGUF"),
        (b"hello, I am no model", "text"),
        (bytes(4096), "zero bytes"),
        (b"\x08\x08", "no graph"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(ModelLoadError, match=complaint) as caught:
        check(tmp_path, content)
    assert "model.onnx" in caught.value.message
    assert caught.value.hint


def test_a_graph_without_outputs_is_refused(tmp_path: Path) -> None:
    model = linear_model()
    del model.graph.output[:]
    with pytest.raises(ModelLoadError, match="no outputs"):
        check(tmp_path, model)


def test_missing_files_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="No such file"):
        check_onnx(tmp_path / "none.onnx", tmp_path)
    with pytest.raises(ModelLoadError, match="not a regular file"):
        check_onnx(tmp_path, tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelLoadError, match="not a regular file"):
        check_onnx(tmp_path / "pipe.onnx", tmp_path)


def test_every_truncation_of_a_model_is_refused(tmp_path: Path) -> None:
    whole = linear_model().SerializeToString()
    graph_starts = whole.index(b"linear") - 40
    for length in range(max(graph_starts, 0), len(whole)):
        try:
            check(tmp_path, whole[:length])
        except ModelLoadError:
            continue
        # A cut between two top-level fields leaves a shorter but whole model.
        onnx.load_model_from_string(whole[:length])


def test_the_number_of_fields_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_check, "MAX_FIELDS", 1000)
    check(tmp_path, linear_model())
    with pytest.raises(ModelLoadError, match="more fields"):
        check(tmp_path, linear_model().SerializeToString() + b"\x28\x01" * 2000)


fuzz = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(content=st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelLoadError):
        check(tmp_path, content)


def rich_model() -> bytes:
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "branch", [], [])
    return linear_model(
        initializers=[
            external("e", [4], location="weights.bin", offset=0, length=16),
            helper.make_tensor("i", TensorProto.INT64, [3], [1, 2, 300]),
            helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"]),
        ],
        sparse=[sparse([100], 3)],
        nodes=[
            helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch),
            helper.make_node(
                "Trees", ["x"], ["t"], domain="ml", values=[0.5] * 9, ids=[1, 300] * 4
            ),
        ],
    ).SerializeToString()


RICH = rich_model()
MUTATION = st.tuples(
    st.sampled_from(("flip", "delete", "insert", "repeat")),
    st.integers(0, len(RICH) - 1),
    st.binary(min_size=1, max_size=12),
)


def mutate(content: bytes, mutations: list[tuple[str, int, bytes]]) -> bytes:
    for kind, at, data in mutations:
        if kind == "flip":
            content = content[:at] + data + content[at + len(data) :]
        elif kind == "delete":
            content = content[:at] + content[at + len(data) :]
        elif kind == "insert":
            content = content[:at] + data + content[at:]
        else:
            content = content[: at + 40] + content[at : at + 40] + content[at + 40 :]
    return content


@fuzz
@given(mutations=st.lists(MUTATION, min_size=1, max_size=4))
def test_mutated_models_are_read_or_refused(
    tmp_path: Path, mutations: list[tuple[str, int, bytes]]
) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    try:
        summary = check(tmp_path, mutate(RICH, mutations))
    except ModelLoadError:
        return
    assert 0 <= summary.weight_bytes <= onnx_tensors.EXPANSION_FLOOR_BYTES + 100 * 4096


@pytest.mark.slow
@settings(
    max_examples=examples(2_000), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(mutations=st.lists(MUTATION, min_size=1, max_size=6))
def test_many_mutated_models_are_read_or_refused(
    tmp_path: Path, mutations: list[tuple[str, int, bytes]]
) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    try:
        check(tmp_path, mutate(RICH, mutations))
    except ModelLoadError:
        pass
