"""What a caller of the engine sees: one answer each, never somebody else's."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from headrace.config import QueueConfig
from headrace.engine.served import Profile
from headrace.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InstanceDied,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
)
from headrace.tasks.base import Item, Padding, Prepared
from headrace.types import RequestedOutput, Tensor, TensorSpec

from .conftest import ScriptedModel, request

INLINE = Profile(max_rows=8, inline_rows=8, batchable=True)


async def entered(model, times=1):
    """Waits until the model was called so often."""
    for _ in range(times):
        await asyncio.to_thread(model.entered.acquire, timeout=30)


@pytest.mark.parametrize("profile", [None, INLINE], ids=["thread", "inline"])
async def test_everybody_gets_the_answer_to_their_own_question(bench, profile):
    model = ScriptedModel()
    bench.serve(model, profile=profile)

    answers = await asyncio.gather(
        *(bench.engine.infer(request([i, -i], [i, i])) for i in range(20))
    )

    for i, answer in enumerate(answers):
        assert answer.outputs[0].data.tolist() == [[2 * i, -2 * i], [2 * i, 2 * i]]
        assert answer.outputs[0].shape == (2, 2)
    assert len(model.batches) < 20
    assert bench.watcher.ends == ["complete"] * 20
    assert sum(batch.requests for batch in bench.watcher.batches) == 20
    assert {batch.inline for batch in bench.watcher.batches} == {profile is INLINE}


async def test_stamps_are_in_order(bench):
    bench.serve(ScriptedModel())
    await bench.engine.infer(request([1, 2]))

    record = bench.watcher.records[0]
    stamps = [record.arrived_ns, record.admitted_ns, record.batched_ns, record.started_ns]
    assert stamps == sorted(stamps)
    assert record.started_ns <= record.finished_ns


async def test_while_one_batch_runs_the_next_is_collected(bench):
    model = ScriptedModel()
    bench.serve(model)
    model.may_run.clear()
    first = asyncio.create_task(bench.engine.infer(request([0, 0])))
    await entered(model)
    rest = [asyncio.create_task(bench.engine.infer(request([i, i]))) for i in range(1, 6)]
    await asyncio.sleep(0)
    model.may_run.set()
    await asyncio.gather(first, *rest)

    assert [batch[0].shape[0] for batch in model.batches] == [1, 5]


async def test_a_bad_request_fails_alone(bench):
    model = ScriptedModel()

    def compute(x):
        if (x < 0).any():
            raise InferenceFailed("negative")
        return [x * 2]

    model.compute = compute
    bench.serve(model)
    answers = await asyncio.gather(
        *(bench.engine.infer(request([i, i])) for i in (1, -1, 2)), return_exceptions=True
    )

    assert answers[0].outputs[0].data.tolist() == [[2, 2]]
    assert isinstance(answers[1], InferenceFailed)
    assert answers[2].outputs[0].data.tolist() == [[4, 4]]
    assert sorted(bench.watcher.ends) == ["complete", "complete", "fail:inference_failed"]


async def test_an_exception_of_the_model_is_its_own_fault_and_no_end_of_the_server(bench, caplog):
    model = ScriptedModel()
    model.compute = lambda x: 1 / 0
    bench.serve(model)
    with pytest.raises(InferenceFailed, match="ZeroDivisionError"):
        await bench.engine.infer(request([1, 1]))

    model.compute = lambda x: [x]
    assert (await bench.engine.infer(request([1, 1]))).outputs[0].data.tolist() == [[1, 1]]


@pytest.mark.parametrize("where", ["execute", "collate"])
async def test_a_batch_that_fails_takes_no_negative_time(bench, where):
    model = ScriptedModel()

    def compute(x):
        raise InferenceFailed("no")

    model.compute = compute
    bench.serve(model)
    if where == "collate":
        model.shape_policy = None  # collating raises before the model is asked
    asking = [bench.engine.infer(request([i, i])) for i in range(2)]
    await asyncio.gather(*asking, return_exceptions=True)

    for batch in bench.watcher.batches:
        assert batch.collate_ns >= 0
        assert batch.execute_ns >= 0
        assert batch.split_ns >= 0


async def test_too_few_rows_out_is_nobodys_answer(bench):
    model = ScriptedModel()
    model.compute = lambda x: [x[:1]]
    bench.serve(model)
    with pytest.raises(InferenceFailed, match="batch of 2 rows"):
        await bench.engine.infer(request([1, 1], [2, 2]))


@pytest.mark.parametrize("outputs", [0, 2])
async def test_another_number_of_outputs_than_promised_is_the_models_failure(bench, outputs):
    model = ScriptedModel()
    model.compute = lambda x: [x] * outputs
    bench.serve(model)
    with pytest.raises(InferenceFailed, match=f"returned {outputs} outputs, expected 1"):
        await bench.engine.infer(request([1, 1]))

    assert bench.watcher.ends == ["fail:wrong_output_count"]


async def test_a_dead_instance_is_not_asked_again_for_each(bench):
    model = ScriptedModel()

    def compute(x):
        raise InstanceDied("killed")

    model.compute = compute
    bench.serve(model)
    answers = await asyncio.gather(
        *(bench.engine.infer(request([i, i])) for i in range(3)), return_exceptions=True
    )

    assert all(isinstance(answer, InstanceDied) for answer in answers)
    assert len(model.batches) == 1


async def test_a_full_queue_refuses_at_once(bench):
    model = ScriptedModel()
    bench.serve(model, queue=QueueConfig(max_queue_size=1))
    model.may_run.clear()
    running = asyncio.create_task(bench.engine.infer(request([0, 0])))
    await entered(model)
    waiting = asyncio.create_task(bench.engine.infer(request([1, 1])))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await bench.engine.infer(request([2, 2]))

    assert refused.value.details["limit"] == "max_queue_size"
    model.may_run.set()
    await asyncio.gather(running, waiting)


async def test_a_timeout_ends_a_waiting_and_a_running_request(bench):
    model = ScriptedModel()
    bench.serve(model)
    model.may_run.clear()
    with pytest.raises(DeadlineExceeded, match="running"):
        await bench.engine.infer(request([0, 0], timeout_ns=1_000_000))
    with pytest.raises(DeadlineExceeded, match="waiting"):
        await bench.engine.infer(request([1, 1], timeout_ns=1_000_000))
    model.may_run.set()

    assert bench.watcher.ends == ["expire:deadline_exceeded"] * 2
    # The instance comes back, and what expired in the queue never ran.
    await bench.engine.infer(request([2, 2]))
    assert [batch[0][0, 0] for batch in model.batches] == [0, 2]


async def test_cancelling_the_task_withdraws_the_request(bench):
    model = ScriptedModel()
    bench.serve(model)
    model.may_run.clear()
    running = asyncio.create_task(bench.engine.infer(request([0, 0])))
    await entered(model)
    waiting = asyncio.create_task(bench.engine.infer(request([1, 1])))
    await asyncio.sleep(0)
    for task in (running, waiting):
        task.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    model.may_run.set()
    await bench.engine.infer(request([2, 2]))

    assert [batch[0][0, 0] for batch in model.batches] == [0, 2]
    assert bench.watcher.ends == ["cancel:cancelled", "cancel:cancelled", "complete"]
    assert bench.engine.statistics().live == 0


async def test_who_leaves_in_the_turn_they_came_in_never_runs(bench):
    model = ScriptedModel()
    bench.serve(model)
    replies = [Recorder(), Recorder()]
    tickets = [bench.engine.submit(request([i, i]), reply) for i, reply in enumerate(replies)]
    bench.engine.cancel(tickets[0])
    tickets[0].cancel()
    await replies[1].ended.wait()

    assert [batch[0].tolist() for batch in model.batches] == [[[1, 1]]]
    assert not replies[0].ended.is_set()
    assert bench.watcher.ends == ["cancel:cancelled", "complete"]


class Recorder:
    """A reply that only remembers."""

    def __init__(self):
        self.ended = asyncio.Event()

    def complete(self, response, record):
        assert not self.ended.is_set()
        self.ended.set()

    def fail(self, error):
        raise AssertionError(error)


async def test_outputs_come_as_asked_for(bench):
    model = ScriptedModel()
    model.outputs = (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (-1, 2)))
    model.compute = lambda x: [x, -x]
    bench.serve(model)
    wanted = [RequestedOutput("b"), RequestedOutput("a")]
    answer = await bench.engine.infer(request([1, 2], outputs=wanted))

    assert [(t.name, t.data.tolist()) for t in answer.outputs] == [
        ("b", [[-1, -2]]),
        ("a", [[1, 2]]),
    ]


async def test_a_model_that_does_not_batch_gets_its_requests_as_they_are(bench):
    model = ScriptedModel([TensorSpec("x", "FP32", (3,))])
    model.compute = lambda x: [x.sum(keepdims=True)]
    bench.serve(model, profile=Profile(reason="no batch axis"))
    data = np.array([1, 2, 3], dtype=np.float32)
    ask = request()
    ask.inputs = [Tensor("x", "FP32", (3,), data)]
    answers = await asyncio.gather(*(bench.engine.infer(ask) for _ in range(3)))

    assert [answer.outputs[0].data.tolist() for answer in answers] == [[6]] * 3
    assert len(model.batches) == 3


async def test_draining_finishes_what_is_there_and_refuses_the_rest(bench):
    model = ScriptedModel()
    bench.serve(model)
    model.may_run.clear()
    running = asyncio.create_task(bench.engine.infer(request([0, 0])))
    await entered(model)
    draining = asyncio.create_task(bench.engine.drain(30))
    await asyncio.sleep(0)
    with pytest.raises(ModelNotReady, match="shutting down"):
        await bench.engine.infer(request([1, 1]))
    assert not draining.done()
    model.may_run.set()

    assert await draining
    assert (await running).outputs[0].data.tolist() == [[0, 0]]


async def test_draining_gives_up_in_time(bench):
    model = ScriptedModel()
    bench.serve(model)
    model.may_run.clear()
    running = asyncio.create_task(bench.engine.infer(request([0, 0])))
    await entered(model)

    assert not await bench.engine.drain(0.01)
    model.may_run.set()
    await running


async def test_versions(bench):
    one, two = ScriptedModel(), ScriptedModel()
    two.compute = lambda x: [x * 3]
    bench.serve(one, version="1")
    newer = bench.serve(two, version="10")
    bench.serve(ScriptedModel(), version="9")

    async def ask(version):
        answer = await bench.engine.infer(request([1, 1], model_version=version))
        return answer.model_version, answer.outputs[0].data[0, 0]

    assert await ask("") == ("10", 3)
    assert await ask("1") == ("1", 2)
    bench.engine.remove_model(newer)
    assert (await ask(""))[0] == "9"
    with pytest.raises(ModelNotReady, match="UNAVAILABLE"):
        await ask("10")
    with pytest.raises(ModelNotFound, match="version 11 is not found"):
        await ask("11")
    with pytest.raises(ModelNotFound, match="unknown model: 'other'"):
        await bench.engine.infer(request([1, 1], name="other"))


class Words:
    """A task: every word of every text is an item of its own."""

    kind = "words"
    inputs = (TensorSpec("text", "BYTES", (-1,)),)
    outputs = (TensorSpec("total", "FP32", (1,)),)
    padding = Padding(values=(0.0,))

    def prepare(self, request):
        words = [word for text in request.inputs[0].data for word in text.split()]
        if b"bad" in words:
            raise InvalidRequest("bad word")
        if b"bug" in words:
            raise RuntimeError("bug")
        items = [Item((np.array([list(word)], dtype=np.float32),), 1, len(word)) for word in words]
        return Prepared(items, tokens=sum(map(len, words)))

    def finish(self, request, items, results):
        if request.id == "unlucky":
            raise ZeroDivisionError("no words")
        total = np.array([sum(float(result[0][0, 0]) for result in results)], dtype=np.float32)
        return [Tensor("total", "FP32", (1,), total)]


def text(*texts: bytes):
    data = np.empty(len(texts), dtype=object)
    data[:] = texts
    ask = request()
    ask.inputs = [Tensor("text", "BYTES", data.shape, data)]
    return ask


@pytest.fixture
def words(bench):
    model = ScriptedModel([TensorSpec("codes", "FP32", (-1, -1))])
    model.compute = lambda codes: [codes.sum(axis=1, keepdims=True)]
    profile = Profile(max_rows=16, batch_tokens=64, overhead_tokens=8, batchable=True)
    bench.serve(model, task=Words(), profile=profile)
    return model


async def test_a_task_may_make_many_items_of_one_request(bench, words):
    answers = await asyncio.gather(
        bench.engine.infer(text(b"a bb ccc", b"dddd")), bench.engine.infer(text(b"zz"))
    )

    assert answers[0].outputs[0].data[0] == sum(b"abbcccdddd")
    assert answers[1].outputs[0].data[0] == sum(b"zz")
    assert answers[0].usage.tokens == 10
    assert bench.watcher.ends == ["complete", "complete"]


async def test_padding_is_counted(bench, words):
    await bench.engine.infer(text(b"a bb ccc"))

    batch = bench.watcher.batches[0]
    assert (batch.rows, batch.useful_tokens, batch.padded_tokens) == (3, 6, 9)


async def test_a_request_of_nothing_is_answered(bench, words):
    assert (await bench.engine.infer(text(b""))).outputs[0].data[0] == 0
    assert bench.watcher.ends == ["complete"]
    record = bench.watcher.records[0]
    assert record.admitted_ns == record.batched_ns == record.finished_ns > 0


async def test_a_result_that_a_task_cannot_make_an_answer_of_fails_alone(bench, words, caplog):
    unlucky = text(b"a")
    unlucky.id = "unlucky"
    answers = await asyncio.gather(
        *(bench.engine.infer(ask) for ask in (text(b"a"), unlucky, text(b"b"))),
        return_exceptions=True,
    )

    assert [answers[i].outputs[0].data[0] for i in (0, 2)] == [ord("a"), ord("b")]
    assert isinstance(answers[1], InferenceFailed)
    assert "ZeroDivisionError: no words" in answers[1].message
    assert sorted(bench.watcher.ends) == ["complete", "complete", "fail:inference_failed"]


async def test_an_answer_may_end_another_request_of_its_batch(bench):
    bench.serve(ScriptedModel(), profile=INLINE)
    log = []

    class Reply:
        def complete(self, response, record):
            log.append("answered")
            bench.engine.cancel(second)

        def fail(self, error):
            raise AssertionError(error)

    bench.engine.submit(request([1, 1]), Reply())
    second = bench.engine.submit(request([2, 2]), Reply())
    await bench.engine.infer(request([3, 3]))

    assert log == ["answered"]
    assert sorted(bench.watcher.ends) == ["cancel:cancelled", "complete", "complete"]
    assert bench.engine.statistics().live == 0


async def test_what_a_task_refuses_is_the_callers_error(bench, words, caplog):
    with pytest.raises(InvalidRequest, match="bad word"):
        await bench.engine.infer(text(b"bad"))
    with pytest.raises(InferenceFailed, match="RuntimeError: bug"):
        await bench.engine.infer(text(b"bug"))
    assert (await bench.engine.infer(text(b"a"))).outputs[0].data[0] == ord("a")


async def test_if_one_item_expires_the_whole_request_does_and_nothing_is_left(bench, words):
    words.may_run.clear()
    ask = text(b"a " * 200)
    ask.timeout_ns = 5_000_000
    with pytest.raises(DeadlineExceeded):
        await bench.engine.infer(ask)

    words.may_run.set()
    assert (await bench.engine.infer(text(b"b"))).outputs[0].data[0] == ord("b")
    assert bench.engine.statistics().live == 0
    assert bench.watcher.ends == ["expire:deadline_exceeded", "complete"]


async def test_a_better_priority_goes_first_where_the_model_has_levels(bench):
    model = ScriptedModel()
    profile = Profile(max_rows=1, batchable=True)
    bench.serve(model, profile=profile, priority_levels=2, default_priority=2)
    model.may_run.clear()
    first = asyncio.create_task(bench.engine.infer(request([0, 0])))
    await entered(model)
    said = [2, 1, 0, 1, 9]
    rest = [
        asyncio.create_task(bench.engine.infer(request([i + 1, 0], priority=priority)))
        for i, priority in enumerate(said)
    ]
    await asyncio.sleep(0)
    model.may_run.set()
    await asyncio.gather(first, *rest)

    assert [int(batch[0][0, 0]) for batch in model.batches] == [0, 2, 4, 1, 3, 5]
