"""An error that crossed an edge holds none of the frames it came through, nor what they hold."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from headrace.engine.preprocess import _prepare
from headrace.errors import HeadraceError, InferenceFailed, InvalidRequest, detached
from headrace.tasks.base import Prepared, Task
from headrace.types import InferenceRequest, Tensor, TensorSpec

from .conftest import Bench, ScriptedModel
from .house import until

TEXT = TensorSpec("x", "FP32", (-1, 2))


@pytest.fixture(autouse=True)
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    logging.disable()  # what is logged is kept for pytest's report, with its traceback
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


class Payload(np.ndarray):
    """An array that can be referred to weakly."""


def asked(name: str = "m", width: int = 2) -> tuple[InferenceRequest, weakref.ref[Payload]]:
    data = np.zeros((1, width), np.float32).view(Payload)
    return InferenceRequest(name, [Tensor("x", "FP32", data.shape, data)]), weakref.ref(data)


class Refusing(Task):
    """Refuses everything, as a task does that finds a text too long."""

    kind = "refusing"
    inputs = outputs = (TEXT,)
    padding = None

    def prepare(self, request: InferenceRequest) -> Prepared:
        raise InvalidRequest("too long")


def raises_from(cause: Exception):
    def compute(*_arrays: np.ndarray) -> list[np.ndarray]:
        try:
            raise cause
        except Exception as error:
            raise InferenceFailed("it failed") from error

    return compute


def unforeseen(*_arrays: np.ndarray) -> list[np.ndarray]:
    raise KeyError("unforeseen")


def chain_of(error: BaseException) -> list[object]:
    return [error.__traceback__, error.__cause__, error.__context__]


def test_the_whole_chain_is_cleared() -> None:
    inner, outer = ValueError("inner"), InferenceFailed("outer")
    outer.__cause__, outer.__context__, inner.__context__ = inner, inner, outer  # a circle
    for each in (inner, outer):
        with pytest.raises(type(each)):
            raise each
    assert detached(outer) is outer
    assert chain_of(outer) == chain_of(inner) == [None] * 3


async def fails(bench: Bench, request: InferenceRequest) -> HeadraceError:
    """Its only reference to the payload is the request, which ends here."""
    seen: list[HeadraceError] = []

    class Reply:
        def complete(self, response, record) -> None:
            raise AssertionError

        def fail(self, error: HeadraceError) -> None:
            seen.append(error)

    try:
        bench.engine.submit(request, Reply())
    except HeadraceError as error:
        return detached(error)
    del request
    await until(lambda: seen)
    return seen[0]


@pytest.mark.parametrize("compute", [raises_from(OSError("no")), unforeseen], ids=["told", "not"])
async def test_a_model_that_raises(bench: Bench, compute) -> None:
    model = ScriptedModel()
    model.compute = compute
    bench.serve(model)
    request, payload = asked()
    error = await fails(bench, request)
    del request
    model.batches.clear()
    await asyncio.sleep(0)
    assert chain_of(error) == [None] * 3
    assert payload() is None


async def test_a_task_that_refuses(bench: Bench) -> None:
    bench.serve(ScriptedModel(), task=Refusing())
    request, payload = asked()
    error = await fails(bench, request)
    del request
    await asyncio.sleep(0)
    assert chain_of(error) == [None] * 3
    await until(lambda: payload() is None)  # the thread that prepared it lets go of it soon


@pytest.mark.parametrize(("name", "width"), [("nothing", 2), ("m", 3)], ids=["model", "shape"])
async def test_a_request_that_is_refused_at_once(bench: Bench, name: str, width: int) -> None:
    bench.serve(ScriptedModel())
    request, payload = asked(name, width)
    await fails(bench, request)
    del request
    assert payload() is None


async def test_a_failure_that_is_awaited(bench: Bench) -> None:
    model = ScriptedModel()
    model.compute = unforeseen
    bench.serve(model)
    request, payload = asked()
    with pytest.raises(InferenceFailed):
        await bench.engine.infer(request)
    del request
    model.batches.clear()
    await asyncio.sleep(0)
    assert payload() is None


def test_what_was_raised_unforeseen_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.disable(logging.NOTSET)

    class Raises(Refusing):
        def prepare(self, request: InferenceRequest) -> Prepared:
            raise KeyError("unforeseen")

    ticket = type("Ticket", (), {})()
    ticket.served = type("Served", (), {"task": Raises(), "name": "m"})()
    ticket.request = asked()[0]
    outcome = _prepare(ticket)
    assert isinstance(outcome, InferenceFailed)
    assert "in prepare" in caplog.text
