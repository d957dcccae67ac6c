"""Stateful models, from a request with a sequence id to the model and back."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from headrace.config import (
    BatchConfig,
    ControlConfig,
    ModelConfig,
    QueueConfig,
    SequenceConfig,
    StateConfig,
)
from headrace.engine.inflight import FutureReply
from headrace.engine.models import ModelManager
from headrace.engine.sequence_inputs import SequenceInputs
from headrace.engine.sequences import attach_sequences
from headrace.engine.served import Profile, ServedModel
from headrace.errors import (
    ConfigError,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    ModelLoadError,
    ModelNotReady,
    Overloaded,
)
from headrace.runtimes.base import ShapePolicy
from headrace.telemetry.instruments import Instrument
from headrace.testing import onnx_models
from headrace.types import ModelMetadata, TensorSpec

from .sequence_bench import ACCUMULATOR, Held, SequenceBench, control, implicit


@pytest.fixture
async def bench(tmp_path):
    bench = SequenceBench(tmp_path)
    yield bench
    bench.engine.close()
    await bench.manager.close()


class TestImplicitState:
    async def test_what_comes_out_goes_in_again(self, bench):
        await bench.load(ACCUMULATOR, implicit())
        assert await bench.add_up(7, [1, 2, 3, 4]) == [1, 3, 6, 10]
        assert await bench.add_up(7, [5, 5]) == [5, 10]

    async def test_equal_ids_of_two_callers_have_two_states(self, bench):
        await bench.load(ACCUMULATOR, implicit(max_sequences=4))
        assert await bench.step(7, 10, "s", caller="me") == 10
        with pytest.raises(InvalidRequest, match="START flag"):
            await bench.step(7, 1, caller="other")
        assert await bench.step(7, 1, "s", caller="other") == 1
        assert await bench.step(7, 1, caller="me") == 11
        assert await bench.step(7, 1, "e", caller="other") == 2
        assert await bench.step(7, 1, "e", caller="me") == 12

    async def test_a_model_is_never_told_of_two_sequences_by_one_id(self, bench):
        """It may keep states by the id."""
        await bench.load(ACCUMULATOR, implicit(max_sequences=4))
        requests = [bench.request(7, [[1]], "s", caller=name) for name in ("a", "b", "c")]
        for request in requests:
            await bench.engine.infer(request)
        assert [request.sequence_id for request in requests] == [7, 2**31 - 1, 2**31 - 2]
        again = bench.request(7, [[1]], "e", caller="b")
        await bench.engine.infer(again)
        assert again.sequence_id == 2**31 - 1
        later = bench.request(7, [[1]], "s", caller="d")
        await bench.engine.infer(later)
        assert later.sequence_id == 2**31 - 1

    async def test_controls_and_states_are_not_shown(self, bench):
        await bench.load(ACCUMULATOR, implicit())
        metadata = bench.engine.catalog.metadata("m")
        assert [spec.name for spec in metadata.inputs] == ["INPUT"]
        assert [spec.name for spec in metadata.outputs] == ["OUTPUT"]
        answer = await bench.engine.infer(bench.request(1, [[2]], "s"))
        assert [tensor.name for tensor in answer.outputs] == ["OUTPUT"]

    @pytest.mark.parametrize("strategy", ["direct", "oldest"])
    async def test_many_at_once_never_see_one_another(self, bench, strategy):
        await bench.load(
            ACCUMULATOR,
            implicit(strategy=strategy, max_sequences=8),
            instances=2,
            batching=BatchConfig(max_batch_size=8),
        )
        dice = random.Random(1)
        sequences = {
            name: [dice.randint(-9, 9) for _ in range(dice.randint(1, 20))]
            for name in [*range(1, 30), *(f"s{i}" for i in range(20))]
        }
        sums = await asyncio.gather(
            *(bench.add_up(name, values) for name, values in sequences.items())
        )
        for values, got in zip(sequences.values(), sums, strict=True):
            assert got == np.cumsum(values).tolist()
        assert max(bench.watcher.batches) > 1, "nobody ever ran together"

    async def test_requests_of_one_sequence_run_in_order_even_if_sent_at_once(self, bench):
        await bench.load(ACCUMULATOR, implicit())
        values = list(range(1, 11))
        steps = [
            bench.step(3, value, "s" * (i == 0) + "e" * (i == 9)) for i, value in enumerate(values)
        ]
        assert await asyncio.gather(*steps) == np.cumsum(values).tolist()
        assert set(bench.watcher.batches) == {1}

    async def test_a_start_begins_anew(self, bench):
        await bench.load(ACCUMULATOR, implicit())
        assert await bench.step(1, 5, "s") == 5
        assert await bench.step(1, 5) == 10
        assert await bench.step(1, 5, "s") == 5
        assert await bench.step(1, 5) == 10

    async def test_the_first_value_may_come_from_a_file(self, bench):
        folder = bench.folder / "initial_state"
        folder.mkdir()
        (folder / "forty").write_bytes(np.array([40], np.int32).tobytes())
        state = StateConfig(
            input_name="STATE_IN",
            output_name="STATE_OUT",
            datatype="INT32",
            shape=(-1, 1),
            initial_file="initial_state/forty",
        )
        # The graph forgets its state at START, so START is never true here.
        never = ControlConfig(name="START", kind="start", datatype="INT32", true_value=0)
        await bench.load(ACCUMULATOR, implicit(states=(state,), controls=(never,)))
        assert await bench.add_up(1, [1, 1]) == [41, 42]
        assert await bench.add_up(2, [2]) == [42]

    async def test_a_file_of_another_size_is_refused(self, bench):
        (bench.folder / "odd").write_bytes(b"12345")
        state = StateConfig(
            input_name="STATE_IN",
            output_name="STATE_OUT",
            datatype="INT32",
            shape=(-1, 1),
            initial_file="odd",
        )
        with pytest.raises(ModelLoadError, match="initial state of 'STATE_IN'"):
            await bench.load(ACCUMULATOR, implicit(states=(state,)))

    async def test_states_may_grow(self, bench):
        state = StateConfig(
            input_name="STATE_IN", output_name="STATE_OUT", datatype="FP32", shape=(-1,)
        )
        await bench.load(onnx_models.history(), SequenceConfig(states=(state,), max_sequences=4))

        async def tell(sequence, values):
            for i, value in enumerate(values):
                request = bench.request(sequence, [value], "s" * (not i), datatype="FP32")
                answer = await bench.engine.infer(request)
            return answer.outputs[0].data.tolist()

        got = await asyncio.gather(tell(1, [1, 2, 3]), tell(2, [7, 8]))
        assert got == [[0, 1, 2, 3], [0, 7, 8]]
        assert await tell(1, [4]) == [0, 4], "a start that follows no end begins anew"

    async def test_a_state_does_not_keep_its_batch_alive(self, bench):
        served = await bench.load(ACCUMULATOR, implicit())
        batch = np.arange(8, dtype=np.int32).reshape(8, 1)
        inputs = served.sequence_inputs
        (state,) = inputs.next_states([batch[2:3], batch[2:3]], inputs.initial)
        assert state.tolist() == [[2]]
        assert not np.shares_memory(state, batch)

    async def test_a_request_that_fails_leaves_the_state_as_it_was(self, bench):
        served = await bench.load(ACCUMULATOR, implicit(), instances=1)
        await bench.step(1, 5, "s")
        execute, served.loaded.execute = served.loaded.execute, fail
        with pytest.raises(InferenceFailed):
            await bench.step(1, 100)
        served.loaded.execute = execute
        assert await bench.step(1, 1) == 6


def fail(_inputs):
    raise InferenceFailed("told to fail")


NO_ID = "inference request to model 'm' must specify a non-zero or non-empty correlation ID"
NO_START = (
    "inference request for sequence 9 to model 'm' must specify the START flag on the first "
    "request of the sequence"
)
SEVERAL = (
    "inference request to model 'm' must specify batch-size 1 due to requirements of sequence "
    "batcher"
)


class TestRefusals:
    async def test_texts_are_those_that_clients_match(self, bench):
        await bench.load(ACCUMULATOR, implicit(), batching=BatchConfig(max_batch_size=4))
        for request, text in (
            (bench.request(0, [[1]]), NO_ID),
            (bench.request("", [[1]], "s"), NO_ID),
            (bench.request(9, [[1]]), NO_START),
            (bench.request(9, [[1], [2]], "s"), SEVERAL),
        ):
            with pytest.raises(InvalidRequest) as caught:
                await bench.engine.infer(request)
            assert caught.value.message == text
        assert await bench.step(9, 1, "s") == 1

    async def test_a_task_has_no_sequences(self, bench):
        with pytest.raises(ConfigError, match="only tensors come in sequences"):
            await bench.load(
                onnx_models.mlp(),
                SequenceConfig(),
                task="tabular",
                task_options={"columns": [f"c{i}" for i in range(16)]},
            )

    async def test_several_workers_could_not_keep_sequences_apart(self, bench):
        bench.manager = ModelManager(
            bench.engine, cache_dir=bench.folder / "cache", instrument=Instrument(), workers=2
        )
        with pytest.raises(ModelLoadError, match="2 worker processes"):
            await bench.load(ACCUMULATOR, implicit())
        (status,) = bench.engine.catalog.statuses()
        assert status.state == "UNAVAILABLE"

    @pytest.mark.parametrize(
        ("datatype", "name"),
        [("INT32", 2**31), ("INT32", "a"), ("UINT32", -1), ("UINT64", 2**64), ("BYTES", "x" * 129)],
    )
    async def test_an_id_that_the_model_cannot_be_told(self, bench, datatype, name):
        hint = {"BYTES": "list[bytes]"}.get(datatype, f'Annotated[np.ndarray, "{datatype}[N,1]"]')
        await bench.load(
            ECHO_ID.format(hint=hint),
            SequenceConfig(controls=(control("corrid", datatype, "ID"),)),
            runtime_options={"isolation": "thread"},
        )
        with pytest.raises(InvalidRequest, match="correlation ID"):
            await bench.engine.infer(bench.request(name, [[1]], "s"))


ECHO_ID = """
from typing import Annotated
import numpy as np

def predict(INPUT: Annotated[np.ndarray, "INT32[N,1]"], ID: {hint}) -> Annotated[
    np.ndarray, "INT32[N,1]"
]:
    return INPUT
"""


class TestWaiting:
    """One slot, and an execution that the test holds."""

    async def load(self, bench, **fields):
        queue = fields.pop("queue", QueueConfig())
        served = await bench.load(
            ACCUMULATOR,
            implicit(**{"max_sequences": 1, **fields}),
            instances=1,
            queue=queue,
        )
        held = Held(served.loaded.execute)
        served.profile = Profile(max_rows=1, batchable=True)  # never inline
        served.loaded.execute = held
        return held

    async def test_who_waits_is_counted_and_comes_in_turn(self, bench):
        held = await self.load(bench)
        a = asyncio.create_task(bench.step(1, 1, "s"))
        b = asyncio.create_task(bench.step(2, 2, "se"))
        a2 = asyncio.create_task(bench.step(1, 10, "e"))
        await held.entered()
        assert bench.waiting_and_running() == (2, 1)
        bench.clock.advance_ns(5_000)
        held.release()
        assert await asyncio.gather(a, a2, b) == [1, 11, 2]
        assert bench.waiting_and_running() == (0, 0)
        # They began to queue when they came, not when their turn did.
        assert {record.admitted_ns for record in bench.watcher.records} == {1_000_000_000}

    async def test_the_queue_is_bounded(self, bench):
        held = await self.load(bench, queue=QueueConfig(max_queue_size=1))
        running = asyncio.create_task(bench.step(1, 1, "s"))
        waiting = asyncio.create_task(bench.step(2, 1, "se"))
        await held.entered()
        with pytest.raises(Overloaded):
            await bench.step(1, 1)
        held.release()
        assert await running == 1
        assert await bench.step(1, 1, "e") == 2
        assert await waiting == 1

    async def test_who_leaves_the_line_is_forgotten(self, bench):
        held = await self.load(bench)
        running = asyncio.create_task(bench.step(1, 1, "s"))
        start = asyncio.create_task(bench.step(2, 1, "s"))
        follows = asyncio.create_task(bench.step(2, 1, "e"))
        await held.entered()
        start.cancel()
        with pytest.raises(InvalidRequest, match="START"):
            await follows
        held.release()
        await running
        assert await bench.step(1, 1, "e") == 2
        assert bench.watcher.ends.count("cancel:cancelled") == 1

    async def test_a_start_that_never_ran_leads_to_nothing(self, bench):
        """Its turn had come, and the instance was busy with another sequence."""
        held = await self.load(bench, max_sequences=2)
        busy = asyncio.create_task(bench.step(1, 1, "s"))
        await held.entered()
        start = asyncio.create_task(bench.step(2, 1, "s"))
        follows = asyncio.create_task(bench.step(2, 1))
        await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(InvalidRequest, match="START"):
            await follows
        held.release()
        assert await busy == 1

    async def test_who_leaves_while_running_changes_nothing(self, bench):
        held = await self.load(bench)
        assert not held.release()
        await bench.step(1, 1, "s")
        held.hold()
        lost = asyncio.create_task(bench.step(1, 100))
        following = asyncio.create_task(bench.step(1, 1))
        await held.entered(2)
        lost.cancel()
        await asyncio.wait({lost})
        held.release()
        assert await following == 2

    async def test_time_runs_out_in_the_line(self, bench):
        held = await self.load(bench)
        running = asyncio.create_task(bench.step(1, 1, "s"))
        waiting = asyncio.create_task(bench.step(1, 1, timeout_ns=1_000_000))
        await held.entered()
        bench.clock.advance_ns(2_000_000)
        with pytest.raises(DeadlineExceeded, match="waiting in the queue"):
            await waiting
        held.release()
        assert await running == 1
        assert await bench.step(1, 2) == 3

    async def test_an_idle_sequence_gives_its_slot_away(self, bench):
        held = await self.load(bench, idle_timeout_s=0.02)
        held.release()
        assert await bench.step(1, 1, "s") == 1
        waiting = asyncio.create_task(bench.step(2, 2, "s"))
        await asyncio.sleep(0)
        bench.clock.advance_ns(19_999_999)
        assert await bench.step(1, 1) == 2
        bench.clock.advance_ns(19_999_999)
        assert not waiting.done()
        bench.clock.advance_ns(1)
        assert await waiting == 2
        with pytest.raises(InvalidRequest, match="START"):
            await bench.step(1, 1)

    async def test_unloading_refuses_what_waits_and_finishes_what_runs(self, bench):
        held = await self.load(bench)
        served = bench.engine.catalog.resolve("m")
        running = asyncio.create_task(bench.step(1, 1, "s"))
        behind = asyncio.create_task(bench.step(1, 1))
        backlog = asyncio.create_task(bench.step(2, 1, "s"))
        await held.entered()
        bench.engine.remove_model(served)
        for task in (behind, backlog):
            with pytest.raises(ModelNotReady):
                await task
        held.release()
        assert await running == 1
        assert served.busy == 0
        assert bench.engine.statistics().models == {}


class Steps:
    """A model of requests: answers the next number until it has counted down to 0.

    ``takes``: how often it was given which request, as what.
    """

    takes_requests = True
    concurrency = 1

    def __init__(self, *, decoupled: bool) -> None:
        self.decoupled = decoupled
        self.inputs = (TensorSpec("INPUT", "INT32", (-1, 1)),)
        self.outputs = (TensorSpec("OUTPUT", "INT32", (-1, 1)),)
        self.shape_policy = ShapePolicy()
        self.left = {}
        self.takes = []

    def execute(self, inputs):
        raise AssertionError("it takes requests")

    def execute_requests(self, requests, emit):
        for request in requests:
            name = request.sequence_id
            self.takes.append((name, request.sequence_start, request.sequence_end))
            if request.sequence_start:
                self.left[name] = int(request.arrays[0][0, 0])
            self.left[name] -= 1
            done = self.left[name] == 0
            if done or self.decoupled:
                emit(request.key, [np.array([[self.left[name]]], np.int32)], done)

    def unload(self):
        pass


class Stream(FutureReply):
    """Keeps every answer."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.parts = []
        self.begun = asyncio.Event()

    def part(self, response) -> None:
        self.begun.set()
        self.parts.append(int(response.outputs[0].data[0, 0]))


class TestIterative:
    def serve(self, bench, *, decoupled=True, **fields):
        model = Steps(decoupled=decoupled)
        served = ServedModel(
            metadata=ModelMetadata("m", ("1",), "test", model.inputs, model.outputs),
            version="1",
            loaded=model,
            task=None,
            runtime="test",
            config=ModelConfig(
                sequence=SequenceConfig(iterative=True, strategy="oldest", **fields)
            ),
        )
        served.sequence_inputs = SequenceInputs(
            "m", model, model.inputs, served.config.sequence, lambda name: b""
        )
        attach_sequences(bench.engine, served)
        bench.engine.add_model(served, Profile(max_rows=4, batchable=True))
        return model

    async def ask(self, bench, count, sequence=0):
        stream = Stream()
        bench.engine.submit(bench.request(sequence, [[count]]), stream)
        last = await asyncio.wait_for(stream.future, 30)
        return [*stream.parts, int(last.outputs[0].data[0, 0])]

    async def test_a_request_runs_until_its_final_answer(self, bench):
        model = self.serve(bench)
        counts = await asyncio.gather(*(self.ask(bench, n) for n in (1, 5, 3)))
        assert counts == [[0], [4, 3, 2, 1, 0], [2, 1, 0]]
        assert max(bench.watcher.batches) > 1, "nobody ever ran together"
        names = {name for name, _, _ in model.takes}
        assert len(names) == 3, "each is a sequence of its own"
        for name in names:
            starts = [start for who, start, _ in model.takes if who == name]
            assert starts == [True] + [False] * (len(starts) - 1)

    async def test_more_than_there_are_slots_wait_for_one(self, bench):
        self.serve(bench, max_sequences=1)
        counts = await asyncio.gather(*(self.ask(bench, n) for n in (2, 3)), self.ask(bench, 2, 9))
        assert counts == [[1, 0], [2, 1, 0], [1, 0]]
        assert set(bench.watcher.batches) == {1}

    async def test_a_model_with_one_answer_takes_as_many_turns_as_it_needs(self, bench):
        model = self.serve(bench, decoupled=False)
        answers = await asyncio.gather(
            *(bench.engine.infer(bench.request(0, [[count]])) for count in (1, 4, 2))
        )
        assert [answer.outputs[0].data.tolist() for answer in answers] == [[[0]]] * 3
        assert len(model.takes) == 7

    async def test_who_leaves_is_not_run_again(self, bench):
        model = self.serve(bench)
        stream = Stream()
        ticket = bench.engine.submit(bench.request(0, [[10**9]]), stream)
        await asyncio.wait_for(stream.begun.wait(), 30)
        ticket.cancel()
        assert await self.ask(bench, 1) == [0]
        taken = len(model.takes)
        assert await self.ask(bench, 1) == [0]
        assert len(model.takes) == taken + 1
