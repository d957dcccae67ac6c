"""The classification extension: the largest values, as ``value:index:label``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from headrace.engine.classify import classes_of
from headrace.errors import InvalidRequest, ModelLoadError
from headrace.testing.fakes import FakeModel
from headrace.types import InferenceRequest, RequestedOutput, Tensor

from .assembled import ROWS, assemble, publish, tensor, tensor_config


def classes(values, count, labels=(), datatype="FP32", *, by_row=True):
    result = classes_of(tensor("y", values, datatype), count, labels, by_row=by_row)
    assert result.datatype == "BYTES"
    assert result.shape == result.data.shape
    return result.data.tolist()


def test_the_largest_with_their_labels():
    assert classes([[0.1, 0.7, 0.2], [3, 1, 2]], 2, ("cat", "dog")) == [
        [b"0.700000:1:dog", b"0.200000:2"],
        [b"3.000000:0:cat", b"2.000000:2"],
    ]


def test_without_rows_the_whole_output_is_one():
    assert classes([0.5, -1.25], 2, by_row=False) == [b"0.500000:0", b"-1.250000:1"]
    assert classes([[0.5], [2]], 1, by_row=False) == [b"2.000000:1"]


@pytest.mark.parametrize(
    ("datatype", "values", "expected"),
    [
        ("INT32", [[-5, 7, 0]], [[b"7:1", b"0:2", b"-5:0"]]),
        ("INT64", [[-(2**63), 2**63 - 1]], [[b"9223372036854775807:1", b"-9223372036854775808:0"]]),
        ("UINT8", [[0, 255, 128]], [[b"255:1", b"128:2", b"0:0"]]),
        ("UINT64", [[0, 2**64 - 1]], [[b"18446744073709551615:1", b"0:0"]]),
        ("FP64", [[1e-7, 123456.7891]], [[b"123456.789100:1", b"0.000000:0"]]),
        ("FP16", [[0.5, 0.25]], [[b"0.500000:0", b"0.250000:1"]]),
    ],
)
def test_every_datatype_with_an_order(datatype, values, expected):
    assert classes(values, 9, datatype=datatype) == expected


def test_bfloat16():
    bits = np.array([[0x3F80, 0x4000]], np.uint16)  # 1.0, 2.0
    result = classes_of(Tensor("y", "BF16", bits.shape, bits), 1, by_row=True)
    assert result.data.tolist() == [[b"2.000000:1"]]


@pytest.mark.parametrize("datatype", ["BYTES", "BOOL"])
def test_what_has_no_order_has_no_classes(datatype):
    with pytest.raises(InvalidRequest, match=f"unsupported type '{datatype}'"):
        classes([[0, 1]] if datatype == "BOOL" else [[b"a", b"b"]], 1, datatype=datatype)


def test_equal_values_keep_their_order_and_nan_is_last():
    values = [[np.nan, 1, 1, -np.inf, np.inf]]
    got = [int(each.split(b":")[1]) for each in classes(values, 5)[0]]
    assert got == [4, 1, 2, 3, 0]


@given(
    rows=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 12)),
        elements=st.floats(-100, 100, width=32),
    ),
    count=st.integers(1, 15),
)
def test_what_is_given_is_sorted_and_nothing_larger_is_left_out(rows, count):
    for row, got in zip(rows, classes(rows, count), strict=True):
        indices = [int(each.split(b":")[1]) for each in got]
        assert len(indices) == len(set(indices)) == min(count, len(row))
        assert indices == sorted(indices, key=lambda i: (-row[i], i))
        assert row[indices[-1]] >= max(
            (v for i, v in enumerate(row) if i not in indices), default=-1e9
        )


def wanted(count: int, rows=((1, 5, 2, 3),)) -> InferenceRequest:
    return InferenceRequest("m", [tensor("x", rows)], outputs=[RequestedOutput("y", None, count)])


async def test_labels_come_from_the_file_beside_the_model(bench, tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\n")
    config = {"outputs": (tensor_config("y", (-1, 4), labels="labels.txt"),)}
    publish(bench.engine, assemble(FakeModel(), folder=tmp_path, **config))
    answer = await bench.engine.infer(wanted(2, [[1, 5, 2, 3], [8, 0, 0, 0]]))

    assert answer.outputs[0].data.tolist() == [
        [b"10.000000:1:b", b"6.000000:3"],
        [b"16.000000:0:a", b"0.000000:1:b"],
    ]


async def test_labels_lie_beside_the_version_folders_too(bench, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "labels.txt").write_text("a\nb\n")
    config = {"outputs": (tensor_config("y", (-1, 4), labels="labels.txt"),)}
    publish(bench.engine, assemble(FakeModel(), folder=tmp_path / "1", **config))
    answer = await bench.engine.infer(wanted(1))
    assert answer.outputs[0].data.tolist() == [[b"10.000000:1:b"]]


@pytest.mark.parametrize("name", ["gone.txt", "../outside.txt", "/etc/hostname"])
def test_a_file_of_labels_that_is_not_there_or_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "outside.txt").write_text("a\n")
    folder = tmp_path / "m"
    folder.mkdir()
    config = {"outputs": (tensor_config("y", (-1, 4), labels=name),)}
    with pytest.raises(ModelLoadError, match=f"failed to read '{name}'"):
        assemble(FakeModel(), folder=folder, **config)


async def test_without_a_batch_axis_the_answer_has_none(bench):
    config = {"outputs": (tensor_config("y", (-1, 4)),), "triton_config": {"max_batch_size": 0}}
    publish(bench.engine, assemble(FakeModel(), **config))
    assert (await bench.engine.infer(wanted(1))).outputs[0].data.tolist() == [b"10.000000:1"]


async def test_rows_that_are_declared_count_even_if_they_cannot_be_batched(bench):
    config = {"outputs": (tensor_config("y", (-1, 4)),), "triton_config": ROWS}
    served = assemble(FakeModel(), **config)
    served.profile = type(served.profile)()  # what measuring found: not batchable
    publish(bench.engine, served)
    assert (await bench.engine.infer(wanted(1))).outputs[0].data.tolist() == [[b"10.000000:1"]]


async def test_names_that_a_task_found_are_labels(bench):
    served = assemble(FakeModel(), task_options={"labels": ["a", "b", "c", "d"]})
    publish(bench.engine, served)
    assert (await bench.engine.infer(wanted(1))).outputs[0].data.tolist() == [[b"10.000000:1:b"]]
