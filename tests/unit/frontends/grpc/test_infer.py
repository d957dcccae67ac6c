"""``ModelInfer`` and ``ModelStreamInfer`` on a real engine: answers, errors, leaving, draining."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from headrace.errors import HeadraceError, InvalidRequest, ModelNotFound, Unsupported
from headrace.frontends.grpc import infer
from tests.unit.frontends.grpc.bench import (
    WAIT_S,
    Bench,
    FakeCall,
    count,
    double,
    is_final,
    parts_of,
    values_of,
)

BARE = (b"headrace-dialect", b"mlserver")

UNAVAILABLE = 14


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.engine.close()


def send(incoming: Any, *messages: Any) -> None:
    for message in messages:
        incoming.message(message.SerializeToString())


async def until(holds: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - another thread decides when
            await asyncio.sleep(0)


# -- unary --------------------------------------------------------------------------------------


async def test_an_answer(bench: Bench) -> None:
    call = await bench.infer(double(1, 2, 3, 4, id="i"))
    assert call.code == 0
    (message,) = call.sent
    assert values_of(message) == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        (double(1, 2, 3, 4, model_version="9"), ModelNotFound, "is not found"),
        (double(1, 2, 3), InvalidRequest, "unexpected total byte size"),
        (count(1), Unsupported, "decoupled transaction policy"),
    ],
)
async def test_what_is_known_at_once(
    bench: Bench, message: Any, kind: type[HeadraceError], text: str
) -> None:
    call = FakeCall()
    with pytest.raises(kind, match=text):
        bench.methods.infer(call, message.SerializeToString())
    assert call.cancel is None


async def test_an_error_of_the_model(bench: Bench) -> None:
    def broken(x: np.ndarray) -> list[np.ndarray]:
        raise ValueError("seven")

    bench.double.compute = broken
    call = await bench.infer(double(1, 2, 3, 4))
    assert call.code == 13
    assert "seven" in call.text
    assert not call.sent


async def test_a_client_that_leaves(bench: Bench) -> None:
    with bench.double.gate.closed():
        first, second = FakeCall(), FakeCall()
        for call in (first, second):
            bench.methods.infer(call, double(1, 2, 3, 4).SerializeToString())
            await asyncio.sleep(0)
        await asyncio.to_thread(bench.double.gate.wait_for, 1)
        second.leave()
    await first.until_over()
    assert (first.code, second.sent, second.status) == (0, [], None)
    assert len(bench.double.calls) == 1


@pytest.mark.parametrize(
    ("call_ns", "own_us", "expected_ns"),
    [
        (0, None, 0),
        (5_000, None, 5_000),
        (0, 2, 2_000),
        (5_000, 2, 2_000),
        (5_000, 9, 5_000),
        (5_000, 0, 5_000),
    ],
)
async def test_the_earlier_deadline_counts(
    bench: Bench, call_ns: int, own_us: int | None, expected_ns: int
) -> None:
    message = double(1, 2, 3, 4)
    if own_us is not None:
        message.parameters["timeout"].int64_param = own_us
    call = FakeCall(timeout_ns=call_ns)
    request = bench.methods.request_of(call, message.SerializeToString(), call.arrived_ns)
    assert request.timeout_ns == expected_ns
    assert request.arrived_ns == call.arrived_ns


async def test_a_message_of_a_stream_has_what_is_left_of_the_calls_time(bench: Bench) -> None:
    call = FakeCall(timeout_ns=5_000)
    message = double(1, 2, 3, 4).SerializeToString()
    assert bench.methods.request_of(call, message, call.arrived_ns + 4_000).timeout_ns == 1_000
    assert bench.methods.request_of(call, message, call.arrived_ns + 9_000).timeout_ns == 1


async def test_the_trace_context_is_taken_along(bench: Bench) -> None:
    call = FakeCall([(b"a", b"b"), (b"traceparent", b"00-1-2-01")])
    request = bench.methods.request_of(call, double(1, 2, 3, 4).SerializeToString(), 1)
    assert request.trace_context == "00-1-2-01"


async def test_an_answer_that_cannot_be_encoded_ends_the_call(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> bytes:
        raise ValueError("no such thing")

    monkeypatch.setattr(infer.ResponseEncoder, "encode", broken)
    call = await bench.infer(double(1, 2, 3, 4))
    assert call.code == 13
    assert "no such thing" not in call.text
    assert "could not be encoded" in caplog.text
    call, incoming = bench.stream()
    send(incoming, double(1, 2, 3, 4), count(1))
    await call.until_sent(2)
    assert all("internal error" in part.error_message for part in parts_of(call))
    incoming.half_closed()
    await call.until_over()
    assert call.code == 0


async def test_an_answer_leaves_nothing_for_the_garbage_collector(bench: Bench) -> None:
    await bench.infer(double(1, 2, 3, 4))
    call, incoming = bench.stream()
    send(incoming, double(1, 2, 3, 4), count(2))
    await call.until_sent(3)
    gc.collect()
    for number in range(20):
        sent = double(1, 2, 3, 4).SerializeToString()
        unary = FakeCall()
        bench.methods.infer(unary, sent)
        incoming.message(sent)
        incoming.message(count(2).SerializeToString())
        await unary.until_over()
        await call.until_sent(3 + 3 * (number + 1))
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kinds = {type(garbage).__name__ for garbage in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not kinds & {"Ticket", "FakeCall", "_Reply", "_StreamReply", "InferenceRequest"}


# -- streams ------------------------------------------------------------------------------------


async def test_every_request_of_a_stream_is_answered(bench: Bench) -> None:
    call, incoming = bench.stream()
    send(incoming, *[double(n, n, n, n, id=str(n)) for n in range(5)])
    incoming.half_closed()
    await call.until_over()
    assert call.code == 0
    parts = {p.infer_response.id: p for p in parts_of(call)}
    for number in range(5):
        assert values_of(parts[str(number)].infer_response) == [2 * number] * 4
        assert is_final(parts[str(number)])


async def test_a_stream_without_requests(bench: Bench) -> None:
    call, incoming = bench.stream()
    incoming.half_closed()
    assert (call.code, call.sent) == (0, [])


@pytest.mark.parametrize("wants_empty", [False, True])
async def test_a_decoupled_model(bench: Bench, wants_empty: bool) -> None:
    call, incoming = bench.stream()
    message = count(3, id="i")
    if wants_empty:
        message.parameters["triton_enable_empty_final_response"].bool_param = True
    send(incoming, message)
    incoming.half_closed()
    await call.until_over()
    parts = parts_of(call)
    assert [values_of(part.infer_response) for part in parts[:3]] == [[0], [1], [2]]
    assert [is_final(part) for part in parts] == [False] * 3 + [True] * wants_empty
    assert {part.infer_response.id for part in parts} == {"i"}
    assert all(not part.infer_response.outputs for part in parts[3:])


async def test_an_error_is_an_answer_and_the_stream_goes_on(bench: Bench) -> None:
    call, incoming = bench.stream()
    incoming.message(b"\xff\xff")
    send(incoming, double(1, 2, 3, 4, id="i", model_version="9"), double(1, 2, 3, 4, id="j"))
    await call.until_sent(3)
    garbage, unknown, good = parts_of(call)
    assert "no ModelInferRequest" in garbage.error_message
    assert "is not found" in unknown.error_message
    assert unknown.infer_response.id == "i"
    assert (good.error_message, good.infer_response.id) == ("", "j")
    assert not call.closed


async def test_an_error_of_the_model_within_a_stream(bench: Bench) -> None:
    def broken(x: np.ndarray) -> list[np.ndarray]:
        raise ValueError("seven")

    bench.double.compute = broken
    call, incoming = bench.stream()
    send(incoming, double(1, 2, 3, 4, id="i"))
    incoming.half_closed()
    await call.until_over()
    (part,) = parts_of(call)
    assert "seven" in part.error_message
    assert call.code == 0


async def test_answers_keep_the_order_of_their_requests_but_for_decoupled_models(
    bench: Bench,
) -> None:
    call, incoming = bench.stream()
    unknown = double(1, 2, 3, 4, id="b", model_version="9")
    with bench.double.gate.closed():
        send(incoming, double(1, 2, 3, 4, id="a"), unknown, count(2, id="c"))
        await call.until_sent(2)
        await until(lambda: len(bench.double.calls) == 1)
        assert [part.infer_response.id for part in parts_of(call)] == ["c", "c"]
        incoming.half_closed()
        assert not call.closed
    await call.until_over()
    assert [part.infer_response.id for part in parts_of(call)] == ["c", "c", "a", "b"]
    assert parts_of(call)[-1].error_message
    assert call.code == 0


async def test_errors_that_wait_for_their_turn_count_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer, "MAX_STREAM_REQUESTS", 3)
    call, incoming = bench.stream()
    with bench.double.gate.closed():
        send(incoming, double(1, 2, 3, 4))
        for _ in range(2):
            assert call.reading
            incoming.message(b"\xff")
        send(incoming, count(0))
        assert not call.reading
    await until(lambda: call.reading)
    assert len(call.sent) == 3


async def test_the_dialect_of_mlserver(bench: Bench) -> None:
    call, incoming = bench.stream(BARE)
    send(incoming, double(1, 2, 3, 4), count(2))
    await call.until_sent(3)
    assert sorted(values_of(message)[0] for message in call.sent) == [0, 1, 2]
    send(incoming, double(1, 2, 3, 4, model_version="9"))
    assert call.code == 5
    assert "is not found" in call.text


async def test_a_client_that_leaves_its_stream(bench: Bench) -> None:
    bench.count.hold = True
    call, incoming = bench.stream()
    send(incoming, count(1), count(2))
    await call.until_sent(3)
    await until(lambda: len(bench.count.held) == 2)
    keys = {key for _, key in bench.count.held}
    call.leave()
    assert set(bench.count.cancelled) == keys
    for emit, key in bench.count.held:
        emit(key, [np.zeros(1, np.float32)], True)
    assert await bench.engine.drain(WAIT_S)
    assert len(call.sent) == 3


async def test_a_stream_is_not_read_while_too_much_of_it_is_under_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer, "MAX_STREAM_REQUESTS", 3)
    bench.count.hold = True
    call, incoming = bench.stream()
    for expected in (True, True, False):
        send(incoming, count(0))
        assert call.reading is expected
    await until(lambda: len(bench.count.held) == 3)
    emit, key = bench.count.held.pop()
    emit(key, None, True)
    await until(lambda: call.reading)
    call.leave()


async def test_a_stream_is_not_read_while_its_answers_are_not(bench: Bench) -> None:
    call, incoming = bench.stream()
    call.pending_bytes = infer.UNREAD_BYTES + 1
    send(incoming, double(1, 2, 3, 4), double(1, 2, 3, 4))
    await call.until_sent(2)
    assert not call.reading
    call.read.set()
    await until(lambda: call.reading)


async def test_a_model_that_answers_faster_than_its_client_reads(bench: Bench) -> None:
    bench.count.hold = True
    call, incoming = bench.stream()
    send(incoming, count(1))
    await call.until_sent(1)
    call.pending_bytes = infer.MAX_UNREAD_BYTES + 1
    await until(lambda: bench.count.held)
    ((emit, key),) = bench.count.held
    emit(key, [np.zeros(1, np.float32)], False)
    await call.until_over()
    assert call.code == UNAVAILABLE
    assert bench.count.cancelled == [key]
    assert len(call.sent) == 1


# -- the end of the server -----------------------------------------------------------------------


async def test_draining_ends_an_idle_stream(bench: Bench) -> None:
    call, incoming = bench.stream()
    send(incoming, double(1, 2, 3, 4))
    await call.until_sent(1)
    bench.long_calls.drain()
    assert call.code == UNAVAILABLE
    assert "shutting down" in call.text


async def test_draining_lets_a_stream_finish_what_it_was_asked(bench: Bench) -> None:
    bench.count.hold = True
    call, incoming = bench.stream()
    send(incoming, count(1))
    await call.until_sent(1)
    bench.long_calls.drain()
    assert not call.closed
    send(incoming, double(1, 2, 3, 4))
    assert "shutting down" in parts_of(call)[-1].error_message
    await until(lambda: bench.count.held)
    ((emit, key),) = bench.count.held
    emit(key, [np.ones(1, np.float32)], True)
    await call.until_over()
    assert values_of(parts_of(call)[-1].infer_response) == [1]
    assert call.code == UNAVAILABLE


async def test_a_stream_that_its_transport_dropped_is_forgotten(bench: Bench) -> None:
    call, incoming = bench.stream()
    del incoming
    call.cancel = None
    gc.collect()
    bench.long_calls.drain()
    assert not call.closed


async def test_messages_that_fail_count_as_well(bench: Bench) -> None:
    call, incoming = bench.stream()
    incoming.message(double(1, 2, 3, 4, id="first").SerializeToString())
    for _ in range(infer.MAX_STREAM_REQUESTS - 2):
        incoming.message(b"")
    assert call.reading
    incoming.message(b"")
    assert not call.reading, "their answers wait for the first one's"
    await call.until_sent(infer.MAX_STREAM_REQUESTS)
    assert call.reading
    assert parts_of(call)[0].infer_response.id == "first"


async def test_answers_of_messages_that_fail_are_read_before_more_come(bench: Bench) -> None:
    call, incoming = bench.stream()
    call.pending_bytes = infer.UNREAD_BYTES + 1
    incoming.message(b"")
    assert not call.reading
    call.read.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert call.reading
