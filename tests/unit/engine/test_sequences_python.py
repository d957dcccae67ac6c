"""Python models that keep their state: by object, by row, and told what is what."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from headrace.config import (
    BatchConfig,
    ControlConfig,
    SequenceConfig,
    TensorConfig,
)
from headrace.errors import (
    InferenceFailed,
    InstanceDied,
    InvalidRequest,
)

from .sequence_bench import START, SequenceBench, control


@pytest.fixture
async def bench(tmp_path):
    bench = SequenceBench(tmp_path)
    yield bench
    bench.engine.close()
    await bench.manager.close()


# One object for each instance; it knows only what it was itself told, and who it is.
PYTHON_SUM = """
from typing import Annotated, NamedTuple
import itertools
import os
import numpy as np

numbers = itertools.count()
Row = Annotated[np.ndarray, "INT32[N,1]"]

class Answer(NamedTuple):
    OUTPUT: Row
    WHO: Row

class Model:
    def load(self):
        self.who = os.getpid() if os.environ.get("BY_PID") else next(numbers)
        self.sums = {}

    def predict(self, INPUT: Row, START: Row, END: Row, ID: list[bytes]) -> Answer:
        if (INPUT == -1000).any():
            os._exit(3)
        sums = []
        for value, start, end, name in zip(INPUT[:, 0], START[:, 0], END[:, 0], ID):
            self.sums[name] = value if start else self.sums[name] + value
            sums.append(self.sums[name])
            if end:
                del self.sums[name]
        self.last = sums
        return Answer(np.array(sums, np.int32)[:, None], np.full_like(INPUT, self.who))
"""

TOLD = (START, control("end"), control("corrid", "BYTES", "ID"))


class TestPythonModels:
    async def load(self, bench, *, isolation="thread", instances=3, rows=4, code=PYTHON_SUM, **how):
        return await bench.load(
            code,
            SequenceConfig(**{"controls": TOLD, "strategy": "oldest", **how}),
            instances=instances,
            batching=BatchConfig(max_batch_size=rows),
            runtime_options={"isolation": isolation, "restart_delay_s": 0.01},
        )

    async def walk(self, bench, sequence, values):
        """All steps of a sequence: the sums and who answered."""
        got, last = [], len(values) - 1
        for i, value in enumerate(values):
            request = bench.request(sequence, [[value]], "s" * (i == 0) + "e" * (i == last))
            answer = await bench.engine.infer(request)
            got.append([int(tensor.data[0, 0]) for tensor in answer.outputs])
        return [total for total, _ in got], {who for _, who in got}

    @pytest.mark.parametrize("isolation", ["thread", "process"])
    @pytest.mark.parametrize("instances", [2, 3])
    async def test_a_sequence_meets_one_instance_and_all_are_used(
        self, bench, monkeypatch, isolation, instances
    ):
        if isolation == "process":
            monkeypatch.setenv("BY_PID", "1")
        await self.load(bench, isolation=isolation, instances=instances)
        dice = random.Random(instances)
        sequences = {
            name: [dice.randint(-9, 9) for _ in range(dice.randint(1, 12))] for name in range(1, 41)
        }
        walks = await asyncio.gather(
            *(self.walk(bench, name, values) for name, values in sequences.items())
        )
        for values, (sums, who) in zip(sequences.values(), walks, strict=True):
            assert sums == np.cumsum(values).tolist()
            assert len(who) == 1
        assert len(set.union(*(who for _, who in walks))) == instances
        assert max(bench.watcher.batches) > 1

    async def test_who_dies_takes_its_sequences_along_and_no_other(self, bench):
        await self.load(bench, isolation="process", instances=2, max_sequences=2)
        assert await bench.step(1, 5, "s") == 5  # the first instance
        assert await bench.step(2, 6, "s") == 6  # the second
        with pytest.raises(InstanceDied):
            await bench.step(1, -1000)
        with pytest.raises(InvalidRequest, match="must specify the START flag"):
            await bench.step(1, 1)
        assert await bench.step(2, 1) == 7
        assert await bench.step(1, 1, "s") == 1

    async def test_one_that_dies_while_idle_is_noticed(self, bench, monkeypatch):
        monkeypatch.setenv("BY_PID", "1")
        served = await self.load(bench, isolation="process", instances=1)
        answer = await bench.engine.infer(bench.request(1, [[5]], "s"))
        child = served.loaded._pool.take()
        served.loaded._pool.put(child)
        assert child.pid == int(answer.outputs[1].data[0, 0])
        child.kill()
        await asyncio.to_thread(child.died.wait, 30)

        with pytest.raises(InvalidRequest, match="must specify the START flag"):
            await bench.step(1, 1)
        assert await bench.step(1, 1, "s") == 1

    async def test_a_batch_that_failed_is_not_run_again(self, bench):
        """The model may have taken some of it in."""
        code = PYTHON_SUM.replace("self.last = sums", "assert 13 not in INPUT")
        await self.load(bench, instances=1, code=code)
        await asyncio.gather(*(bench.step(i, 1, "s") for i in range(1, 5)))
        outcomes = await asyncio.gather(
            *(bench.step(i, 13 if i == 2 else 1) for i in range(1, 5)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [InferenceFailed] * 4
        # Whatever ran, ran once: each value was added exactly one time.
        totals = await asyncio.gather(*(bench.step(i, 0) for i in range(1, 5)))
        assert totals == [2, 14, 2, 2]


TRITON = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        value, start = (
            int(pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0, 0])
            for name in ("INPUT", "START")
        )
        name, flags = request.correlation_id(), request.flags()
        assert bool(start) == bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
        self.sums[name] = value if start else self.sums[name] + value
        total = self.sums[name]
        if flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
            del self.sums[name]
        return pb_utils.InferenceResponse([
            pb_utils.Tensor(name, np.array([[number]], np.int32))
            for name, number in (("OUTPUT", total), ("WHO", os.getpid()))
        ])
"""


@pytest.mark.parametrize("strategy", ["direct", "oldest"])
async def test_triton_models_are_told_of_their_sequences(bench, strategy):
    def declared(name):
        return TensorConfig(name=name, datatype="INT32", shape=(-1, 1))

    await bench.load(
        TRITON,
        SequenceConfig(strategy=strategy, max_sequences=4, controls=(START,)),
        instances=2,
        batching=BatchConfig(max_batch_size=4),
        inputs=(declared("INPUT"),),
        outputs=(declared("OUTPUT"), declared("WHO")),
    )

    async def walk(name):
        answers = []
        for value in range(1, 11):
            flags = "s" * (value == 1) + "e" * (value == 10)
            answer = await bench.engine.infer(bench.request(name, [[value]], flags))
            answers.append([int(tensor.data[0, 0]) for tensor in answer.outputs])
        return answers

    walks = await asyncio.gather(*(walk(name) for name in [*range(1, 20), "a", "b"]))
    everybody = set()
    for answers in walks:
        assert [total for total, _ in answers] == np.cumsum(range(1, 11)).tolist()
        (who,) = {who for _, who in answers}
        everybody.add(who)
    assert len(everybody) == 2


COUNTDOWN = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.left = {}

    def execute(self, requests):
        return [self.step(request) for request in requests]

    def step(self, request):
        name = request.correlation_id()
        if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            value = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            self.left[name] = [int(value[0, 0]), 0]
        steps = self.left[name]
        steps[0] -= 1
        steps[1] += 1
        if steps[0] > 0:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            return None
        taken = np.array([[self.left.pop(name)[1]]], np.int32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", taken)])
"""


async def test_triton_models_may_ask_to_be_run_again(bench):
    await bench.load(
        COUNTDOWN,
        SequenceConfig(strategy="oldest", max_sequences=4, iterative=True),
        instances=2,
        batching=BatchConfig(max_batch_size=4),
        inputs=(TensorConfig(name="INPUT", datatype="INT32", shape=(-1, 1)),),
        outputs=(TensorConfig(name="OUTPUT", datatype="INT32", shape=(-1, 1)),),
    )
    counts = [1, 7, 3, 12, 2, 5, 30]
    assert await asyncio.gather(*(bench.step(0, count) for count in counts)) == counts
    assert max(bench.watcher.batches) > 1


# Keeps its sums by the number of the row, as Triton's direct strategy promises it may.
BY_ROW = """
from typing import Annotated, NamedTuple
import numpy as np

Row = Annotated[np.ndarray, "INT32[N,1]"]

class Answer(NamedTuple):
    OUTPUT: Row
    SEEN: Annotated[np.ndarray, "INT32[N,8]"]

class Model:
    def load(self):
        self.sums = np.zeros(8, np.int32)

    def predict(
        self, INPUT: Row, START: Annotated[np.ndarray, "BOOL[N,1]"], READY: Row
    ) -> Answer:
        rows = len(INPUT)
        ready, start = READY[:, 0] == 1, START[:, 0]
        assert not INPUT[~ready].any() and not start[~ready].any()
        self.sums[:rows][start] = 0
        self.sums[:rows][ready] += INPUT[:, 0][ready]
        seen = np.full(8, -1, np.int32)
        seen[:rows] = ready
        return Answer(self.sums[:rows, None].copy(), np.repeat(seen[None], rows, axis=0))
"""


class TestDirectRows:
    async def load(self, bench, **fields):
        controls = (control("start", "BOOL"), control("ready"))
        return await bench.load(
            BY_ROW,
            SequenceConfig(controls=controls, **fields),
            instances=1,
            batching=BatchConfig(max_batch_size=4),
            runtime_options={"isolation": "thread"},
        )

    async def test_rows_stand_at_their_slots_and_holes_are_not_ready(self, bench):
        await self.load(bench)
        for name in (1, 2, 3):
            await bench.step(name, name, "s")
        answer = await bench.engine.infer(bench.request(3, [[10]]))
        assert answer.outputs[0].data.tolist() == [[13]]
        assert answer.outputs[1].data.tolist() == [[0, 0, 1, -1, -1, -1, -1, -1]]
        assert await bench.step(1, 10) == 11

    async def test_a_row_that_was_freed_is_the_next_one_s(self, bench):
        await self.load(bench)
        for name in (1, 2, 3):
            await bench.step(name, name, "s")
        await bench.step(2, 0, "e")
        assert await bench.step(9, 90, "s") == 90
        answer = await bench.engine.infer(bench.request(9, [[1]]))
        assert answer.outputs[0].data.tolist() == [[91]]
        assert answer.outputs[1].data.tolist()[0][:3] == [0, 1, -1]

    async def test_more_sequences_than_rows_wait_for_one(self, bench):
        await self.load(bench)
        values = {name: [name, 1, 1, -name] for name in range(1, 20)}
        sums = await asyncio.gather(*(bench.add_up(n, v) for n, v in values.items()))
        assert sums == [np.cumsum(v).tolist() for v in values.values()]
        assert max(bench.watcher.batches) > 1


ECHO = """
from typing import Annotated, NamedTuple
import numpy as np

class Answer(NamedTuple):
    OUTPUT: Annotated[np.ndarray, "FP32[N,4]"]
    NAME: Annotated[np.ndarray, "{id}[N,1]"]

def predict(
    INPUT: Annotated[np.ndarray, "INT32[N,1]"],
    A: Annotated[np.ndarray, "{flag}[N,1]"],
    B: Annotated[np.ndarray, "{flag}[N,1]"],
    C: Annotated[np.ndarray, "{flag}[N,1]"],
    D: Annotated[np.ndarray, "{id}[N,1]"],
) -> Answer:
    return Answer(np.concatenate([INPUT, A, B, C], axis=1).astype(np.float32), D)
"""


@pytest.mark.parametrize(
    ("flag", "false", "true"), [("INT32", -1, 7), ("FP32", 0.5, 2), ("BOOL", 0, 1)]
)
@pytest.mark.parametrize("kind", ["INT32", "INT64", "UINT32", "UINT64", "BYTES"])
async def test_controls_say_what_they_should(bench, flag, false, true, kind):
    controls = [
        ControlConfig(name=name, kind=what, datatype=flag, false_value=false, true_value=true)
        for name, what in (("A", "start"), ("B", "end"), ("C", "ready"))
    ]
    await bench.load(
        ECHO.format(flag=flag, id=kind),
        SequenceConfig(controls=(*controls, control("corrid", kind, "D"))),
        runtime_options={"isolation": "thread"},
    )
    for flags, expected in (("s", [true, false]), ("", [false, false]), ("e", [false, true])):
        answer = await bench.engine.infer(bench.request(41, [[5]], flags))
        assert answer.outputs[0].data.tolist() == [[5, *expected, true]]
        assert answer.outputs[1].data.tolist() == [[b"41" if kind == "BYTES" else 41]]
    if kind == "BYTES":
        answer = await bench.engine.infer(bench.request("köln", [[5]], "se"))
        assert answer.outputs[1].data.tolist() == [["köln".encode()]]
