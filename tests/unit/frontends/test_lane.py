"""What connections share: timeouts, the remembered heads, how many there may be, the end."""

from __future__ import annotations

import asyncio
import json

import pytest

from headrace.frontends.exchange import Exchange
from tests.unit.frontends.lane_bench import HOST, Bench, Client, chunked, echo, post

TIMEOUTS = {
    "header_timeout_s": 10,
    "body_timeout_s": 20,
    "idle_timeout_s": 40,
    "write_timeout_s": 30,
}
SWEEPS_S = 2.0
"""A deadline is late by at most two sweeps."""


@pytest.fixture
def bench() -> Bench:
    return Bench(TIMEOUTS, reply=echo)


@pytest.fixture
def slow() -> Bench:
    return Bench(TIMEOUTS)


def expect_end(client: Client, after_s: float) -> None:
    """Nothing happens before ``after_s``; by two sweeps later it has."""
    client.bench.loop.advance(after_s - 0.1)
    assert not client.over
    client.bench.loop.advance(SWEEPS_S + 0.2)
    assert client.over


def expect_refusal(client: Client, after_s: float, code: str, limit: str) -> None:
    expect_end(client, after_s)
    answer = client.answer()
    assert answer.status == 408
    assert json.loads(answer.body)["code"] == code
    assert client.bench.counters.rejected == {limit: 1}


# -- timeouts -------------------------------------------------------------------------------


def test_who_connects_and_says_nothing_is_disconnected_without_a_word(bench: Bench) -> None:
    client = bench.connect()
    expect_end(client, 40)
    assert client.transport.lost
    assert not client.transport.written
    assert not bench.lane.connections


def test_who_is_silent_between_two_requests_is_disconnected(bench: Bench) -> None:
    client = bench.connect()
    bench.loop.advance(30)
    client.send(post())
    client.answer()
    expect_end(client, 40)


@pytest.mark.parametrize("begun", [b"P", b"POST / HTTP/1.1\r\n", post()[:-4]])
def test_slow_headers(bench: Bench, begun: bytes) -> None:
    client = bench.connect()
    client.send(begun)
    bench.loop.advance(9)
    client.send(b"")
    expect_refusal(client, 1, "header_timeout", "header_timeout_s")


def test_headers_that_drip_are_slow(bench: Bench) -> None:
    client = bench.connect()
    for byte in b"GET / HTTP":
        client.send(bytes([byte]))
        bench.loop.advance(0.9)
    expect_refusal(client, 1, "header_timeout", "header_timeout_s")


def test_slow_body(bench: Bench) -> None:
    client = bench.connect()
    client.send(post(b"0123456789")[:-9])
    expect_refusal(client, 20, "body_timeout", "body_timeout_s")


def test_a_body_that_drips_is_slow(bench: Bench) -> None:
    client = bench.connect()
    client.send(post(b"x" * 100)[:-100])
    for _ in range(19):
        client.send(b"x")
        bench.loop.advance(1)
    expect_refusal(client, 1, "body_timeout", "body_timeout_s")


def test_chunks_that_drip_are_slow(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"POST /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(19):
        client.send(b"1\r\na\r\n")
        bench.loop.advance(1)
    expect_refusal(client, 1, "body_timeout", "body_timeout_s")


def test_the_body_has_its_time_after_the_headers(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"POST / HTTP/1.1\r\n")
    bench.loop.advance(9)
    client.send(HOST + b"Content-Length: 2\r\n\r\n")
    bench.loop.advance(19)
    client.send(b"ok")
    assert client.answer().body == b"ok"


def test_who_waits_for_us_has_for_ever(slow: Bench) -> None:
    client = slow.connect()
    client.send(post())
    slow.loop.advance(3600)
    assert not client.over
    slow.exchanges[0].respond_json(b"{}")
    assert client.answer().status == 200
    expect_end(client, 40)


def test_half_a_request_behind_one_that_waits_has_its_time_from_the_answer(slow: Bench) -> None:
    client = slow.connect()
    client.send(post() + b"POST / HT")
    slow.loop.advance(3600)
    assert not client.over
    slow.exchanges[0].respond_json(b"{}")
    client.answer()
    expect_refusal(client, 10, "header_timeout", "header_timeout_s")


def test_a_refused_request_to_head_has_no_body(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"HEAD / HTTP/1.1\r\n")
    bench.loop.advance(13)
    assert client.answer(head=True).status == 408


def test_timeouts_shorter_than_a_sweep_hold_too() -> None:
    bench = Bench({"header_timeout_s": 0.2}, reply=echo)
    client = bench.connect()
    client.send(b"GET /")
    bench.loop.advance(0.19)
    assert not client.over
    bench.loop.advance(0.12)
    assert client.answer().status == 408


def test_a_request_in_time_just_before_the_sweep_is_not_cut(bench: Bench) -> None:
    client = bench.connect()
    for _ in range(100):
        bench.loop.advance(39.9)
        client.send(post())
        assert client.answer().status == 200


def test_without_connections_there_is_no_timer(bench: Bench) -> None:
    client = bench.connect()
    client.leave()
    bench.loop.advance(2)
    assert not bench.loop._timers


def test_the_date_moves_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    client = bench.connect()
    dates = set()
    for second in (0, 1):
        monkeypatch.setattr("time.time", lambda second=second: 1_000_000.0 + second)
        bench.loop.advance(1)
        client.send(post())
        dates.add(client.answer().headers["date"])
    assert dates == {"Mon, 12 Jan 1970 13:46:40 GMT", "Mon, 12 Jan 1970 13:46:41 GMT"}


# -- clients that do not read -----------------------------------------------------------------

LARGE = b"x" * 100_000


def test_who_does_not_read_the_answer_is_disconnected(bench: Bench) -> None:
    client = bench.connect()
    client.transport.stall()
    client.send(post(LARGE))
    assert not client.transport.reading, "more requests would only make more answers"
    bench.loop.advance(29.9)
    assert not client.transport.closing
    bench.loop.advance(SWEEPS_S + 0.2)
    assert client.transport.aborted
    assert bench.counters.rejected == {"write_timeout_s": 1}


def test_who_reads_slowly_but_reads_is_waited_for(bench: Bench) -> None:
    client = bench.connect()
    client.transport.stall()
    client.send(post(LARGE))
    for _ in range(20):
        bench.loop.advance(29)
        client.transport.client_reads(1000)
    assert not client.transport.closing
    client.transport.client_reads(80_000)
    assert client.transport.reading
    client.send(post())
    assert len(client.answers()) == 2


def test_who_asks_for_the_end_and_does_not_read_is_disconnected(bench: Bench) -> None:
    """Closing waits for what is unsent, even if it is little."""
    client = bench.connect()
    client.transport.stall()
    client.send(post(b"small", b"Connection: close\r\n"))
    assert client.transport.closing
    assert not client.transport.lost
    bench.loop.advance(30 + SWEEPS_S)
    assert client.transport.aborted


def test_who_is_silent_and_does_not_read_is_disconnected(bench: Bench) -> None:
    client = bench.connect()
    client.transport.stall()
    client.send(post(b"small"))
    bench.loop.advance(40 + SWEEPS_S)
    assert client.transport.closing
    bench.loop.advance(30 + SWEEPS_S)
    assert client.transport.aborted


def test_who_does_not_read_a_refusal_is_disconnected(bench: Bench) -> None:
    client = bench.connect()
    client.transport.stall()
    client.send(b"nonsense\r\n\r\n")
    bench.loop.advance(30 + 2 * SWEEPS_S)
    assert client.transport.aborted


def test_pipelined_requests_do_not_extend_the_time_to_read(slow: Bench) -> None:
    client = slow.connect()
    client.transport.stall()
    client.send(post(b"1") + post(b"2"))
    slow.exchanges[0].respond_json(LARGE)
    slow.loop.advance(29)
    assert not client.transport.aborted
    slow.exchanges[1].respond_json(b"{}")
    slow.loop.advance(30 + SWEEPS_S)
    assert client.transport.aborted


def test_whoever_streams_waits_for_the_client() -> None:
    bench = Bench(TIMEOUTS)
    client = bench.connect()
    client.transport.stall()
    client.send(post())
    (exchange,) = bench.exchanges
    exchange.chunked = True
    exchange.connection.begin(exchange, 200, b"transfer-encoding: chunked\r\n")
    exchange.connection.send(exchange, LARGE, last=False)
    waiting = exchange.connection.writable()
    future = waiting.send(None)
    client.transport.client_reads(90_000)
    assert future.done()
    with pytest.raises(StopIteration):
        waiting.send(None)
    with pytest.raises(StopIteration):  # nothing to wait for any more
        exchange.connection.writable().send(None)


def test_whoever_streams_is_woken_when_the_client_leaves() -> None:
    bench = Bench(TIMEOUTS)
    client = bench.connect()
    client.transport.stall()
    client.send(post())
    (exchange,) = bench.exchanges
    exchange.chunked = True
    exchange.connection.begin(exchange, 200, b"transfer-encoding: chunked\r\n")
    exchange.connection.send(exchange, LARGE, last=False)
    future = exchange.connection.writable().send(None)
    client.leave()
    assert future.done()


# -- how many -------------------------------------------------------------------------------


def test_a_connection_too_many_is_told_so_and_the_others_stay() -> None:
    bench = Bench({"max_connections": 2}, reply=echo)
    first, second, third = bench.connect(), bench.connect(), bench.connect()
    answer = third.answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert json.loads(answer.body)["limit"] == "max_connections"
    assert third.over
    for client in (first, second):
        client.send(post())
        assert client.answer().status == 200
    assert bench.counters.rejected == {"max_connections": 1}
    assert bench.counters.connections == 2
    first.leave()
    third.leave()
    fourth = bench.connect()
    fourth.send(post())
    assert fourth.answer().status == 200


def test_a_flood_of_connections_too_many_is_cut_off() -> None:
    bench = Bench({"max_connections": 1}, reply=echo)
    clients = [bench.connect() for _ in range(1000)]
    assert sum(client.transport.lost for client in clients) > 700
    assert len(bench.lane.connections) < 300
    bench.loop.advance(3)
    assert len(bench.lane.connections) == 1


# -- remembered heads -------------------------------------------------------------------------


def test_equal_heads_are_parsed_once(bench: Bench) -> None:
    client = bench.connect()
    for number in range(3):
        client.send(post(b"%d" % number))
    first, second, third = bench.exchanges
    assert first.head is second.head is third.head
    other = bench.connect()
    other.send(post(b"3"))
    assert bench.exchanges[3].head is first.head


def test_a_remembered_head_may_come_in_pieces_or_pipelined(bench: Bench) -> None:
    client = bench.connect()
    client.send(post(b"0"))
    client.send(post(b"1") + post(b"2") + post(b"3")[:-1])
    client.send(b"3" + post(b"4"), step=5)
    assert [answer.body for answer in client.answers()] == [b"%d" % n for n in range(5)]


def test_a_client_may_change_between_heads_it_sent_before(bench: Bench) -> None:
    client = bench.connect()
    kinds = [b"A: 1\r\n", b"A: 22\r\n", b""]
    order = [0, 1, 2, 0, 0, 1, 1, 2, 0]
    for kind in order:
        client.send(post(b"%d" % kind, kinds[kind]))
    client.send(b"".join(post(b"%d" % kind, kinds[kind]) for kind in order))
    assert [answer.body for answer in client.answers()] == [b"%d" % kind for kind in order * 2]
    for kind, exchange in zip(order * 2, bench.exchanges, strict=True):
        assert exchange.head.headers.get(b"a", b"") == kinds[kind][3:-2]


@pytest.mark.parametrize(
    "sent",
    [
        b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
        post(b"", b"Connection: close\r\n"),
        post(b"", b"Expect: 100-continue\r\n"),
        post(b"", b"Content-Encoding: gzip\r\n"),
        post(b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        post(b"", b"X: " + b"y" * 5000 + b"\r\n"),
        chunked(b"x"),
        b"\r\n" + post(b""),
        b"GET / HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_some_heads_are_not_remembered(bench: Bench, sent: bytes) -> None:
    bench.connect().send(sent)
    assert not bench.lane.heads


def test_a_client_whose_heads_are_all_different_soon_leaves_no_trace(bench: Bench) -> None:
    client = bench.connect()
    for number in range(200):
        client.send(post(b"", b"Trace: %d\r\n" % number))
    assert 0 < len(bench.lane.heads) < 50
    client.send(post(b"", b"Trace: 3\r\n"))  # known: from now on it is worth looking again
    client.send(post(b"", b"Trace: new\r\n") * 2)
    assert len(client.answers()) == 203
    assert bench.exchanges[-1].head is not bench.exchanges[-2].head


def test_the_memory_for_heads_is_bounded(bench: Bench) -> None:
    for client in [bench.connect() for _ in range(100)]:
        for number in range(32):
            client.send(post(b"", b"Trace: %d %d\r\n" % (id(client), number)))
        assert len(bench.lane.heads) <= 1024
    assert len(bench.exchanges) == 3200


# -- the end --------------------------------------------------------------------------------


@pytest.fixture
async def draining():
    """On a real loop, because draining waits."""
    bench = Bench(TIMEOUTS, loop=asyncio.get_running_loop())
    yield bench
    bench.lane.abort()


def begin(bench: Bench) -> asyncio.Task[bool]:
    return asyncio.ensure_future(bench.lane.drain(30))


async def half_closed(client: Client) -> None:
    while not client.transport.eof_sent:  # noqa: ASYNC110 - a fake has no event
        await asyncio.sleep(0)


async def test_draining_closes_what_is_idle_after_a_moment_and_resets_nothing(
    draining: Bench,
) -> None:
    client = draining.connect()
    draining.connect()
    task = begin(draining)
    await half_closed(client)
    assert not client.transport.closing
    client.send(post(b"crossed the end"))
    assert not draining.exchanges
    assert await task
    assert client.transport.lost
    assert not client.transport.written


async def test_draining_takes_requests_that_are_on_their_way(draining: Bench) -> None:
    draining.reply = echo
    known = draining.connect()
    task = begin(draining)
    await asyncio.sleep(0)
    for client in (known, draining.connect()):
        client.send(post(b"late"))
        answer = client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"late", "close")
        client.eof()
    assert await task


async def test_draining_lets_requests_finish_and_says_that_it_was_the_last(draining: Bench) -> None:
    client = draining.connect()
    client.send(post(b"1") + post(b"2"))
    task = begin(draining)
    await asyncio.sleep(0)
    draining.exchanges[0].respond_json(b"1")
    draining.exchanges[1].respond_json(b"2")
    first, last = client.answers()
    assert "connection" not in first.headers
    assert last.headers["connection"] == "close"
    assert await task
    assert client.transport.lost


async def test_draining_waits_for_a_request_that_has_begun(draining: Bench) -> None:
    draining.reply = echo
    client = draining.connect()
    client.send(post(b"body")[:-3])
    task = begin(draining)
    await asyncio.sleep(0)
    assert not client.over
    client.send(b"ody" + post(b"one too many"))
    answer = client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"body", "close")
    assert len(draining.exchanges) == 1
    assert await task


async def test_a_connection_that_completes_after_the_moment_is_refused(draining: Bench) -> None:
    client, idle = draining.connect(), draining.connect()
    client.send(post())
    task = begin(draining)
    await half_closed(idle)
    late = draining.connect()
    answer = late.answer()
    assert (answer.status, json.loads(answer.body)["code"]) == (503, "shutting_down")
    assert answer.headers["retry-after"] == "1"
    late.eof()
    draining.exchanges[0].respond_json(b"{}")
    assert await task


async def test_draining_gives_up_in_the_end(draining: Bench) -> None:
    client = draining.connect()
    client.send(post())
    cancelled: list[bool] = []
    draining.exchanges[0].cancel = lambda: cancelled.append(True)
    assert await draining.lane.drain(0.001) is False
    draining.lane.abort()
    assert client.transport.aborted
    await asyncio.sleep(0)
    assert cancelled == [True]


async def test_an_answer_that_is_streamed_while_draining_ends_whole(draining: Bench) -> None:
    client = draining.connect()
    client.send(post())
    exchange: Exchange = draining.exchanges[0]
    exchange.chunked = True
    exchange.connection.begin(exchange, 200, b"transfer-encoding: chunked\r\n")
    exchange.connection.send(exchange, b"one ", last=False)
    task = begin(draining)
    await asyncio.sleep(0)
    exchange.connection.send(exchange, b"two", last=True)
    assert client.answer().body == b"one two"
    assert await task
