"""A model made of models: the right steps, in the right order, and one answer whatever happens."""

from __future__ import annotations

import asyncio
import gc
import random
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import EnsembleStep, QueueConfig
from headrace.engine.catalog import MAX_ENSEMBLE_DEPTH, MAX_ENSEMBLE_STEPS
from headrace.engine.ensemble_plan import StepModel, plan_of
from headrace.errors import (
    CapacityError,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    ModelLoadError,
    ModelNotReady,
    Overloaded,
)
from headrace.testing.fakes import FakeModel
from headrace.types import ModelMetadata, RequestedOutput, TensorSpec

from .assembled import ask, ensemble, tensor, tensor_config

X, Y = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "FP32", (-1, 2))
IN, OUT = tensor_config("IN", (-1, 2)), tensor_config("OUT", (-1, 2))


def unary(compute) -> FakeModel:
    return FakeModel(lambda x: [compute(x)], inputs=(X,), outputs=(Y,))


def adder() -> FakeModel:
    inputs = (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (-1, 2)))
    return FakeModel(lambda a, b: [a + b], inputs=inputs, outputs=(Y,))


def step(model: str, takes: str, gives: str):
    return (model, {"x": takes}, {"y": gives})


@pytest.fixture
def diamond(bench):
    """IN -> twice -> T, IN -> plus -> P, T + P -> add -> OUT; given in the wrong order."""
    models = {"twice": unary(lambda x: x * 2), "plus": unary(lambda x: x + 1), "add": adder()}
    for name, model in models.items():
        bench.serve(model, name=name)
    ensemble(
        bench.engine,
        [
            ("add", {"a": "T", "b": "P"}, {"y": "OUT"}),
            step("twice", "IN", "T"),
            step("plus", "IN", "P"),
        ],
        inputs=(IN,),
        outputs=(OUT, tensor_config("P", (-1, 2))),
        instrument=bench.watcher,
    )
    return models


def to_e(rows=((1, 2),), **fields):
    return ask(tensor("IN", rows), name="e", **fields)


class Stream:
    """A reply for several answers."""

    def __init__(self) -> None:
        self.parts = []
        self.last = asyncio.get_running_loop().create_future()

    def part(self, response) -> None:
        assert not self.last.done()
        self.parts.append(response)

    def complete(self, response, _record) -> None:
        self.last.set_result(response)

    def fail(self, error) -> None:
        self.last.set_exception(error)


async def test_steps_run_as_their_inputs_come(bench, diamond):
    answer = await bench.engine.infer(to_e(id="q"))

    assert answer.id == "q"
    assert [(o.name, o.data.tolist()) for o in answer.outputs] == [
        ("OUT", [[4, 7]]),
        ("P", [[2, 3]]),
    ]
    assert bench.watcher.ends == ["complete"] * 4  # three steps and the whole


async def test_branches_that_do_not_wait_for_each_other_run_together(bench, diamond):
    meet = threading.Barrier(2, timeout=30)
    for name in ("twice", "plus"):
        compute = diamond[name].compute
        diamond[name].compute = lambda x, compute=compute: (meet.wait(), compute(x))[1]

    answer = await bench.engine.infer(to_e())
    assert answer.outputs[0].data.tolist() == [[4, 7]]


async def test_only_the_steps_that_are_needed_run(bench, diamond):
    answer = await bench.engine.infer(to_e(outputs=["P"]))

    assert [(o.name, o.data.tolist()) for o in answer.outputs] == [("P", [[2, 3]])]
    assert [len(model.calls) for model in diamond.values()] == [0, 1, 0]


async def test_steps_of_many_requests_share_batches(bench, diamond):
    answers = await asyncio.gather(*(bench.engine.infer(to_e([[i, i]])) for i in range(8)))

    assert [a.outputs[0].data.tolist() for a in answers] == [[[3 * i + 1] * 2] for i in range(8)]
    assert all(len(model.calls) < 8 for model in diamond.values())


async def test_tensors_are_handed_on_without_a_copy(bench):
    seen = []
    bench.serve(unary(lambda x: x * 2), name="twice")
    last = unary(lambda x: (seen.append(x), x)[1])
    bench.serve(last, name="look")
    ensemble(
        bench.engine,
        [step("twice", "IN", "MID"), step("look", "MID", "OUT")],
        inputs=(IN,),
        outputs=(OUT, tensor_config("MID", (-1, 2))),
    )
    answer = await bench.engine.infer(to_e())

    assert np.shares_memory(answer.outputs[1].data, seen[0])


async def test_what_a_request_says_goes_with_every_step(bench, diamond):
    heard = []
    submit = bench.engine.submit

    def listen(request, reply):
        heard.append(request)
        return submit(request, reply)

    bench.engine.submit = listen
    said = {"priority": 3, "parameters": {"k": 1}, "id": "q", "tenant": "t"}
    await bench.engine.infer(to_e(timeout_ns=10**10, **said))

    whole, *steps = heard
    assert [s.model_name for s in steps] == ["twice", "plus", "add"]
    for request in steps:
        assert {name: getattr(request, name) for name in said} == said
        assert 0 < request.timeout_ns < whole.timeout_ns


async def test_a_step_that_fails_is_named_and_the_rest_is_withdrawn(bench, diamond):
    with diamond["twice"].gate.closed():
        diamond["plus"].fail_next(InferenceFailed("burnt", code="burnt"))
        with pytest.raises(InferenceFailed) as caught:
            await bench.engine.infer(to_e())

    assert caught.value.message == "in ensemble 'e', step 2 ('plus'): burnt"
    assert caught.value.code == "burnt"
    assert caught.value.details["step"] == "plus"
    assert sorted(bench.watcher.ends) == ["cancel:cancelled", "fail:burnt", "fail:burnt"]
    assert await bench.engine.drain(10)


async def test_a_request_that_its_first_step_refuses_is_refused_at_once(bench):
    bench.serve(unary(lambda x: x), name="one")
    ensemble(
        bench.engine,
        [step("one", "IN", "OUT")],
        inputs=(tensor_config("IN", (-1, -1)),),
        outputs=(OUT,),
    )
    with pytest.raises(
        InvalidRequest, match=r"in ensemble 'e', step 0 \('one'\): unexpected shape"
    ):
        bench.engine.submit(ask(tensor("IN", [[1, 2, 3]]), name="e"), Stream())


async def test_a_full_queue_of_a_step_is_a_full_ensemble(bench):
    slow = unary(lambda x: x)
    bench.serve(slow, name="slow", queue=QueueConfig(max_queue_size=1))
    ensemble(bench.engine, [step("slow", "IN", "OUT")], inputs=(IN,), outputs=(OUT,))
    with slow.gate.closed():
        first = asyncio.create_task(bench.engine.infer(to_e()))
        await asyncio.to_thread(slow.gate.wait_for, 1)
        rest = [asyncio.create_task(bench.engine.infer(to_e())) for _ in range(3)]
        outcomes = asyncio.gather(*rest, return_exceptions=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    refused = [o for o in await outcomes if isinstance(o, Overloaded)]
    await first
    assert len(refused) == 2
    assert all("in ensemble 'e', step 0 ('slow')" in error.message for error in refused)


async def test_a_client_that_leaves_takes_its_steps_along(bench, diamond):
    with diamond["twice"].gate.closed():
        asking = asyncio.create_task(bench.engine.infer(to_e()))
        await asyncio.to_thread(diamond["twice"].gate.wait_for, 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert await bench.engine.drain(10)
    assert bench.watcher.ends.count("cancel:cancelled") >= 2
    assert len(diamond["add"].calls) == 0


async def test_the_deadline_is_the_ensembles_not_each_steps(bench, diamond):
    late = pytest.raises(DeadlineExceeded, match="in ensemble 'e'")
    with diamond["twice"].gate.closed(), late:
        await bench.engine.infer(to_e(timeout_ns=30_000_000))
    assert {end.split(":")[0] for end in bench.watcher.ends} <= {"expire", "complete", "cancel"}
    assert await bench.engine.drain(10)


async def test_classes_of_an_ensembles_output(bench, diamond):
    request = to_e([[1, 2], [9, 0]])
    request.outputs = [RequestedOutput("P", classification=1)]
    answer = await bench.engine.infer(request)

    assert answer.outputs[0].data.tolist() == [[b"3.000000:1"], [b"10.000000:0"]]


async def test_ensembles_of_ensembles(bench, diamond):
    ensemble(
        bench.engine,
        [("e", {"IN": "A"}, {"OUT": "B"}), ("e", {"IN": "B"}, {"OUT": "C"})],
        name="outer",
        inputs=(tensor_config("A", (-1, 2)),),
        outputs=(tensor_config("C", (-1, 2)),),
    )
    answer = await bench.engine.infer(ask(tensor("A", [[1, 2]]), name="outer"))
    assert answer.outputs[0].data.tolist() == [[13, 22]]

    diamond["add"].fail_next(InferenceFailed("burnt"))
    with pytest.raises(InferenceFailed) as caught:
        await bench.engine.infer(ask(tensor("A", [[1, 2]]), name="outer"))
    assert caught.value.message == (
        "in ensemble 'outer', step 0 ('e'): in ensemble 'e', step 0 ('add'): burnt"
    )


async def test_an_optional_input_that_is_left_out_holds_nothing_up(bench):
    model = adder()
    model.inputs = (model.inputs[0], TensorSpec("b", "FP32", (-1, 2), optional=True))
    model.compute = lambda a, b: [a if b is None else a + b]
    bench.serve(model, name="add")
    ensemble(
        bench.engine,
        [("add", {"a": "IN", "b": "MORE"}, {"y": "OUT"})],
        inputs=(IN, tensor_config("MORE", (-1, 2), optional=True)),
        outputs=(OUT,),
    )
    answer = await bench.engine.infer(to_e())
    assert answer.outputs[0].data.tolist() == [[1, 2]]


async def test_a_step_that_became_an_ensemble_of_its_ensemble_is_refused(bench):
    bench.serve(unary(lambda x: x), name="one")
    served = ensemble(bench.engine, [step("one", "IN", "OUT")], inputs=(IN,), outputs=(OUT,))
    assert bench.engine.catalog.steps_below("e") == {"one"}
    for name in ("one", "e"):
        with pytest.raises(ModelLoadError, match=f"ensemble '{name}' has a circular dependency"):
            ensemble(
                bench.engine,
                [("e", {"IN": "IN"}, {"OUT": "OUT"})],
                name=name,
                inputs=(IN,),
                outputs=(OUT,),
            )
    assert bench.engine.catalog.resolve("e") is served


async def test_a_step_unloaded_since_is_missed_by_name(bench):
    served = bench.serve(unary(lambda x: x), name="one")
    ensemble(bench.engine, [step("one", "IN", "OUT")], inputs=(IN,), outputs=(OUT,))
    assert bench.engine.catalog.is_ready("e")
    bench.engine.remove_model(served)
    assert not bench.engine.catalog.is_ready("e")
    with pytest.raises(ModelNotReady, match=r"in ensemble 'e', step 0 \('one'\)"):
        await bench.engine.infer(to_e())


async def test_whatever_happens_every_request_ends_once_and_nothing_is_left(bench, diamond):
    """Failures, cancellations and deadlines in any order, a few hundred times."""
    chance = random.Random(4)
    for model in diamond.values():
        compute = model.compute

        def sometimes(*arrays, compute=compute):
            if chance.random() < 0.1:
                raise InferenceFailed("by chance")
            return compute(*arrays)

        model.compute = sometimes
    asking = []
    for number in range(300):
        timeout_ns = chance.choice([0, 0, 0, 200_000, 2_000_000])
        asking.append(
            asyncio.create_task(bench.engine.infer(to_e([[number, number]], timeout_ns=timeout_ns)))
        )
        if chance.random() < 0.3:
            await asyncio.sleep(0)
        if chance.random() < 0.2:
            chance.choice(asking).cancel()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)

    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, InferenceFailed | CapacityError | asyncio.CancelledError)
        else:
            assert outcome.outputs[0].data.tolist() == [[3 * number + 1] * 2]
    assert await bench.engine.drain(10)
    assert bench.engine.statistics().live == 0
    assert {type(outcome).__name__ for outcome in outcomes} > {"InferenceResponse"}


async def test_no_request_leaves_something_for_the_garbage_collector(bench, diamond):
    bench.serve(Counter(), name="count")
    ensemble(
        bench.engine,
        [step("count", "IN", "N"), step("count", "N", "OUT")],
        name="stream",
        inputs=(ONE_IN,),
        outputs=(ONE_OUT,),
    )

    async def a_few() -> None:
        for _ in range(20):
            await bench.engine.infer(to_e())
            stream = Stream()
            bench.engine.submit(ask(tensor("IN", [[3]]), name="stream"), stream)
            await stream.last

    await a_few()
    gc.collect()
    await a_few()
    assert gc.collect() == 0


# -- models with any number of answers ---------------------------------------------------------


class Counter:
    """Decoupled: answers ``x`` [1, 1] with 0, 1, ... up to x - 1."""

    takes_requests = True
    decoupled = True
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("y", "FP32", (-1, 1)),)

    def __init__(self) -> None:
        self.concurrency = 1

    def execute_requests(self, requests, emit) -> None:
        for request in requests:
            for number in range(int(request.arrays[0][0, 0])):
                emit(request.key, [np.full((1, 1), number, np.float32)], False)
            emit(request.key, None, True)

    def unload(self) -> None:
        pass


ONE_IN, ONE_OUT = tensor_config("IN", (-1, 1)), tensor_config("OUT", (-1, 1))


async def answers_to(engine, count, **fields) -> list[list[float]]:
    stream = Stream()
    engine.submit(ask(tensor("IN", [[count]]), name="e", **fields), stream)
    last = await stream.last
    got = [[o.data.tolist() for o in part.outputs] for part in (*stream.parts, last)]
    assert all(got[:-1])
    return sorted(each for each in got if each)


async def test_every_answer_of_a_decoupled_step_becomes_one_of_the_ensemble(bench):
    bench.serve(Counter(), name="count")
    one = TensorSpec("x", "FP32", (-1, 1))
    bench.serve(
        FakeModel(lambda x: [x * 10], inputs=(one,), outputs=(TensorSpec("y", "FP32", (-1, 1)),)),
        name="ten",
    )
    served = ensemble(
        bench.engine,
        [step("count", "IN", "N"), step("ten", "N", "OUT")],
        inputs=(ONE_IN,),
        outputs=(ONE_OUT,),
    )
    assert served.decoupled
    assert await answers_to(bench.engine, 3) == [[[[0]]], [[[10]]], [[[20]]]]
    assert await answers_to(bench.engine, 0) == []
    assert await bench.engine.drain(10)


async def test_decoupled_steps_within_one_another(bench):
    bench.serve(Counter(), name="count")
    ensemble(
        bench.engine,
        [step("count", "IN", "N"), step("count", "N", "OUT")],
        inputs=(ONE_IN,),
        outputs=(ONE_OUT,),
    )
    # 0, 1, 2 and 3 answers: nothing, (0), (0, 1), (0, 1, 2)
    assert await answers_to(bench.engine, 4) == [[[[n]]] for n in (0, 0, 0, 1, 1, 2)]


async def test_what_does_not_depend_on_a_decoupled_step_runs_once_for_all_its_answers(bench):
    bench.serve(Counter(), name="count")
    x, y = TensorSpec("x", "FP32", (-1, 1)), TensorSpec("y", "FP32", (-1, 1))
    slow = FakeModel(lambda x: [x + 100], inputs=(x,), outputs=(y,))
    bench.serve(slow, name="slow")
    pair = (TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP32", (-1, 1)))
    bench.serve(FakeModel(lambda a, b: [a + b], inputs=pair, outputs=(y,)), name="add")
    ensemble(
        bench.engine,
        [
            step("count", "IN", "N"),
            step("slow", "IN", "S"),
            ("add", {"a": "N", "b": "S"}, {"y": "OUT"}),
        ],
        inputs=(ONE_IN,),
        outputs=(ONE_OUT,),
    )
    assert await answers_to(bench.engine, 3) == [[[[103]]], [[[104]]], [[[105]]]]
    assert len(slow.calls) == 1


async def test_answers_of_two_decoupled_steps_side_by_side_cannot_be_paired(bench):
    bench.serve(Counter(), name="count")
    pair = (TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP32", (-1, 1)))
    add = FakeModel(lambda a, b: [a + b], inputs=pair, outputs=(TensorSpec("y", "FP32", (-1, 1)),))
    bench.serve(add, name="add")
    with pytest.raises(ModelLoadError, match=r"answers of decoupled models \['count'\] meet"):
        ensemble(
            bench.engine,
            [
                step("count", "IN", "N"),
                step("count", "IN", "M"),
                ("add", {"a": "N", "b": "M"}, {"y": "OUT"}),
            ],
            inputs=(ONE_IN,),
            outputs=(ONE_OUT,),
        )


# -- what cannot be loaded ---------------------------------------------------------------------

GOOD = [step("twice", "IN", "MID"), step("twice", "MID", "OUT")]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [step("twice", "IN", "MID"), step("gone", "MID", "OUT")],
            "depends on 'gone' which has no",
        ),
        ([("twice", {"z": "IN"}, {"y": "OUT"})], "'z' is no input of model 'twice'"),
        ([("twice", {"x": "IN"}, {"z": "OUT"})], "'z' is no output of model 'twice'"),
        ([("twice", {}, {"y": "OUT"})], r"step 0 feeds no input \['x'\] of model 'twice'"),
        ([step("twice", "IN", "MID")], "tensor 'OUT' is not written by any step"),
        ([step("twice", "NOWHERE", "OUT")], "tensor 'NOWHERE' is not written by any step"),
        ([step("twice", "IN", "OUT"), step("twice", "IN", "OUT")], "'OUT' is written more than"),
        ([step("twice", "IN", "IN"), step("twice", "IN", "OUT")], "'IN' is written more than once"),
        (
            [step("twice", "A", "B"), step("twice", "B", "A"), step("twice", "IN", "OUT")],
            "circular dependency between the steps 'twice', 'twice'",
        ),
        ([step("ints", "IN", "OUT")], "tensor IN: inconsistent data type: FP32 is inferred from"),
        ([step("wide", "IN", "OUT")], r"tensor IN: inconsistent shape: \[-1, 2\] is inferred from"),
    ],
)
async def test_what_is_wrong_is_said_when_it_is_loaded(bench, steps, message):
    bench.serve(unary(lambda x: x * 2), name="twice")
    for name, spec in {
        "ints": TensorSpec("x", "INT32", (-1, 2)),
        "wide": TensorSpec("x", "FP32", (-1, 3)),
    }.items():
        bench.serve(FakeModel(inputs=(spec,), outputs=(Y,)), name=name)
    with pytest.raises(ModelLoadError, match=message):
        ensemble(bench.engine, steps, inputs=(IN,), outputs=(OUT,))


@given(data=st.data(), count=st.integers(1, 8))
def test_any_graph_without_cycles_is_sorted_and_its_courses_are_complete(data, count):
    """Step k reads tensors of earlier ones; however they are written down, it can be run."""
    reads = [data.draw(st.sets(st.integers(-1, k - 1), min_size=1)) for k in range(count)]
    name = lambda k: "IN" if k < 0 else f"t{k}"  # noqa: E731
    steps = [
        EnsembleStep(
            model=f"m{k}",
            input_map={f"i{r}": name(r) for r in sorted(read)},
            output_map={"o": name(k)},
        )
        for k, read in enumerate(reads)
    ]
    steps.insert(0, EnsembleStep(model="first", input_map={"i": "IN"}, output_map={"o": "seen"}))
    spec = lambda n: TensorSpec(n, "FP32", (-1,))  # noqa: E731

    def model_of(model, _version):
        said = next(s for s in steps if s.model == model)
        inputs = tuple(map(spec, said.input_map))
        return StepModel(ModelMetadata(model, ("1",), "", inputs, (spec("o"),)), decoupled=False)

    outputs = [name(k) for k in range(count)]
    plan = plan_of(
        "e",
        inputs=[spec("IN")],
        outputs=[spec(output) for output in outputs],
        steps=data.draw(st.permutations(steps)),
        model_of=model_of,
    )
    wanted = data.draw(st.sampled_from(outputs))
    for course in (plan.course(), plan.course((wanted,))):
        there = {"IN"}
        for one in course.steps[-1]:
            assert {tensor for _, tensor in one.inputs} <= there
            there |= {tensor for _, tensor in one.outputs}
        assert set(course.wanted) <= there
    needed = {int(wanted[1:])}
    for k in range(count - 1, -1, -1):
        if k in needed:
            needed |= {r for r in reads[k] if r >= 0}
    assert {s.model for s in plan.course((wanted,)).steps[-1]} == {f"m{k}" for k in needed}


async def test_ensembles_within_one_another_end_at_a_bound_whatever_shortcuts_there_are(bench):
    bench.serve(unary(lambda x: x), name="e0")
    bench.serve(unary(lambda x: x), name="top")

    def chain(number: int) -> None:
        below = (f"e{number - 1}", {"IN": "IN"}, {"OUT": "OUT"})
        below = below if number > 1 else step("e0", "IN", "OUT")
        ensemble(bench.engine, [below], name=f"e{number}", inputs=(IN,), outputs=(OUT,))

    for number in range(1, MAX_ENSEMBLE_DEPTH + 1):
        chain(number)
    with pytest.raises(ModelLoadError, match="at most 16"):
        chain(MAX_ENSEMBLE_DEPTH + 1)
    with pytest.raises(ModelLoadError, match="at most 16"):  # e0 would lengthen all of them
        ensemble(bench.engine, [step("top", "IN", "OUT")], name="e0", inputs=(IN,), outputs=(OUT,))


def fan(bench, name: str, below: list[str]) -> None:
    """Each of ``below`` is a step of its own, side by side; the last one's output is asked for."""
    takes, gives = ("x", "y") if below[0] == "m" else ("IN", "OUT")
    names = [f"T{k}" for k in range(len(below) - 1)] + ["OUT"]
    steps = [(each, {takes: "IN"}, {gives: name}) for each, name in zip(below, names, strict=True)]
    ensemble(bench.engine, steps, name=name, inputs=(IN,), outputs=(OUT,))


async def test_steps_that_multiply_end_at_a_bound_and_readiness_looks_at_each_model_once(bench):
    bench.serve(unary(lambda x: x), name="m")
    fan(bench, "e1", ["m", "m"])
    for level in range(2, 9):
        fan(bench, f"e{level}", [f"e{level - 1}", f"e{level - 1}"])
    assert bench.engine.catalog.ensemble_steps("e9", ["e8", "e8"]) == 1022 > MAX_ENSEMBLE_STEPS
    with pytest.raises(ModelLoadError, match="at most 1,000"):
        fan(bench, "e9", ["e8", "e8"])
    looked: list[str] = []
    model = bench.engine.catalog.resolve("m")
    type_of = type(model)
    was = type_of.serving
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type_of, "serving", property(lambda s: looked.append(s.name) or was.fget(s)))
        assert bench.engine.catalog.is_ready("e8")
    assert sorted(looked) == sorted(["m", *(f"e{k}" for k in range(1, 9))])
    fan(bench, "top", ["m", *["m"] * 99])
    with pytest.raises(ModelLoadError, match="at most 1,000"):  # e1 would lengthen those above it
        fan(bench, "e1", ["m", *["m"] * 40])
