"""What is remembered of a version: counts, the last latencies, and shapes but no values."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.engine.health import SAMPLE, SHAPES_MAX, Health
from headrace.errors import InferenceFailed

from .conftest import ScriptedModel, request


def array(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_a_batch_counts_what_it_answered_and_what_it_failed() -> None:
    health = Health()
    health.batch(requests=4, failed=1, latency_ns=10, now_ns=100)
    health.batch(requests=2, failed=2, latency_ns=99, now_ns=200)
    record = health.record()
    assert (record.answered, record.failed, record.latencies_ns) == (3, 3, [10])
    assert health.last_used_ns == 200


def test_the_last_latencies_are_kept() -> None:
    health = Health()
    for latency_ns in range(SAMPLE + 3):
        health.batch(1, 0, latency_ns, 1)
    assert health.record().latencies_ns == list(range(3, SAMPLE + 3))
    assert health.answered == SAMPLE + 3


def test_a_record_does_not_change_afterwards() -> None:
    health = Health()
    health.batch(1, 0, 5, 1)
    record = health.record()
    health.batch(1, 0, 6, 2)
    assert (record.answered, record.latencies_ns) == (1, [5])


def test_shapes_come_most_frequent_first() -> None:
    health = Health()
    for shape in [(1, 2), (8, 2), (8, 2), (4, 2), (8, 2), (4, 2)]:
        health.ran([array(*shape), None])
    assert health.shapes() == [((8, 2), None), ((4, 2), None), ((1, 2), None)]


def test_no_more_shapes_than_anybody_could_warm() -> None:
    health = Health()
    for length in range(1, SHAPES_MAX + 50):
        health.ran([array(1, length)])
    health.ran([array(1, 7)])
    shapes = health.shapes()
    assert len(shapes) == SHAPES_MAX
    assert shapes[0] == ((1, 7),)
    assert ((1, SHAPES_MAX + 1),) not in shapes


def test_what_an_earlier_copy_was_given_counts_less_than_what_comes() -> None:
    health = Health()
    health.ran([array(3)])
    health.remember([((1,),), ((2,),), ((3,),)])
    health.ran([array(2)])
    health.ran([array(2)])
    assert health.shapes() == [((2,),), ((3,),), ((1,),)]


def test_what_is_remembered_is_bounded_too() -> None:
    health = Health()
    health.remember([((length,),) for length in range(SHAPES_MAX * 2)])
    assert len(health.shapes()) == SHAPES_MAX


async def test_the_engine_takes_notes(bench) -> None:
    model = ScriptedModel()
    served = bench.serve(model)
    await bench.engine.infer(request([1, 2], [3, 4]))
    assert served.health.answered == 1
    assert served.health.failed == 0
    assert served.health.last_used_ns > 0
    assert served.health.shapes() == [((2, 2),)]
    assert served.health.record().latencies_ns[0] > 0


async def test_a_model_that_raises_is_noted_as_failed(bench) -> None:
    model = ScriptedModel()
    served = bench.serve(model)

    def broken(x: np.ndarray) -> list[np.ndarray]:
        raise InferenceFailed("it raised")

    model.compute = broken
    with pytest.raises(InferenceFailed, match="it raised"):
        await bench.engine.infer(request([1, 2]))
    assert (served.health.answered, served.health.failed) == (0, 1)


async def test_what_the_caller_got_wrong_is_no_fault_of_the_model(bench) -> None:
    served = bench.serve(ScriptedModel())
    with pytest.raises(Exception, match="shape"):
        await bench.engine.infer(request([1, 2, 3]))
    assert (served.health.answered, served.health.failed) == (0, 0)
