"""The same question has the same answer; a different one never does."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import CacheConfig
from headrace.engine.engine import Engine
from headrace.errors import DeadlineExceeded, InferenceFailed
from headrace.testing.clock import ManualClock
from headrace.testing.fakes import FakeModel
from headrace.types import InferenceRequest, RequestedOutput, TensorSpec

from .assembled import ROWS, ask, assemble, ensemble, publish, tensor, tensor_config
from .conftest import Watcher


class CacheWatcher(Watcher):
    def __init__(self) -> None:
        super().__init__()
        self.looks: list[bool] = []

    def cache_looked_up(self, model, version, *, hit, ns, rows=1) -> None:
        assert ns >= 0
        self.looks.append(hit)


class Cached:
    """An engine with a cache of its own size."""

    def __init__(self, max_bytes: int, clock=None) -> None:
        self.watcher = CacheWatcher()
        self.engine = Engine(
            instances=1,
            preprocess_threads=1,
            response_cache_bytes=max_bytes,
            instrument=self.watcher,
            clock=clock,
        )

    def serve(self, model, **config):
        config = {"response_cache": True} | config
        return publish(self.engine, assemble(model, **config))


@pytest.fixture
async def cached():
    cached = Cached(1_000_000)
    yield cached
    cached.engine.close()


def x(*values, **fields) -> InferenceRequest:
    return ask(tensor("x", [values]), **fields)


async def test_the_second_time_the_model_is_not_asked(cached):
    model = FakeModel()
    cached.serve(model)
    first = await cached.engine.infer(x(1, 2, 3, 4, id="a"))
    second = await cached.engine.infer(x(1, 2, 3, 4, id="b"))

    assert [first.id, second.id] == ["a", "b"]
    assert second.outputs[0].data.tolist() == [[2, 4, 6, 8]]
    assert len(model.calls) == 1
    assert cached.watcher.looks == [False, True]
    assert cached.watcher.ends == ["complete", "complete"]


@pytest.mark.parametrize(
    "other",
    [
        x(1, 2, 3, 5),
        ask(tensor("x", [[1, 2, 3, 4], [1, 2, 3, 4]])),
        x(1, 2, 3, 4, outputs=["y"]),
        x(1, 2, 3, 4, parameters={"seed": 2}),
        InferenceRequest(
            "m", x(1, 2, 3, 4).inputs, outputs=[RequestedOutput("y", classification=1)]
        ),
    ],
    ids=["value", "rows", "outputs", "parameters", "classes"],
)
async def test_another_question_is_another_answer(cached, other):
    model = FakeModel()
    cached.serve(model)
    await cached.engine.infer(x(1, 2, 3, 4))
    await cached.engine.infer(other)

    assert len(model.calls) == 2
    assert cached.watcher.looks == [False, False]


async def test_how_soon_and_in_which_form_is_no_other_question(cached):
    model = FakeModel()
    cached.serve(model)
    await cached.engine.infer(x(1, 2, 3, 4, parameters={"timeout": 5, "seed": 1}))
    await cached.engine.infer(x(1, 2, 3, 4, parameters={"seed": 1, "binary_data_output": True}))
    assert cached.watcher.looks == [False, True]


async def test_strings_are_told_apart_by_where_they_end(cached):
    strings = FakeModel(
        lambda x: [x],
        inputs=(TensorSpec("x", "BYTES", (-1, 2)),),
        outputs=(TensorSpec("y", "BYTES", (-1, 2)),),
    )
    cached.serve(strings)
    for pair in (b"ab", b"c"), (b"a", b"bc"), (b"ab", b"c"):
        answer = await cached.engine.infer(ask(tensor("x", [pair], "BYTES")))
        assert answer.outputs[0].data.tolist() == [list(pair)]
    assert cached.watcher.looks == [False, False, True]


async def test_equal_requests_at_one_time_are_one_execution(cached):
    model = FakeModel()
    cached.serve(model)
    asked = [x(7, 7, 7, 7, id=str(i)) for i in range(20)]
    answers = await asyncio.gather(*map(cached.engine.infer, asked))

    assert [answer.id for answer in answers] == [str(i) for i in range(20)]
    assert {tuple(a.outputs[0].data[0]) for a in answers} == {(14.0,) * 4}
    assert [len(call[0]) for call in model.calls] == [1]
    assert sorted(cached.watcher.looks) == [False] + [True] * 19
    assert await cached.engine.drain(10)


async def test_a_failure_is_nobodys_answer_but_its_own(cached):
    model = FakeModel()
    model.fail_next(InferenceFailed("once"))
    cached.serve(model)
    outcomes = await asyncio.gather(
        *(cached.engine.infer(x(1, 1, 1, 1)) for _ in range(3)), return_exceptions=True
    )
    assert [isinstance(outcome, InferenceFailed) for outcome in outcomes] == [True, False, False]
    assert cached.watcher.looks == [False, False, True]
    assert len(model.calls) == 2  # the one that failed, and the first that waited for it


async def test_two_failures_in_a_row_are_believed(cached):
    model = FakeModel()
    for _ in range(5):
        model.fail_next(InferenceFailed("always"))
    cached.serve(model)
    outcomes = await asyncio.gather(
        *(cached.engine.infer(x(1, 1, 1, 1)) for _ in range(5)), return_exceptions=True
    )

    assert {type(outcome) for outcome in outcomes} == {InferenceFailed}
    assert len(model.calls) == 2
    assert cached.watcher.looks == [False] * 5
    assert cached.watcher.ends == ["fail:inference_failed"] * 5


async def test_who_follows_one_that_is_cancelled_runs_by_itself(cached):
    model = FakeModel()
    cached.serve(model)
    with model.gate.closed():
        leader = asyncio.create_task(cached.engine.infer(x(1, 1, 1, 1)))
        follower = asyncio.create_task(cached.engine.infer(x(1, 1, 1, 1)))
        await asyncio.to_thread(model.gate.wait_for, 1)
        leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)
    answer = await follower
    assert answer.outputs[0].data.tolist() == [[2, 2, 2, 2]]


async def test_who_follows_keeps_its_own_deadline(cached):
    model = FakeModel()
    cached.serve(model)
    with model.gate.closed():
        leader = asyncio.create_task(cached.engine.infer(x(1, 1, 1, 1)))
        await asyncio.to_thread(model.gate.wait_for, 1)
        with pytest.raises(DeadlineExceeded):
            await cached.engine.infer(x(1, 1, 1, 1, timeout_ns=20_000_000))
    assert (await leader).outputs[0].data.tolist() == [[2, 2, 2, 2]]
    assert await cached.engine.drain(10)


async def test_what_is_asked_for_once_goes_first_and_the_bound_holds():
    cached = Cached(max_bytes=3 * 600)  # an answer of 4 floats takes 528
    try:
        cached.serve(FakeModel())
        for value in (1, 1, 2, 3, 4, 5, 6, 1, 7, 1):
            await cached.engine.infer(x(value, 0, 0, 0))
        assert cached.watcher.looks[-3:] == [True, False, True], "1 has stayed"
        store = cached.engine._intakes.cache.store
        assert len(store) == 3
        assert store.size_bytes <= store.max_bytes
    finally:
        cached.engine.close()


async def test_an_answer_is_given_again_until_its_time_is_over():
    clock = ManualClock()
    cached = Cached(1_000_000, clock)
    try:
        cached.serve(FakeModel(), cache=CacheConfig(ttl="10s"))
        for passed_s in (0, 9, 2, 9):
            clock.advance_ns(passed_s * 1_000_000_000)
            await cached.engine.infer(x(1, 0, 0, 0))
        assert cached.watcher.looks == [False, True, False, True]
    finally:
        cached.engine.close()


@pytest.mark.parametrize(("shared", "looks"), [(False, [False, False]), (True, [False, True])])
async def test_a_tenant_has_answers_of_its_own_unless_the_model_shares(cached, shared, looks):
    cached.serve(FakeModel(), cache=CacheConfig(shared_between_tenants=shared))
    for tenant in ("a", "b"):
        await cached.engine.infer(x(1, 0, 0, 0, tenant=tenant))
    assert cached.watcher.looks == looks


async def test_tenants_do_not_wait_for_one_another_either(cached):
    model = FakeModel()
    cached.serve(model)
    await asyncio.gather(*(cached.engine.infer(x(1, 0, 0, 0, tenant=t)) for t in "aabb"))
    assert sum(len(call[0]) for call in model.calls) == 2


async def test_an_answer_larger_than_the_model_wants_kept_is_not(cached):
    cached.serve(FakeModel(), cache=CacheConfig(max_entry_bytes=527))
    for _ in range(2):
        await cached.engine.infer(x(1, 0, 0, 0))
    assert cached.watcher.looks == [False, False]


async def test_an_answer_larger_than_the_cache_is_not_kept():
    cached = Cached(max_bytes=700)
    try:
        cached.serve(FakeModel())
        for _ in range(2):
            await cached.engine.infer(ask(tensor("x", np.ones((100, 4)))))
        assert cached.watcher.looks == [False, False]
        assert len(cached.engine._intakes.cache.store) == 0
    finally:
        cached.engine.close()


async def test_a_kept_answer_does_not_change_with_the_memory_it_was_made_in(cached):
    memory = np.zeros((1, 4), np.float32)

    def compute(x):
        memory[:] = x
        return [memory]

    cached.serve(FakeModel(compute))
    await cached.engine.infer(x(1, 1, 1, 1))
    await cached.engine.infer(x(2, 2, 2, 2))
    answer = await cached.engine.infer(x(1, 1, 1, 1))
    assert answer.outputs[0].data.tolist() == [[1, 1, 1, 1]]
    assert cached.watcher.looks == [False, False, True]


async def test_another_copy_of_the_model_starts_with_nothing(cached):
    served = cached.serve(FakeModel())
    await cached.engine.infer(x(1, 1, 1, 1))
    cached.engine.remove_model(served)
    assert cached.engine._intakes.cache.store.size_bytes == 0

    cached.serve(FakeModel(lambda x: [x * 3]))
    answer = await cached.engine.infer(x(1, 1, 1, 1))
    assert answer.outputs[0].data.tolist() == [[3, 3, 3, 3]]


async def test_no_cache_unless_the_model_asks_and_there_is_room(cached):
    cached.serve(FakeModel(), response_cache=False)
    await cached.engine.infer(x(1, 1, 1, 1))
    assert cached.watcher.looks == []

    without = Cached(max_bytes=0)
    try:
        assert without.serve(FakeModel()).intake is None
    finally:
        without.engine.close()


async def test_in_front_of_a_reshape_the_limit_of_rows_still_holds(cached):
    config = {"inputs": (tensor_config("x", (-1, 4)),), "triton_config": ROWS}
    cached.serve(FakeModel(), **config)
    for _ in range(2):
        with pytest.raises(Exception, match="batch-size must be <= 8"):
            await cached.engine.infer(ask(tensor("x", np.ones((9, 4)))))
    answer = await cached.engine.infer(x(1, 1, 1, 1))
    assert answer.outputs[0].data.tolist() == [[2, 2, 2, 2]]


@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=30), room=st.integers(0, 4))
def test_any_order_of_questions_has_the_right_answers(values, room):
    async def run() -> None:
        cached = Cached(max_bytes=room * 528)
        try:
            cached.serve(FakeModel())
            asked = [x(value, 1, 1, 1) for value in values]
            answers = await asyncio.gather(*map(cached.engine.infer, asked))
            assert [a.outputs[0].data[0, 0] for a in answers] == [2 * value for value in values]
            assert cached.watcher.ends == ["complete"] * len(values)
        finally:
            cached.engine.close()

    asyncio.run(run())


async def test_an_ensemble_is_answered_from_memory_as_a_whole(cached):
    model = FakeModel()
    publish(cached.engine, assemble(model, name="one"))
    ensemble(
        cached.engine,
        [("one", {"x": "IN"}, {"y": "OUT"})],
        inputs=(tensor_config("IN", (-1, 4)),),
        outputs=(tensor_config("OUT", (-1, 4)),),
        response_cache=True,
    )
    for _ in range(3):
        answer = await cached.engine.infer(ask(tensor("IN", [[1, 2, 3, 4]]), name="e"))
        assert answer.outputs[0].data.tolist() == [[2, 4, 6, 8]]
    assert len(model.calls) == 1
    assert cached.watcher.looks == [False, True, True]
