"""Models that call other models while they execute (Triton's business logic scripting)."""

from __future__ import annotations

import asyncio

import pytest

from headrace.config import TensorConfig, WarmupConfig
from headrace.errors import HeadraceError, InferenceFailed, InstanceDied

from .triton_bench import OUT, TritonBench

PLUS = """
    return [numbers(number(each) + 1) for each in requests]
"""

CALLS = """
    return [numbers(*outcome(asked("{}", number(each)).exec())) for each in requests]
"""

REPEAT = """
    for each in requests:
        sender = each.get_response_sender()
        for value in range(number(each)):
            sender.send(numbers(value))
        sender.send(flags=FINAL)
"""


@pytest.fixture
async def bench(tmp_path):
    bench = TritonBench(tmp_path)
    yield bench
    await bench.close()


async def test_three_models_deep_and_as_many_callers_as_there_are_instances(bench):
    """Each has one instance; the engine has two in common: nobody waits for ever."""
    await bench.load("c", PLUS)
    await bench.load("b", CALLS.format("c"))
    await bench.load("a", CALLS.format("b"))
    answers = await asyncio.wait_for(
        asyncio.gather(*(bench.ask("a", value) for value in range(40))), 60
    )
    assert answers == [[value + 1] for value in range(40)]


async def test_every_way_to_call(bench):
    """One model, called in each way by another."""
    await bench.load("plus", PLUS)
    await bench.load("repeat", REPEAT, decoupled=True)
    calls = {
        "exec": "return [numbers(*outcome(asked('plus', 1).exec()))]",
        "several": """
            values = [asked("plus", value).exec() for value in range(5)]
            return [numbers(*(value for each in values for value in outcome(each)))]
        """,
        "gathered": """
            async def all():
                return await asyncio.gather(*(asked("plus", i).async_exec() for i in range(50)))
            got = asyncio.run(all())
            return [numbers(*(value for each in got for value in outcome(each)))]
        """,
        "stream": """
            got = [outcome(each) for each in asked("repeat", 3).exec(decoupled=True)]
            return [numbers(len(got), *(value for each in got for value in each))]
        """,
        "one_by_one": """
            got = asked("repeat", 2).exec(decoupled=True)
            return [numbers(*outcome(next(got)), *outcome(next(got)))]
        """,
        "async_stream": """
            async def all():
                got = await asked("repeat", 4).async_exec(decoupled=True)
                return [value for each in got for value in outcome(each)]
            return [numbers(*asyncio.run(all()))]
        """,
        "one_as_stream": """
            got = [outcome(each) for each in asked("plus", 5).exec(decoupled=True)]
            return [numbers(*(value for each in got for value in each))]
        """,
        "big": """
            response = asked("plus", *range(100_000)).exec()
            return [numbers(*outcome(response))]
        """,
        "ready": """
            names = [("plus", "1"), ("plus", ""), ("plus", "2"), ("nobody", "")]
            return [numbers(*(int(pb_utils.is_model_ready(*each)) for each in names))]
        """,
        "thread": """
            got = []
            work = lambda value: got.append(outcome(asked("plus", value).exec())[0])
            threads = [threading.Thread(target=work, args=(value,)) for value in range(10)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            return [numbers(*sorted(got))]
        """,
    }
    choices = "".join(f"    def {name}():{_body(code)}" for name, code in calls.items())
    await bench.load("caller", f"{choices}    return locals()[requests[0].request_id()]()\n")
    expected = {
        "exec": [2],
        "several": [1, 2, 3, 4, 5],
        "gathered": list(range(1, 51)),
        "stream": [4, 0, 1, 2],
        "one_by_one": [0, 1],
        "async_stream": [0, 1, 2, 3],
        "one_as_stream": [6],
        "big": [1],
        "ready": [1, 1, 0, 0],
        "thread": list(range(1, 11)),
    }
    for name in calls:
        got = await asyncio.wait_for(bench.ask("caller", 0, id=name), 30)
        assert (name, got) == (name, expected[name])


def _body(code: str) -> str:
    lines = code.strip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip())
    return "\n" + "".join(f"        {line[margin:]}\n" for line in lines if line.strip())


async def test_what_goes_wrong_is_the_response(bench):
    await bench.load("plus", PLUS)
    await bench.load("bad", "    raise ValueError('bad')\n")
    await bench.load("dies", "    os._exit(1)\n")
    await bench.load("repeat", REPEAT, decoupled=True)
    await bench.load(
        "caller",
        """
    name, _, output = requests[0].request_id().partition(":")
    response = asked(name, 2, outputs=[output or "OUT"]).exec()
    message = response.error().message() if response.has_error() else "fine"
    text = pb_utils.Tensor("TEXT", np.array([message.encode()], object))
    return [pb_utils.InferenceResponse([text])]
    """,
        outputs=(TensorConfig(name="TEXT", datatype="BYTES", shape=(1,)),),
    )

    async def told(name):
        (text,) = await asyncio.wait_for(bench.ask("caller", 0, id=name), 30)
        return text.decode()

    assert await told("plus") == "fine"
    assert "nobody" in await told("nobody")
    assert "unexpected inference output 'NOBODY' for model 'plus'" in await told("plus:NOBODY")
    assert "ValueError: bad" in await told("bad")
    assert "exited with status 1" in await told("dies")
    assert "decoupled" in await told("repeat")
    assert await told("plus") == "fine"


async def test_who_calls_dies_and_calls_again(bench):
    """The answer to the one that died has nobody to go to."""
    await bench.load("plus", PLUS)
    await bench.load(
        "caller",
        """
    if number(requests[0]) < 0:
        threading.Thread(target=lambda: asked("plus", 1).exec()).start()
        os._exit(2)
    return [numbers(*outcome(asked("plus", number(each)).exec())) for each in requests]
    """,
    )
    for _ in range(3):
        with pytest.raises(InstanceDied):
            await bench.ask("caller", -1)
        assert await bench.ask("caller", 5) == [6]


async def test_a_model_that_was_warmed_up_calls_too(bench):
    await bench.load("plus", PLUS)
    code = """
    if number(requests[0]) == 0:
        return [numbers(7)]
    return [numbers(*outcome(asked("plus", number(each)).exec())) for each in requests]
    """
    zero = {"IN": {"datatype": "INT32", "shape": (1,), "data": "zero"}}
    await bench.load("caller", code, warmup=(WarmupConfig(inputs=zero),))
    assert await bench.ask("caller", 3) == [4]


async def test_a_request_without_a_response_is_told_so(bench):
    await bench.load("silent", "    return [None for each in requests]\n")
    with pytest.raises(InferenceFailed, match="gave no answer"):
        await bench.ask("silent", 1)


async def test_an_output_that_the_model_left_out_is_left_out(bench):
    """As Triton has it; one output, and two of which one is there."""
    await bench.load("none", "    return [pb_utils.InferenceResponse([]) for each in requests]\n")
    assert (await bench.engine.infer(bench.request("none", 1))).outputs == []
    other = TensorConfig(name="OTHER", datatype="INT32", shape=(-1,))
    await bench.load("one", PLUS, outputs=(other, OUT))
    answer = await bench.engine.infer(bench.request("one", 1))
    assert [tensor.name for tensor in answer.outputs] == ["OUT"]


async def test_a_cancelled_request_is_seen_while_it_runs(bench):
    await bench.load(
        "slow",
        """
    if number(requests[0]) == 1:
        asked("plus", 1).exec()
        while not requests[0].is_cancelled():
            threading.Event().wait(0.001)
        self.kept["seen"] = 1
    return [numbers(self.kept.get("seen", 0)) for each in requests]
    """,
    )
    called = asyncio.Event()
    plus = await bench.load("plus", PLUS)
    execute = plus.loaded.execute_requests
    loop = asyncio.get_running_loop()

    def noticed(requests, emit):
        loop.call_soon_threadsafe(called.set)
        execute(requests, emit)

    plus.loaded.execute_requests = noticed
    task = asyncio.create_task(bench.ask("slow", 1))
    await asyncio.wait_for(called.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.wait_for(bench.ask("slow", 0), 30) == [1]


async def test_errors_of_single_responses_have_their_codes(bench):
    await bench.load(
        "picky",
        """
    return [
        pb_utils.InferenceResponse(error=pb_utils.TritonError("no", number(each)))
        for each in requests
    ]
    """,
    )
    for code in range(8):
        with pytest.raises(HeadraceError, match="no"):
            await bench.ask("picky", code)
