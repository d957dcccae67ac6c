"""Made-up requests run before a model is ready, and a failing one keeps it from being so."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from headrace.config import WarmupConfig
from headrace.errors import InferenceFailed, ModelLoadError
from headrace.testing.fakes import FakeModel
from headrace.types import TensorSpec

from .assembled import ROWS, assemble, tensor_config

X = {"inputs": (tensor_config("x", (-1, 4)),), "triton_config": ROWS}


def warmup(data="zero", *, rows=1, count=1, name="w", shape=(4,), datatype="FP32"):
    said = {"x": {"datatype": datatype, "shape": shape, "data": data}}
    return (WarmupConfig(name=name, rows=rows, count=count, inputs=said),)


def test_it_runs_as_often_and_as_large_as_said():
    model = FakeModel()
    assemble(model, warmup=warmup(rows=3, count=2), **X)
    assert [call[0].tolist() for call in model.calls] == [[[0] * 4] * 3] * 2


@pytest.mark.parametrize("shape", [(4,), (-1, 4), (1, 4)])
def test_a_shape_may_count_rows_or_not(shape):
    model = FakeModel()
    assemble(model, warmup=warmup(rows=2, shape=shape), **X)
    assert model.calls[0][0].shape == (2, 4)


def test_random_data_are_other_data_each_time_and_the_same_at_every_start():
    calls = []
    for _ in range(2):
        model = FakeModel()
        assemble(model, warmup=warmup("random", count=2), **X)
        calls.append([call[0].tolist() for call in model.calls])
    assert calls[0] == calls[1]
    assert calls[0][0] != calls[0][1]


def test_data_of_a_file(tmp_path):
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "raw").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    model = FakeModel()
    assemble(model, folder=tmp_path, warmup=warmup("raw", rows=2), **X)
    assert model.calls[0][0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_strings_of_a_file(tmp_path):
    (tmp_path / "warmup").mkdir()
    raw = b"".join(struct.pack("<I", len(text)) + text for text in (b"", b"abc"))
    (tmp_path / "warmup" / "raw").write_bytes(raw)
    model = FakeModel(lambda x: [x], inputs=(TensorSpec("x", "BYTES", (-1, 2)),))
    inputs = (tensor_config("x", (-1, 2), "BYTES"),)
    said = warmup("raw", shape=(2,), datatype="BYTES")
    assemble(model, folder=tmp_path, warmup=said, inputs=inputs, triton_config=ROWS)
    assert model.calls[0][0].tolist() == [[b"", b"abc"]]


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT64", "FP16", "BF16", "FP64", "BYTES"])
@pytest.mark.parametrize("data", ["zero", "random"])
def test_data_of_every_datatype(datatype, data):
    model = FakeModel(lambda x: [x], inputs=(TensorSpec("x", datatype, (-1, 2)),))
    model.outputs = (TensorSpec("y", datatype, (-1, 2)),)
    assemble(model, warmup=warmup(data, shape=(2,), datatype=datatype))
    assert model.calls[0][0].shape == (1, 2)


def test_the_reshape_of_a_real_request_is_made_here_too():
    model = FakeModel()
    inputs = (tensor_config("x", (-1, 2, 2), model_shape=(-1, 4)),)
    assemble(model, warmup=warmup(shape=(2, 2)), inputs=inputs, triton_config=ROWS)
    assert model.calls[0][0].shape == (1, 4)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (warmup(shape=(5,)), "unexpected shape for input 'x'"),
        (warmup(datatype="INT32"), "data-type is 'INT32', but model 'm' expects 'FP32'"),
        (warmup("gone"), "failed to read 'warmup/gone'"),
        (warmup("short"), "has 16 bytes, its file 3"),
        (warmup(datatype="FP31"), "unknown datatype 'FP31'"),
    ],
)
def test_one_that_cannot_be_made_keeps_the_model_from_being_ready(tmp_path, said, message):
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "short").write_bytes(b"abc")
    with pytest.raises(ModelLoadError, match=f"warmup sample 'w' for model 'm': .*{message}"):
        assemble(FakeModel(), folder=tmp_path, warmup=said, **X)


def test_a_model_that_fails_on_it_is_not_ready():
    model = FakeModel()
    model.fail_next(InferenceFailed("cold"))
    with pytest.raises(ModelLoadError, match="failed to run warmup sample 'w' for model 'm': cold"):
        assemble(model, warmup=warmup(), **X)


class Decoupled:
    """Answers later, from no thread in particular; fails where it is told to."""

    takes_requests = decoupled = True
    inputs = (TensorSpec("x", "FP32", (-1, 4)),)
    outputs = (TensorSpec("y", "FP32", (-1, 4)),)
    concurrency = 1

    def __init__(self, last=None) -> None:
        self.last = last
        self.asked = []

    def execute_requests(self, requests, emit) -> None:
        for request in requests:
            self.asked.append(request.arrays[0])
            emit(request.key, [request.arrays[0]], False)
            emit(request.key, self.last, True)

    def unload(self) -> None:
        pass


def test_a_model_of_any_number_of_answers_is_heard_to_the_end():
    model = Decoupled()
    outputs = (tensor_config("y", (-1, 4)),)
    assemble(model, warmup=warmup(rows=2), outputs=outputs, **X)
    assert [array.shape for array in model.asked] == [(2, 4)]
    with pytest.raises(ModelLoadError, match="no breath"):
        assemble(Decoupled(InferenceFailed("no breath")), warmup=warmup(), outputs=outputs, **X)
