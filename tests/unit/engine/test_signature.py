"""The public signature is the declared one; the model sees its own."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.signature import Reshape
from headrace.errors import InvalidRequest, ModelLoadError
from headrace.testing.fakes import FakeModel
from headrace.types import TensorSpec

from .assembled import ROWS, ask, assemble, publish, tensor, tensor_config


def two_and_two() -> FakeModel:
    """``a``, ``b`` [-1, 2] -> ``sum``, ``difference``."""
    return FakeModel(
        lambda a, b: [a + b, a - b],
        inputs=(TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (-1, 2))),
        outputs=(TensorSpec("sum", "FP32", (-1, 2)), TensorSpec("difference", "FP32", (-1, 2))),
    )


A, B = tensor_config("a", (-1, 2)), tensor_config("b", (-1, 2))
SUM, DIFFERENCE = tensor_config("sum", (-1, 2)), tensor_config("difference", (-1, 2))


async def test_declared_order_is_what_is_seen_and_the_models_own_is_what_runs(bench):
    served = assemble(two_and_two(), inputs=(B, A), outputs=(DIFFERENCE, SUM))
    publish(bench.engine, served)
    assert [spec.name for spec in served.metadata.inputs] == ["b", "a"]
    assert [spec.name for spec in served.metadata.outputs] == ["difference", "sum"]

    answer = await bench.engine.infer(ask(tensor("b", [[1, 2]]), tensor("a", [[10, 20]])))

    assert [(o.name, o.data.tolist()) for o in answer.outputs] == [
        ("difference", [[9, 18]]),
        ("sum", [[11, 22]]),
    ]


async def test_only_declared_outputs_are_served(bench):
    publish(bench.engine, assemble(two_and_two(), outputs=(DIFFERENCE,)))
    both = tensor("a", [[1, 1]]), tensor("b", [[1, 0]])

    answer = await bench.engine.infer(ask(*both))
    assert [(o.name, o.data.tolist()) for o in answer.outputs] == [("difference", [[0, 1]])]
    with pytest.raises(InvalidRequest, match="unexpected inference output 'sum' for model 'm'"):
        await bench.engine.infer(ask(*both, outputs=["sum"]))


async def test_reshape_on_the_way_in_and_out(bench):
    model = FakeModel(lambda x: [x * 2])
    model.inputs = (TensorSpec("x", "FP32", (-1, 4)),)
    model.outputs = (TensorSpec("y", "FP32", (-1, 4)),)
    publish(
        bench.engine,
        assemble(
            model,
            inputs=(tensor_config("x", (-1, 2, 2), model_shape=(-1, 4)),),
            outputs=(tensor_config("y", (-1, 4, 1), model_shape=(-1, 4)),),
        ),
    )
    asked = [ask(tensor("x", [[[i, 1], [2, 3]]])) for i in range(5)]
    answers = await asyncio.gather(*map(bench.engine.infer, asked))

    for i, answer in enumerate(answers):
        assert answer.outputs[0].shape == (1, 4, 1)
        assert answer.outputs[0].data.tolist() == [[[2 * i], [2], [4], [6]]]
    assert {call[0].shape[1:] for call in model.calls} == {(4,)}
    with pytest.raises(InvalidRequest, match="Expected \\[-1,2,2\\], got \\[1,4\\]"):
        await bench.engine.infer(ask(tensor("x", [[1, 2, 3, 4]])))


async def test_without_a_batch_axis_every_request_runs_alone_in_its_own_shape(bench):
    model = FakeModel(
        lambda a, b: [np.concatenate([a, b])],
        inputs=(TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))),
        outputs=(TensorSpec("y", "FP32", (-1,)),),
    )
    config = {
        "inputs": (tensor_config("a", (-1,)), tensor_config("b", (-1,))),
        "outputs": (tensor_config("y", (-1,)),),
        "triton_config": {"max_batch_size": 0},
    }
    publish(bench.engine, assemble(model, **config))
    answers = await asyncio.gather(
        *(bench.engine.infer(ask(tensor("a", [i]), tensor("b", [i + 1, i + 2]))) for i in range(4))
    )

    assert [a.outputs[0].data.tolist() for a in answers] == [[i, i + 1, i + 2] for i in range(4)]
    assert len(model.calls) == 4


async def test_more_rows_than_declared_are_refused(bench):
    publish(bench.engine, assemble(two_and_two(), inputs=(A, B), triton_config=ROWS))
    rows = [[1, 1]] * 9
    with pytest.raises(InvalidRequest, match="batch-size must be <= 8 for 'm'"):
        await bench.engine.infer(ask(tensor("a", rows), tensor("b", rows)))
    assert bench.watcher.ends == ["fail:batch_too_large"]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (
            {"inputs": (tensor_config("c", (-1, 2)), A, B)},
            "unexpected inference input 'c', allowed",
        ),
        ({"outputs": (tensor_config("total", (-1, 2)),)}, "unexpected inference output 'total'"),
        (
            {"inputs": (A, tensor_config("b", (-1, 2), "INT32"))},
            "unexpected datatype TYPE_INT32 for inference input 'b', expecting TYPE_FP32",
        ),
        (
            {"outputs": (tensor_config("sum", (-1, 2), "BYTES"),)},
            "unexpected datatype TYPE_STRING for inference output 'sum'",
        ),
        (
            {"inputs": (A, tensor_config("b", (-1, 3)))},
            "tensor 'b': the model expects 2 dimensions \\(shape \\[-1,2\\]\\)",
        ),
        ({"inputs": (A, tensor_config("b", (-1, 2, 1)))}, "specifies 3 dimensions"),
        ({"inputs": (A,)}, "configuration expects 1 inputs, model provides 2"),
    ],
)
def test_a_declaration_that_is_not_the_models_is_refused_at_load(declared, message):
    with pytest.raises(ModelLoadError, match=f"unable to load model 'm', .*{message}"):
        assemble(two_and_two(), **declared)


def test_a_model_of_one_row_cannot_be_declared_to_batch():
    model = FakeModel(inputs=(TensorSpec("x", "FP32", (1, 4)),))
    with pytest.raises(ModelLoadError, match="the first dimension must be -1"):
        assemble(model, inputs=(tensor_config("x", (-1, 4)),), triton_config=ROWS)


async def test_what_the_declaration_leaves_open_the_model_still_decides(bench):
    publish(bench.engine, assemble(FakeModel(), inputs=(tensor_config("x", (-1, -1)),)))
    with pytest.raises(InvalidRequest, match="Expected \\[-1,4\\], got \\[1,3\\]"):
        await bench.engine.infer(ask(tensor("x", [[1, 2, 3]])))


async def test_an_optional_input_may_be_left_out(bench):
    model = two_and_two()
    model.compute = lambda a, b: [a if b is None else a + b, a]
    b = tensor_config("b", (-1, 2), optional=True)
    publish(bench.engine, assemble(model, inputs=(A, b)))

    answers = await asyncio.gather(
        bench.engine.infer(ask(tensor("a", [[1, 2]]))),
        bench.engine.infer(ask(tensor("a", [[1, 2]]), tensor("b", [[1, 1]]))),
    )
    assert [a.outputs[0].data.tolist() for a in answers] == [[[1, 2]], [[2, 3]]]
    with pytest.raises(InvalidRequest, match="missing required input\\(s\\) \\['a'\\]"):
        await bench.engine.infer(ask(tensor("b", [[1, 2]])))


def test_an_undeclared_model_has_nothing_between_check_and_queue(bench):
    served = publish(bench.engine, assemble(two_and_two()))
    assert served.intake is None
    assert served.finish is None


class Requests:
    """A model that is given requests: echoes ``x``, gives ``y`` only to those that ask."""

    takes_requests = True
    decoupled = False

    def __init__(self) -> None:
        self.inputs = (TensorSpec("x", "FP32", (-1, -1)),)
        self.outputs = (TensorSpec("x2", "FP32", (-1, -1)), TensorSpec("y", "FP32", (-1, -1)))
        self.concurrency = 1
        self.batches: list[int] = []

    def execute_requests(self, requests, emit) -> None:
        self.batches.append(len(requests))
        for request in requests:
            x = request.arrays[0]
            wants = request.outputs is None or "y" in request.outputs
            emit(request.key, [x * 2, x + 1 if wants else None], True)

    def unload(self) -> None:
        pass


REQUESTS = {
    "inputs": (tensor_config("x", (-1, -1)),),
    "outputs": (tensor_config("x2", (-1, -1)), tensor_config("y", (-1, -1))),
}


async def test_a_model_that_is_given_requests_is_trusted_to_batch_as_configured(bench):
    model = Requests()
    publish(bench.engine, assemble(model, triton_config=ROWS, **REQUESTS))
    first = asyncio.gather(
        *(bench.engine.infer(ask(tensor("x", [[i]]), outputs=["x2"])) for i in range(8))
    )
    answers = await first

    assert [[o.name for o in a.outputs] for a in answers] == [["x2"]] * 8
    assert [a.outputs[0].data.tolist() for a in answers] == [[[2 * i]] for i in range(8)]
    assert model.batches == [8]


async def test_a_model_that_found_out_its_signature_says_itself_what_it_takes(bench):
    model = Requests()
    model.max_batch_size = 2
    publish(bench.engine, assemble(model))
    asked = [ask(tensor("x", [[i]])) for i in range(4)]
    await asyncio.gather(*map(bench.engine.infer, asked))

    assert model.batches == [2, 2]
    with pytest.raises(InvalidRequest, match="batch-size must be <= 2"):
        await bench.engine.infer(ask(tensor("x", [[1]] * 3)))


async def test_a_model_that_is_given_requests_without_batching_gets_them_one_by_one(bench):
    model = Requests()
    publish(bench.engine, assemble(model, triton_config={"max_batch_size": 0}, **REQUESTS))
    asked = [ask(tensor("x", [[i, i]])) for i in range(3)]
    answers = await asyncio.gather(*map(bench.engine.infer, asked))

    assert [a.outputs[1].data.tolist() for a in answers] == [[[i + 1, i + 1]] for i in range(3)]
    assert model.batches == [1, 1, 1]


@given(rows=st.integers(1, 4), free=st.integers(1, 5))
def test_free_dimensions_pair_in_order(rows, free):
    array = np.arange(rows * free * 6).reshape(rows, free, 6)
    there = Reshape((-1, -1, 6), (-1, 2, -1, 3))(array)
    assert there.shape == (rows, 2, free, 3)
    assert Reshape((-1, 2, -1, 3), (-1, -1, 6))(there).tolist() == array.tolist()
