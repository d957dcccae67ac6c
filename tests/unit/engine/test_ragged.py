"""Rows of different size run together; each request gets its own back."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import BatchInputConfig
from headrace.engine.inflight import Part
from headrace.engine.ragged import BATCH_INPUTS
from headrace.errors import InvalidRequest, ModelLoadError
from headrace.testing.fakes import FakeModel
from headrace.types import TensorSpec

from .assembled import ROWS, ask, assemble, publish, tensor, tensor_config


def segment_sums() -> FakeModel:
    """Flat ``values`` and where they end (``ends``) -> one sum for each request."""

    def compute(values, ends):
        starts = np.concatenate([[0], ends[:-1]]).astype(int)
        sums = [values[a:b].sum() for a, b in zip(starts, ends.astype(int), strict=True)]
        return [np.array(sums, np.float32).reshape(-1, 1)]

    return FakeModel(
        compute,
        inputs=(TensorSpec("values", "FP32", (-1,)), TensorSpec("ends", "FP32", (-1,))),
        outputs=(TensorSpec("sum", "FP32", (-1, 1)),),
    )


def ends(kind: str = "BATCH_ACCUMULATED_ELEMENT_COUNT", **fields) -> BatchInputConfig:
    said = {"name": "ends", "datatype": "FP32", "kind": kind, "source": "values"} | fields
    return BatchInputConfig(**said)


RAGGED = {
    "inputs": (tensor_config("values", (-1, -1), ragged=True),),
    "outputs": (tensor_config("sum", (-1, 1)),),
    "triton_config": ROWS,
}


async def test_requests_of_different_size_meet_without_padding(bench):
    model = segment_sums()
    served = publish(bench.engine, assemble(model, batch_inputs=(ends(),), **RAGGED))
    assert [spec.name for spec in served.metadata.inputs] == ["values"]

    sizes = [3, 1, 5, 2]
    asked = [ask(tensor("values", [np.full(size, i + 1)])) for i, size in enumerate(sizes)]
    answers = await asyncio.gather(*map(bench.engine.infer, asked))

    assert [a.outputs[0].data.tolist() for a in answers] == [[[3]], [[2]], [[15]], [[8]]]
    assert [[a.tolist() for a in call] for call in model.calls] == [
        [[1, 1, 1, 2, 3, 3, 3, 3, 3, 4, 4], [3, 4, 9, 11]]
    ]


async def test_no_more_rows_than_configured_and_nobody_may_send_what_is_made_here(bench):
    model = segment_sums()
    publish(bench.engine, assemble(model, batch_inputs=(ends(),), **RAGGED))
    asked = [ask(tensor("values", [[i] * (i % 3 + 1)])) for i in range(20)]
    answers = await asyncio.gather(*map(bench.engine.infer, asked))

    assert [a.outputs[0].data[0, 0] for a in answers] == [i * (i % 3 + 1) for i in range(20)]
    assert max(len(call[1]) for call in model.calls) == 8
    with pytest.raises(InvalidRequest, match="unexpected inference input 'ends'"):
        await bench.engine.infer(ask(tensor("values", [[1]]), tensor("ends", [1])))


async def test_inputs_that_are_not_ragged_must_still_agree(bench):
    model = FakeModel(
        lambda values, x: [x.sum(axis=1, keepdims=True)],
        inputs=(TensorSpec("values", "FP32", (-1,)), TensorSpec("x", "FP32", (-1, -1))),
        outputs=(TensorSpec("sum", "FP32", (-1, 1)),),
    )
    config = dict(RAGGED)
    config["inputs"] = (*RAGGED["inputs"], tensor_config("x", (-1, -1)))
    publish(bench.engine, assemble(model, **config))
    asked = [
        ask(tensor("values", [[0] * size]), tensor("x", [[1] * width]))
        for size, width in ((1, 2), (2, 2), (3, 4), (4, 2))
    ]
    answers = await asyncio.gather(*map(bench.engine.infer, asked))

    assert [a.outputs[0].data.tolist() for a in answers] == [[[2]], [[2]], [[4]], [[2]]]
    assert [call[1].shape for call in model.calls] == [(3, 2), (1, 4)]


SOURCES = [np.zeros((2, 3, 1)), np.zeros((1, 2, 2))]
"""The example of Triton's ``model_config.proto``: two rows of [3, 1], one of [2, 2]."""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BATCH_ELEMENT_COUNT", [6, 4]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", [6, 10]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", [0, 6, 10]),
        ("BATCH_ITEM_SHAPE", [[3, 1], [3, 1], [2, 2]]),
        ("BATCH_ITEM_SHAPE_FLATTEN", [3, 1, 3, 1, 2, 2]),
    ],
)
def test_what_each_kind_makes(kind, expected):
    assert BATCH_INPUTS[kind](SOURCES).tolist() == expected


def test_the_largest_as_a_shape():
    assert BATCH_INPUTS["BATCH_MAX_ELEMENT_COUNT_AS_SHAPE"](SOURCES).shape == (6,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "BATCH_OF_NOTHING"}, "unknown kind 'BATCH_OF_NOTHING'"),
        ({"source": "x"}, "unknown source 'x'"),
        ({"datatype": "FP31"}, "unknown datatype 'FP31'"),
    ],
)
def test_a_batch_input_that_cannot_be_made_is_refused_at_load(wrong, message):
    with pytest.raises(ModelLoadError, match=message):
        assemble(segment_sums(), batch_inputs=(ends(**wrong),), **RAGGED)


@given(sizes=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=6))
def test_batch_inputs_describe_where_everything_is(sizes):
    served = assemble(segment_sums(), batch_inputs=(ends(),), **RAGGED)
    parts = [
        Part(None, [np.full((len(size), size[0]), i, np.float32), None], len(size), 0)
        for i, size in enumerate(sizes)
    ]
    (flat, where), rows = served.collate(parts)

    assert rows == sum(map(len, sizes))
    start = 0
    for i, end in enumerate(where.astype(int)):
        assert (flat[start:end] == i).all()
        assert end - start == parts[i].arrays[0].size
        start = end
    assert start == len(flat)
