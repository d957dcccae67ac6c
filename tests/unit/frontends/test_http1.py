"""One connection: what is taken, in which order it is answered, and how it ends."""

from __future__ import annotations

import gc
import json
import weakref
from itertools import pairwise

import pytest

from headrace.errors import InvalidRequest, Overloaded
from headrace.frontends import turns
from headrace.frontends.exchange import Exchange
from tests.unit.frontends.lane_bench import HOST, Bench, chunked, echo, post

GET = b"GET /a?b=c HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.fixture
def bench() -> Bench:
    return Bench(reply=echo)


@pytest.fixture
def slow() -> Bench:
    """Answers only when the test does."""
    return Bench()


def code_of(answer) -> str:
    return json.loads(answer.body)["code"]


# -- one request ----------------------------------------------------------------------------


def test_a_request_arrives_as_it_was_sent(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"PUT /a/b?c=d HTTP/1.1\r\nHost: h:80\r\nX-Y: z\r\nContent-Length: 3\r\n\r\nabc")
    (exchange,) = bench.exchanges
    head = exchange.head
    assert (head.method, head.target, exchange.body) == (b"PUT", b"/a/b?c=d", b"abc")
    assert head.headers == {b"host": b"h:80", b"x-y": b"z", b"content-length": b"3"}
    assert head.raw_headers[1] == (b"X-Y", b"z")
    assert head.length == 3
    assert exchange.arrived_ns > 0


def test_the_answer_says_what_rfc_9110_wants(bench: Bench) -> None:
    client = bench.connect()
    client.send(post(b'{"a":1}'))
    answer = client.answer()
    assert answer.status == 200
    assert answer.body == b'{"a":1}'
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["date"].endswith(" GMT")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "connection" not in answer.headers
    assert not client.over


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"0123456789"),
        GET,
        chunked(b"0123", b"456789", trailer=b"T: x\r\n"),
        post(b"0123456789", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    ],
    ids=["length", "none", "chunked", "upgrade"],
)
def test_every_way_to_cut_a_request_in_two_means_the_same(request_bytes: bytes) -> None:
    whole = Bench(reply=echo)
    client = whole.connect()
    client.send(request_bytes)
    expected = client.answer()
    assert expected.status == 200
    for cut in range(1, len(request_bytes)):
        bench = Bench(reply=echo)
        client = bench.connect()
        client.send(request_bytes[:cut])
        assert not client.answers()
        client.send(request_bytes[cut:])
        assert client.answer().body == expected.body
        assert bench.exchanges[0].head.headers == whole.exchanges[0].head.headers


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_bytes_that_drip(bench: Bench, step: int) -> None:
    client = bench.connect()
    client.send(post(b"one") + chunked(b"t", b"w", b"o") + GET + post(b"three"), step=step)
    assert [answer.body for answer in client.answers()] == [b"one", b"two", b"", b"three"]


def test_a_million_bytes_in_chunks_of_one_cost_no_million_objects(bench: Bench) -> None:
    client = bench.connect()
    gc.collect()
    before = len(gc.get_objects())
    client.send(b"POST /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        client.send(b"1\r\na\r\n" * 10_000)
    assert len(gc.get_objects()) - before < 10_000
    client.send(b"0\r\n\r\n")
    assert client.answer().body == b"a" * 1_000_000


def test_a_trailer_is_dropped_and_not_merged(bench: Bench) -> None:
    client = bench.connect()
    client.send(chunked(b"x", trailer=b"Host: evil\r\nX-Secret: 1\r\n"))
    head = bench.exchanges[0].head
    assert [name for name, _ in head.raw_headers] == [b"Host", b"Transfer-Encoding"]
    assert head.headers[b"host"] == b"a"
    assert client.answer().status == 200


def test_chunk_extensions_are_ignored(bench: Bench) -> None:
    client = bench.connect()
    client.send(
        b"POST /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        b'3;a=b;c="d e"\r\nabc\r\n0;last\r\n\r\n'
    )
    assert client.answer().body == b"abc"


def test_white_space_around_a_value_is_not_part_of_it(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"POST /x HTTP/1.1\r\nHost:\ta \t\r\nContent-Length:  2 \r\nX: \t y z \r\n\r\nab")
    assert bench.exchanges[0].head.headers[b"x"] == b"y z"
    assert client.answer().body == b"ab"


def test_empty_lines_before_a_request_are_skipped(bench: Bench) -> None:
    """RFC 9112 section 2.2."""
    client = bench.connect()
    client.send(b"\r\n\r\n" + post(b"1") + b"\r\n" + post(b"2"))
    assert [answer.body for answer in client.answers()] == [b"1", b"2"]


def test_a_handlers_own_error_is_answered(bench: Bench) -> None:
    def refuse(exchange: Exchange) -> None:
        raise InvalidRequest("no", hint="yes")

    bench.reply = refuse
    client = bench.connect()
    client.send(post())
    answer = client.answer()
    assert (answer.status, json.loads(answer.body)["hint"]) == (400, "yes")
    assert not client.over


def test_a_handlers_mistake_is_a_500_that_tells_nothing(bench: Bench) -> None:
    def fail(exchange: Exchange) -> None:
        raise KeyError("secret")

    bench.reply = fail
    client = bench.connect()
    client.send(post() + post())
    first, second = client.answers()
    assert (first.status, second.status) == (500, 500)
    assert b"secret" not in first.body


def test_retry_after_is_sent_with_an_overload(bench: Bench) -> None:
    def refuse(exchange: Exchange) -> None:
        raise Overloaded("full", retry_after_ns=2_500_000_000)

    bench.reply = refuse
    client = bench.connect()
    client.send(post())
    answer = client.answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "3")


# -- order ----------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_their_order(slow: Bench) -> None:
    client = slow.connect()
    client.send(post(b"0") + post(b"1") + GET + post(b"3"))
    for index in (2, 1, 3):
        slow.exchanges[index].respond_json(b"answer %d" % index)
        assert not client.answers()
    slow.exchanges[0].respond_json(b"answer 0")
    assert [answer.body for answer in client.answers()] == [b"answer %d" % n for n in range(4)]


def test_an_error_waits_for_its_turn_too(slow: Bench) -> None:
    client = slow.connect()
    client.send(post(b"0") + post(b"1"))
    slow.exchanges[1].respond_error(InvalidRequest("no"))
    assert not client.answers()
    slow.exchanges[0].respond_json(b"{}")
    assert [answer.status for answer in client.answers()] == [200, 400]


def test_a_refusal_waits_for_the_answers_that_are_due(slow: Bench) -> None:
    client = slow.connect()
    client.send(post(b"0") + b"NONSENSE\r\n\r\n")
    assert not client.answers()
    assert not client.over
    slow.exchanges[0].respond_json(b"{}")
    assert [answer.status for answer in client.answers()] == [200, 400]
    assert client.over


def test_no_more_than_max_pipelined_are_under_way(slow: Bench) -> None:
    slow = Bench({"max_pipelined": 4})
    client = slow.connect()
    client.send(b"".join(post(b"%d" % n) for n in range(10)))
    assert slow.bodies() == [b"0", b"1", b"2", b"3"]
    assert not client.transport.reading
    slow.exchanges[1].respond_json(b"1")
    assert len(slow.exchanges) == 4, "answered out of turn: its place is still taken"
    slow.exchanges[0].respond_json(b"0")
    assert slow.bodies() == [b"%d" % n for n in range(6)]
    for index in range(2, 10):
        slow.exchanges[index].respond_json(b"%d" % index)
    assert [answer.body for answer in client.answers()] == [b"%d" % n for n in range(10)]
    assert client.transport.reading


def test_thousands_pipelined_and_answered_at_once_need_no_deep_stack(bench: Bench) -> None:
    client = bench.connect()
    client.send(GET * 5000)
    assert len(client.answers()) == 5000
    client.send(post(b"one more"))
    assert client.answer().body == b"one more"


@pytest.mark.parametrize("known", [True, False], ids=["known heads", "new heads"])
def test_a_burst_takes_turns_with_others(bench: Bench, known: bool) -> None:
    client = bench.connect()
    client.send(GET)
    heads = [GET if known else b"GET /%d HTTP/1.1\r\n" % n + HOST + b"\r\n" for n in range(2000)]
    taken = [1]

    def others() -> None:
        taken.append(len(bench.exchanges))
        if len(bench.exchanges) < 2001:
            bench.loop.call_soon(others)

    bench.loop.call_soon(others)
    client.transport.receive(b"".join(heads))
    assert not client.transport.reading, "nothing more is read meanwhile"
    bench.loop.run_ready()
    assert max(after - before for before, after in pairwise(taken)) < 256
    assert len(client.answers()) == 2001
    assert client.transport.reading


def test_a_turn_ends_when_its_time_is_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONE_TURN_NS", 0)
    monkeypatch.setattr(turns, "TURN_NS", 0)
    client = bench.connect()
    client.send(GET)
    client.transport.receive(GET * 100)
    assert len(bench.exchanges) < 10
    bench.loop.run_ready()
    assert len(client.answers()) == 101


def test_only_as_many_are_read_as_may_be_under_way(slow: Bench) -> None:
    client = slow.connect()
    client.send(GET)
    slow.exchanges[0].respond_json(b"")
    client.send(GET * 5000)
    assert len(client.connection._exchanges) == 16
    slow.reply = echo
    for exchange in slow.exchanges[1:]:
        exchange.respond_json(b"")
    slow.loop.run_ready()
    assert len(client.answers()) == 5001


def test_a_body_in_chunks_of_one_byte_takes_turns_with_others(bench: Bench) -> None:
    client = bench.connect()
    sent = b"POST /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    client.transport.receive(sent + b"1\r\na\r\n" * 40_000 + b"0\r\n\r\n")
    assert not bench.exchanges
    bench.loop.run_ready()
    assert client.answer().body == b"a" * 40_000


def test_a_refusal_after_a_burst_is_read(bench: Bench) -> None:
    client = bench.connect()
    client.send(GET * 1000 + b"NONSENSE\r\n\r\n" + GET * 1000)
    assert [answer.status for answer in client.answers()] == [200] * 1000 + [400]
    assert client.transport.eof_sent
    assert not client.transport.closing, "the rest is read before the connection ends"


def test_thousands_postponed_need_no_deep_stack(slow: Bench) -> None:
    client = slow.connect()
    client.send(GET * 5000)
    assert len(slow.exchanges) == 16
    slow.reply = echo
    for exchange in slow.exchanges[:16]:
        exchange.respond_json(b"")
    slow.loop.run_ready()
    assert len(client.answers()) == 5000


def test_a_compressed_request_may_be_postponed(slow: Bench) -> None:
    slow = Bench({"max_pipelined": 1})
    client = slow.connect()
    client.send(post(b"0") + post(b"x", b"Content-Encoding: identity\r\n"))
    slow.exchanges[0].respond_json(b"0")
    slow.loop.run_ready()
    assert slow.bodies() == [b"0", b"x"]


# -- how long a connection lives --------------------------------------------------------------


def test_keep_alive_is_the_default(bench: Bench) -> None:
    client = bench.connect()
    for number in range(3):
        client.send(post(b"%d" % number))
        assert client.answer().body == b"%d" % number
    assert not client.over


@pytest.mark.parametrize("value", [b"close", b"Close", b"foo, close", b"close, keep-alive"])
def test_connection_close_is_obeyed(bench: Bench, value: bytes) -> None:
    client = bench.connect()
    client.send(post(b"1", b"Connection: " + value + b"\r\n"))
    assert client.answer().headers["connection"] == "close"
    assert client.transport.lost


def test_what_follows_connection_close_is_not_looked_at(slow: Bench) -> None:
    client = slow.connect()
    client.send(post(b"1", b"Connection: close\r\n") + post(b"2") + b"nonsense")
    client.send(post(b"3"))
    slow.exchanges[0].respond_json(b"done")
    assert client.answer().body == b"done"
    assert slow.bodies() == [b"1"]
    assert client.transport.lost


def test_a_trailer_may_end_the_connection(bench: Bench) -> None:
    client = bench.connect()
    client.send(chunked(b"x", trailer=b"Connection: close\r\n"))
    assert client.answer().headers["connection"] == "close"
    assert client.transport.lost


def test_http_1_0_closes(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"POST /x HTTP/1.0\r\nContent-Length: 1\r\n\r\n1")
    assert client.answer().headers["connection"] == "close"
    assert client.transport.lost


def test_http_1_0_with_keep_alive_is_told_that_the_connection_stays(bench: Bench) -> None:
    """ApacheBench waits for the end of the connection if it is not."""
    client = bench.connect()
    for number in range(2):
        client.send(
            b"POST /x HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n%d" % number
        )
        answer = client.answer()
        assert answer.headers["connection"] == "keep-alive"
        assert answer.body == b"%d" % number
    assert not client.over


@pytest.mark.parametrize("sent", [GET, post(b"body"), chunked(b"bo", b"dy")])
def test_an_upgrade_is_ignored(bench: Bench, sent: bytes) -> None:
    """Java's HttpClient asks for h2c with its first request, body and all."""
    line, rest = sent.split(b"\r\n", 1)
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
    client = bench.connect()
    client.send((line + b"\r\n" + upgrade + rest) * 3 + post(b"after"))
    body = b"" if sent is GET else b"body"
    assert [answer.body for answer in client.answers()] == [body, body, body, b"after"]
    assert not client.over


def test_thousands_of_upgrades_need_no_deep_stack(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" * 3000)
    assert len(client.answers()) == 3000


def test_connect_is_answered_and_its_tunnel_is_not_http(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n" + post())
    assert client.answer().headers["connection"] == "close"
    assert len(bench.exchanges) == 1
    assert client.transport.lost


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_ends_its_half_has_left(slow: Bench, tls: bool) -> None:
    """It may have closed the other half, too; nobody can tell before an answer bounces."""
    client = slow.connect(tls=tls)
    client.send(post(b"1") + post(b"2"))
    slow.exchanges[0].respond_json(b"1")
    cancelled: list[bool] = []
    slow.exchanges[1].cancel = lambda: cancelled.append(True)
    client.eof()
    assert client.answer().body == b"1"
    assert client.transport.lost
    assert cancelled == [True]


def test_the_end_in_the_middle_of_a_request_is_said(bench: Bench) -> None:
    client = bench.connect()
    client.send(post(b"0123456789")[:-3])
    client.eof()
    answer = client.answer()
    assert answer.status == 400
    assert b"ended in the middle" in answer.body


def test_the_end_between_two_requests_is_nothing_special(bench: Bench) -> None:
    client = bench.connect()
    client.send(post())
    client.answer()
    client.eof()
    assert not client.answers()
    assert client.transport.lost


def test_who_leaves_cancels(slow: Bench) -> None:
    client = slow.connect()
    client.send(post(b"1") + post(b"2"))
    cancelled: list[bytes] = []
    for exchange in slow.exchanges:
        exchange.cancel = lambda body=exchange.body: cancelled.append(body)
    client.leave()
    assert cancelled == [b"1", b"2"]
    assert not slow.lane.connections
    for exchange in slow.exchanges:
        exchange.respond_json(b"too late")
        exchange.respond(200, b"too late")
    assert client.transport.written == b""


def test_who_leaves_before_the_body_is_decompressed_is_forgotten(slow: Bench) -> None:
    client = slow.connect()
    client.connection.data_received(post(b"x", b"Content-Encoding: identity\r\n"))
    client.connection.connection_lost(None)
    slow.loop.run_ready()
    assert not slow.exchanges


def test_nothing_keeps_a_connection_alive_that_is_gone(bench: Bench) -> None:
    client = bench.connect()
    client.send(post())
    client.send(b"POST /x HTTP/1.1\r\n")
    gone = weakref.ref(client.connection)
    client.leave()
    bench.exchanges.clear()
    gc.disable()
    try:
        client.transport.set_protocol(None)
        client.connection = None  # type: ignore[assignment] - the last reference to it
        assert gone() is None
    finally:
        gc.enable()


# -- what is sent ---------------------------------------------------------------------------


def test_head_gets_a_head_only(bench: Bench) -> None:
    bench.reply = lambda exchange: exchange.respond(200, b"12345", content_type=b"text/plain")
    client = bench.connect()
    client.send(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n")
    answer = client.answer(head=True)
    assert (answer.headers["content-length"], answer.body) == ("5", b"")
    assert not client.over


def test_an_error_to_head_has_no_body_either(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"HEAD / HTTP/1.1\r\n\r\n")
    answer = client.answer(head=True)
    assert answer.status == 400
    assert int(answer.headers["content-length"]) > 0


def test_100_continue_comes_before_the_body(bench: Bench) -> None:
    client = bench.connect()
    whole = post(b"body", b"Expect: 100-Continue\r\n")
    client.send(whole[:-4])
    assert client.transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.seen = len(client.transport.written)
    client.send(b"bo")
    client.send(b"dy")
    assert client.answer().body == b"body"


def test_100_continue_is_not_said_when_the_body_is_there(bench: Bench) -> None:
    client = bench.connect()
    client.send(post(b"body", b"Expect: 100-continue\r\n"))
    assert client.answer().body == b"body"


def test_100_continue_does_not_overtake_an_answer(slow: Bench) -> None:
    client = slow.connect()
    client.send(post(b"1") + post(b"2", b"Expect: 100-continue\r\n")[:-1])
    assert not client.transport.written
    client.send(b"2")
    slow.exchanges[0].respond_json(b"1")
    slow.exchanges[1].respond_json(b"2")
    assert [answer.body for answer in client.answers()] == [b"1", b"2"]


def test_what_is_too_large_is_refused_without_100(bench: Bench) -> None:
    bench = Bench({"max_body_bytes": 10})
    client = bench.connect()
    client.send(
        b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 11\r\n\r\n"
    )
    assert client.answer().status == 413


def test_another_expectation_is_refused(bench: Bench) -> None:
    client = bench.connect()
    client.send(post(b"", b"Expect: the-spanish-inquisition\r\n"))
    assert client.answer().status == 417


def test_http_1_0_has_no_expectations(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    assert not client.transport.written
    client.send(b"x")
    assert client.answer().status == 200


def test_a_streamed_answer_is_chunked_and_in_order(slow: Bench) -> None:
    client = slow.connect()
    client.send(post(b"0") + post(b"1"))
    late, early = slow.exchanges[1], slow.exchanges[0]
    late.chunked = True
    late.connection.begin(late, 200, b"transfer-encoding: chunked\r\n")
    late.connection.send(late, b"one ", last=False)
    late.connection.send(late, b"", last=False)
    assert not client.transport.written
    early.respond_json(b"first")
    late.connection.send(late, b"two", last=True)
    assert [answer.body for answer in client.answers()] == [b"first", b"one two"]


def test_bytes_and_answers_are_counted(bench: Bench) -> None:
    client = bench.connect()
    client.send(post())
    client.send(b"nonsense\r\n\r\n")
    counters = bench.counters
    assert counters.received_bytes == len(post()) + 12
    assert counters.sent_bytes == len(client.transport.written)
    assert counters.responses == [0, 0, 1, 0, 1, 0]
    assert counters.connections == counters.connections_open == 1
    client.leave()
    assert counters.connections_open == 0


# -- refusals (the rules are in tests/conformance/frontends) ----------------------------


def test_a_refusal_lingers_so_that_the_answer_arrives(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"nonsense\r\n\r\n")
    assert client.transport.eof_sent
    assert not client.transport.closing
    client.send(b"more")
    bench.loop.advance(1.9)
    assert not client.transport.closing
    bench.loop.advance(0.2)
    assert client.transport.lost


def test_a_refusal_lingers_over_tls_too(bench: Bench) -> None:
    client = bench.connect(tls=True)
    client.send(b"nonsense\r\n\r\n")
    assert not client.transport.closing
    bench.loop.advance(2.1)
    assert client.transport.lost


def test_a_client_that_leaves_ends_the_lingering(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"nonsense\r\n\r\n")
    client.eof()
    assert client.transport.lost
    bench.loop.advance(5)
    assert not bench.loop.errors


@pytest.mark.parametrize(
    ("limits", "sent", "status", "code"),
    [
        ({"max_headers": 5}, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 6, 431, "too_many_headers"),
        ({"max_header_bytes": 100}, b"GET /" + b"a" * 100 + b" HTTP/1.1\r\n", 431, None),
        ({"max_header_bytes": 100}, b"GET / HTTP/1.1\r\nA: " + b"b" * 100 + b"\r\n", 431, None),
        ({"max_body_bytes": 10}, b"PUT / HTTP/1.1\r\nContent-Length: 11\r\n", 413, None),
        ({"max_body_bytes": 10}, b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n" % 2**64, 400, None),
        (
            {"max_body_bytes": 10},
            b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n" % (2**64 - 1),
            413,
            None,
        ),
    ],
)
@pytest.mark.parametrize("step", [0, 1])
def test_heads_that_are_too_much(limits, sent, status, code, step) -> None:
    bench = Bench(limits, reply=echo)
    client = bench.connect()
    client.send(sent + HOST + b"\r\n", step=step)
    answer = client.answer()
    assert answer.status == status
    if status == 431 and code is None:
        code = "headers_too_large"
    if code is not None:
        assert code_of(answer) == code
    assert not bench.exchanges
    if status != 400:
        assert sum(bench.counters.rejected.values()) == 1


def test_limits_are_inclusive() -> None:
    bench = Bench({"max_headers": 3, "max_body_bytes": 10}, reply=echo)
    client = bench.connect()
    client.send(post(b"0123456789", b"A: b\r\n") + chunked(b"01234", b"56789", fields=b"A: b\r\n"))
    assert [answer.status for answer in client.answers()] == [200, 200]


@pytest.mark.parametrize(
    ("begin", "more", "code"),
    [
        (b"GET /", b"a" * 100, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nA: ", b"b" * 100, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 20, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nA", b"b" * 100, "headers_too_large"),
        (
            b"PUT / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n1;",
            b"e" * 100,
            "trailer_too_large",
        ),
        (
            b"PUT / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nT: ",
            b"x" * 100,
            "trailer_too_large",
        ),
        (
            b"PUT / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
            b"T: x\r\n" * 20,
            "trailer_too_large",
        ),
    ],
    ids=["target", "value", "fields", "name", "extension", "trailer value", "trailer fields"],
)
def test_nothing_may_go_on_for_ever(begin: bytes, more: bytes, code: str) -> None:
    bench = Bench({"max_header_bytes": 1000}, reply=echo)
    client = bench.connect()
    client.send(begin)
    for _ in range(11):
        client.send(more)
    assert code_of(client.answer()) == code
    assert bench.counters.rejected == {"max_header_bytes": 1}
    assert client.over


def test_a_slow_large_body_is_no_large_head() -> None:
    bench = Bench({"max_header_bytes": 200}, reply=echo)
    client = bench.connect()
    client.send(post(b"x" * 5000) + chunked(*[b"y" * 50] * 100), step=100)
    assert [len(answer.body) for answer in client.answers()] == [5000, 5000]


def test_chunks_may_not_add_up_to_more_than_a_body() -> None:
    bench = Bench({"max_body_bytes": 10}, reply=echo)
    client = bench.connect()
    client.send(chunked(b"01234", b"567890"))
    answer = client.answer()
    assert (answer.status, code_of(answer)) == (413, "payload_too_large")
    assert client.over


def test_a_body_too_large_once_decompressed_is_refused_and_the_connection_stays() -> None:
    import gzip

    bench = Bench({"max_body_bytes": 1000}, reply=echo)
    client = bench.connect()
    client.send(post(gzip.compress(b"x" * 1001), b"Content-Encoding: gzip\r\n"))
    answer = client.answer()
    assert (answer.status, code_of(answer)) == (413, "payload_too_large")
    assert bench.counters.rejected == {"max_body_bytes": 1}
    client.send(post(gzip.compress(b"x" * 1000), b"Content-Encoding: gzip\r\n"))
    assert client.answer().body == b"x" * 1000


def test_decompression_that_fails_is_answered(bench: Bench, monkeypatch) -> None:
    def explode(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("headrace.frontends.decompress.decompress", explode)
    client = bench.connect()
    client.send(post(b"x", b"Content-Encoding: gzip\r\n"))
    assert client.answer().status == 500
