"""Every way in which a request can disagree with a signature, and the texts clients match."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.config import ModelConfig
from headrace.engine.served import Profile, ServedModel
from headrace.engine.validate import check_inputs, rows_of
from headrace.errors import InvalidRequest
from headrace.types import InferenceRequest, ModelMetadata, RequestedOutput, Tensor, TensorSpec

from .conftest import ScriptedModel

INPUTS = (
    TensorSpec("a", "FP32", (-1, 3)),
    TensorSpec("b", "INT64", (-1,)),
    TensorSpec("c", "FP32", (-1, 1), optional=True),
)
OUTPUTS = (TensorSpec("y", "FP32", (-1,)),)


def served(**config) -> ServedModel:
    model = ServedModel(
        metadata=ModelMetadata("M", ("1",), "", INPUTS, OUTPUTS),
        version="1",
        loaded=ScriptedModel(INPUTS),
        task=None,
        runtime="test",
        config=ModelConfig(**config),
    )
    model.profile = Profile(max_rows=8, batchable=True)
    model.batchable = True
    return model


def tensor(name, shape, datatype="FP32", dtype=np.float32):
    return Tensor(name, datatype, shape, np.zeros(shape, dtype))


A, B = tensor("a", (2, 3)), tensor("b", (2,), "INT64", np.int64)


def ask(*inputs, outputs=None):
    return InferenceRequest("M", list(inputs), outputs=outputs)


def test_arrays_come_in_the_models_order():
    arrays = check_inputs(ask(B, A), served())

    assert [a is b for a, b in zip(arrays, (A.data, B.data, None), strict=True)] == [True] * 3
    assert rows_of(arrays, served()) == 2


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (ask(A, B, tensor("z", (2,))), "unexpected inference input 'z' for model 'M'"),
        (
            ask(tensor("a", (2, 3), "INT32"), B),
            "inference input 'a' data-type is 'INT32', but model 'M' expects 'FP32'",
        ),
        (
            ask(tensor("a", (2, 4)), B),
            r"unexpected shape for input 'a' for model 'M'. Expected \[-1,3\], got \[2,4\]",
        ),
        (ask(tensor("a", (3,)), B), r"unexpected shape for input 'a'.*got \[3\]"),
        (ask(A, A, B), "input 'a' already exists in request"),
        (ask(A), r"missing required input\(s\) \['b'\]"),
        (ask(A, B, outputs=[RequestedOutput("q")]), "unexpected inference output 'q' for model"),
        (
            ask(A, B, outputs=[RequestedOutput("y"), RequestedOutput("y")]),
            "output 'y' already exists in request",
        ),
    ],
)
def test_disagreements_are_named(request_, text):
    with pytest.raises(InvalidRequest, match=text):
        check_inputs(request_, served())


def test_inputs_must_agree_on_the_number_of_rows():
    arrays = check_inputs(ask(A, tensor("b", (5,), "INT64", np.int64)), served())
    with pytest.raises(InvalidRequest, match=r"same first dimension, got \{'a': 2, 'b': 5\}"):
        rows_of(arrays, served())


def test_no_rows_is_no_request():
    arrays = check_inputs(ask(tensor("a", (0, 3)), tensor("b", (0,), "INT64", np.int64)), served())
    with pytest.raises(InvalidRequest, match="at least one row"):
        rows_of(arrays, served())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_numbers_are_refused_only_where_told(value):
    bad = tensor("a", (2, 3))
    bad.data[1, 1] = value

    check_inputs(ask(bad, B), served())
    with pytest.raises(InvalidRequest, match="'a' for model 'M' holds NaN or infinity"):
        check_inputs(ask(bad, B), served(allow_nonfinite=False))
