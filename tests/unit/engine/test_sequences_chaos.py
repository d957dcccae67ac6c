"""Callers that come, leave, start over and run out of time, against what the model was told."""

from __future__ import annotations

import asyncio
import random
import threading

import numpy as np
import pytest

from headrace.config import BatchConfig, ControlConfig, ModelConfig, QueueConfig, SequenceConfig
from headrace.engine.engine import Engine
from headrace.engine.inflight import FutureReply
from headrace.engine.sequence_inputs import SequenceInputs
from headrace.engine.sequences import attach_sequences
from headrace.engine.served import Profile, ServedModel
from headrace.errors import HeadraceError, InferenceFailed, InstanceDied
from headrace.runtimes.base import ShapePolicy
from headrace.types import InferenceRequest, ModelMetadata, Tensor, TensorSpec
from tests.fuzzing import examples

CONTROLS = tuple(
    ControlConfig(name=kind.upper(), kind=kind, datatype=datatype)
    for kind, datatype in (("start", "INT32"), ("end", "INT32"), ("corrid", "INT64"))
)


class Recorder:
    """A model of several instances that writes down what each is told; now and then it dies."""

    def __init__(self, instances: int) -> None:
        self.inputs = (
            TensorSpec("SERIAL", "INT64", (-1, 1)),
            TensorSpec("START", "INT32", (-1, 1)),
            TensorSpec("END", "INT32", (-1, 1)),
            TensorSpec("CORRID", "INT64", (-1, 1)),
        )
        self.outputs = (TensorSpec("SERIAL_OUT", "INT64", (-1, 1)),)
        self.concurrency = instances
        self.shape_policy = ShapePolicy()
        self.told: list[tuple[int, int, list[tuple[int, int, int, int]]]] = []
        self.lock = threading.Lock()
        self.batches = 0

    def execute(self, _inputs):
        raise AssertionError("its instances are to be used")

    def instance(self, index):
        return Instance(self, index)

    def unload(self):
        pass


class Instance:
    concurrency = 1

    def __init__(self, model: Recorder, index: int) -> None:
        self.inputs, self.outputs = model.inputs, model.outputs
        self.shape_policy = model.shape_policy
        self.model, self.index = model, index
        self.life = 0
        self.lost = False
        self.busy = threading.Lock()

    def renew(self):
        self.lost = False

    def execute(self, inputs):
        assert self.busy.acquire(blocking=False), "two batches in one instance"
        try:
            rows = [tuple(int(v) for v in row) for row in np.concatenate(inputs, axis=1)]
            with self.model.lock:
                self.model.batches += 1
                batch = self.model.batches
                if self.lost:
                    raise InstanceDied("it died before")
                if batch % 19 == 0:
                    self.lost = True
                    self.life += 1
                    raise InstanceDied("it dies now")
                self.model.told.append((self.index, self.life, rows))
            if batch % 13 == 0:
                raise InferenceFailed("no luck")
            return [inputs[0].copy()]
        finally:
            self.busy.release()

    def unload(self):
        pass


class World:
    """One engine, one model, and the books of what was sent."""

    def __init__(self, seed: int, *, strategy: str, slots: int) -> None:
        self.dice = random.Random(seed)
        self.engine = Engine(instances=3, preprocess_threads=1)
        self.model = Recorder(3)
        self.served = ServedModel(
            metadata=ModelMetadata("m", ("1",), "t", self.model.inputs[:1], self.model.outputs),
            version="1",
            loaded=self.model,
            task=None,
            runtime="t",
            config=ModelConfig(
                sequence=SequenceConfig(
                    strategy=strategy,
                    controls=CONTROLS,
                    max_sequences=slots,
                    idle_timeout_s=self.dice.choice([0.001, 0.03]),
                ),
                batching=BatchConfig(max_batch_size=4),
                queue=QueueConfig(max_queue_size=self.dice.choice([5, 1000])),
            ),
        )
        self.served.sequence_inputs = SequenceInputs(
            "m",
            self.model,
            self.served.metadata.inputs,
            self.served.config.sequence,
            lambda name: b"",
        )
        attach_sequences(self.engine, self.served)
        self.engine.add_model(self.served, Profile(max_rows=4, batchable=True))
        self.sent: dict[int, tuple[int, bool, bool]] = {}  # serial -> sequence, start, end
        self.begun_by: dict[int, int] = {}  # serial -> that of the start it belongs to
        self.answered: list[int] = []
        self.outcomes: dict[int, BaseException | None] = {}

    async def send(self, serial: int, name: int, *, start: bool, end: bool) -> None:
        data = np.array([[serial]], np.int64)
        request = InferenceRequest(
            "m",
            [Tensor("SERIAL", "INT64", (1, 1), data)],
            sequence_id=name,
            sequence_start=start,
            sequence_end=end,
            timeout_ns=self.dice.choice([0, 0, 0, 300_000]),
        )
        self.sent[serial] = (name, start, end)
        reply = FutureReply(asyncio.get_running_loop())
        try:
            ticket = self.engine.submit(request, reply)
            if self.dice.random() < 0.1:
                await asyncio.sleep(0)
                if not ticket.done:
                    ticket.cancel()
                    self.outcomes[serial] = None
                    return
            answer = await asyncio.wait_for(reply.future, 30)
        except HeadraceError as error:
            self.outcomes[serial] = error
        else:
            assert int(answer.outputs[0].data[0, 0]) == serial, "somebody else's answer"
            self.outcomes[serial] = None
            self.answered.append(serial)

    async def live(self, requests: int) -> None:
        tasks, begun = [], {}
        for serial in range(1, requests + 1):
            name = self.dice.randint(1, 12)
            start = name not in begun or self.dice.random() < 0.1
            end = self.dice.random() < 0.15
            if start:
                begun[name] = serial
            self.begun_by[serial] = begun[name]
            if end:
                del begun[name]
            tasks.append(asyncio.create_task(self.send(serial, name, start=start, end=end)))
            if self.dice.random() < 0.3:
                await asyncio.sleep(self.dice.choice([0, 0, 0.0005]))
        await asyncio.gather(*tasks)

    def check(self) -> None:
        """Every law, against what the model was told."""
        assert self.outcomes.keys() == self.sent.keys(), "a request has not ended"
        # A sequence may go on elsewhere, after a new start, while the last request of its former
        # life still runs because its caller left; so each instance is looked at alone.
        last: dict[tuple[int, int], int] = {}  # instance, sequence -> the serial it saw last
        knows: set[tuple[int, int, int]] = set()  # instance, its life, sequence
        lives: dict[int, set[int]] = {}  # start of a life of a sequence -> its instances
        seen: set[int] = set()
        for index, life, rows in self.model.told:
            names = [name for *_, name in rows]
            assert len(names) == len(set(names)), "two requests of a sequence in one batch"
            for serial, start, end, name in rows:
                assert self.sent[serial] == (name, bool(start), bool(end))
                assert serial not in seen, "run twice"
                seen.add(serial)
                assert last.get((index, name), 0) < serial, "out of order"
                last[index, name] = serial
                here = (index, life, name)
                if start:
                    knows.add(here)
                assert here in knows, "a sequence met an instance that did not know it"
                lives.setdefault(self.begun_by[serial], set()).add(index)
                if end:
                    knows.remove(here)
        assert all(len(instances) == 1 for instances in lives.values()), "a sequence moved"
        assert set(self.answered) <= seen
        assert not self.served.busy
        assert not self.served.preparing
        assert not self.served.sequences._runs
        assert not self.served.sequences._of_ticket


@pytest.mark.parametrize("seed", range(1, 9))
async def test_no_schedule_breaks_a_law(seed):
    await live_and_check(seed, requests=400)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(9, 9 + examples(6)))
async def test_no_long_schedule_breaks_a_law(seed):
    await live_and_check(seed, requests=4_000)


async def live_and_check(seed: int, *, requests: int) -> None:
    world = World(seed, strategy=["direct", "oldest"][seed % 2], slots=[1, 2, 4][seed % 3])
    try:
        await world.live(requests)
        idle = asyncio.Event()
        world.served.on_idle = idle.set
        if world.served.busy:  # with batches of those who left
            await asyncio.wait_for(idle.wait(), 30)
        world.check()
        assert world.answered
        assert any(isinstance(error, InstanceDied) for error in world.outcomes.values())
    finally:
        world.engine.close()
