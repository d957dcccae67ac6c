"""Anything may arrive, in any pieces. Laws of the lane under random bytes:

1. Nothing raises, nothing is written after the end, every answer is whole.
2. Every complete valid request gets exactly one answer, in order.
3. A remembered head means what it would mean if it were parsed: a lane that remembers and
   one that does not write the same bytes.
4. Whatever one client sends, the next one is served.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.frontends.exchange import Exchange
from tests.fuzzing import examples
from tests.unit.frontends.lane_bench import HOST, Bench, Client, chunked, post, split_answers

LIMITS = {
    "max_body_bytes": 64,
    "max_header_bytes": 512,
    "max_headers": 8,
    "max_pipelined": 3,
}


@pytest.fixture(autouse=True, scope="module")
def _one_moment():
    """Two lanes write the same Date."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: 1_000_000.0)
        yield


def tell(exchange: Exchange) -> None:
    """Answers with everything that was understood."""
    head = exchange.head
    told = [head.method, head.target, *head.headers.items(), exchange.body, head.length]
    body = json.dumps(repr(told)).encode()
    if head.target.startswith(b"/plain"):
        exchange.respond_json(body)
    else:
        exchange.respond(200, body)


VALID = [
    post(b"{}"),
    post(b"[]"),
    post(b""),
    post(b"x" * 64),
    post(b"{}", target=b"/plain"),
    post(b"[]", target=b"/plain"),
    post(b"{}", b"X-Y: z \r\n"),
    post(b"{}", b"Expect: 100-continue\r\n"),
    post(b"{}", b"Connection: keep-alive\r\n"),
    post(b"{}", b"Connection: upgrade\r\nUpgrade: h2c\r\n"),
    post(b"{}", b"Content-Encoding: identity\r\n"),
    b"GET /plain HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /a?b HTTP/1.1\r\n" + HOST + b"A: 1\r\nA: 2\r\n\r\n",
    b"POST /plain HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
    chunked(b"a", b"bc"),
    chunked(trailer=b"T: x\r\n"),
]
CLOSING = [
    post(b"{}", b"Connection: close\r\n"),
    b"GET / HTTP/1.0\r\n\r\n",
    chunked(b"a", trailer=b"Connection: close\r\n"),
    b"CONNECT h:1 HTTP/1.1\r\n" + HOST + b"\r\n",
]
INVALID = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    post(b"x" * 65),
    post(b"{}", b"Content-Length: 2\r\n"),
    post(b"{}", b"A: b\r\n" * 9),
    post(b"{}", b"A: " + b"b" * 600 + b"\r\n"),
    chunked(*[b"x" * 30] * 3),
    chunked(b"x", trailer=b"T: " + b"y" * 600 + b"\r\n"),
    post(b"{}", b"Expect: x\r\n"),
    b"\r\n",
    b"nonsense\r\n\r\n",
    b"\x16\x03\x01",
    b"PRI * HTTP/2.0\r\n\r\n",
]
TOKENS = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\xff", b"0", b"-1", b"1_0", b",", b";",
    b"HTTP/1.0", b"chunked", b"close", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Host: b\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"\r\n\r\n",
]  # fmt: skip

Traffic = Sequence[tuple[int, bytes]]
"""What is read, piece by piece, on which of two connections."""


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid request with something put in, taken out or changed."""
    sent = draw(st.sampled_from(VALID + CLOSING))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(sent)))
        end = draw(st.integers(start, min(len(sent), start + 8)))
        sent = sent[:start] + draw(st.sampled_from([b"", *TOKENS])) + sent[end:]
    return sent


@st.composite
def traffic(draw: st.DrawFn, pieces: st.SearchStrategy[bytes]) -> Traffic:
    """Pieces one after another, cut anywhere, on two connections that take turns."""
    queues: list[list[tuple[int, bytes]]] = []
    for number in range(2):
        stream = b"".join(draw(st.lists(pieces, max_size=8)))
        cuts = draw(st.lists(st.integers(0, len(stream)), max_size=6))
        edges = [0, *sorted(cuts), len(stream)]
        cut = [stream[start:end] for start, end in pairwise(edges)]
        queues.append([(number, read) for read in cut if read])
    reads: list[tuple[int, bytes]] = []
    while any(queues):
        turn = draw(st.integers(0, 1)) if all(queues) else int(not queues[0])
        reads.append(queues[turn].pop(0))
    return reads


ANYTHING = st.one_of(
    st.sampled_from(VALID + CLOSING + INVALID), mutated(), st.binary(min_size=1, max_size=40)
)


def play(reads: Traffic, *, remembers: bool, late: bool) -> list[Client]:
    """Lets the traffic happen. ``late``: answers come when all is read, the last first."""
    bench = Bench(LIMITS, None if late else tell)
    if not remembers:
        bench.lane.remember = lambda raw, head: None  # type: ignore[method-assign]
    clients = [bench.connect(), bench.connect()]
    for number, read in reads:
        clients[number].send(read)
    answered = 0
    while late and answered < len(bench.exchanges):
        waiting = bench.exchanges[answered:]
        answered += len(waiting)
        for exchange in reversed(waiting):
            tell(exchange)
            bench.settle()
    assert not bench.loop.errors
    return clients


def check_laws(clients: Sequence[Client]) -> None:
    bench = clients[0].bench
    bench.reply = tell
    for client in clients:
        written = client.transport.written.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
        answers = list(split_answers(written))
        assert all(answer.status < 500 or answer.status in (501, 505) for answer in answers)
        if not client.over:
            client.send(b"\r\nnonsense\r\n\r\n")  # whatever was half read is over now, too
            bench.loop.advance(200)
            assert client.transport.lost
    last = bench.connect()
    last.send(post(b"the next one"))
    assert b"the next one" in last.answer().body


def check(reads: Traffic, *, late: bool) -> None:
    remembering = play(reads, remembers=True, late=late)
    parsing = play(reads, remembers=False, late=late)
    for one, other in zip(remembering, parsing, strict=True):
        assert one.transport.written == other.transport.written
        assert one.over == other.over
    check_laws(remembering)


def _heads(bodies: Sequence[bytes]) -> list[bytes]:
    return [post(body, target=b"/plain") for body in bodies]


@given(reads=traffic(ANYTHING), late=st.booleans())
@settings(max_examples=500)
@example(
    reads=[(0, post(b"{}")), (0, b"\r"), (0, post(b"{}")), (0, b"\n" + post(b"{}"))], late=False
)
@example(reads=[(0, post(b"{}")), (1, post(b"[") + b"] " + post(b"{}"))], late=True)
@example(reads=[(0, post(b"{}") * 9), (0, post(b"{}")[:-1]), (0, b"}" + CLOSING[2] * 2)], late=True)
@example(reads=[(0, b"".join(_heads([b"1", b"2", b"3", b"4", b"5"])))], late=False)
def test_a_remembered_head_means_what_it_says(reads: Traffic, late: bool) -> None:
    check(reads, late=late)


@pytest.mark.slow
@given(reads=traffic(ANYTHING), late=st.booleans())
@settings(max_examples=examples(1_000))
def test_a_remembered_head_means_what_it_says_for_long(reads: Traffic, late: bool) -> None:
    check(reads, late=late)


@given(
    sent=st.lists(st.sampled_from(VALID), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 1000), max_size=20),
    late=st.booleans(),
)
@settings(max_examples=200)
def test_every_valid_request_gets_one_answer_in_order(
    sent: list[bytes], cuts: list[int], late: bool
) -> None:
    expected = []
    for request in sent:
        alone = Bench(LIMITS, tell).connect()
        alone.send(request)
        expected.append(alone.answer().body)
    stream = b"".join(sent)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    reads = [(0, stream[a:b]) for a, b in pairwise(edges) if b > a]
    client, _ = play(reads, remembers=True, late=late)
    written = client.transport.written.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    assert [answer.body for answer in split_answers(written)] == expected
    assert not client.over
