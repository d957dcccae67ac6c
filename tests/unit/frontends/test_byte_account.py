"""The account of bytes: its rules, and that it is 0 whichever way requests end."""

from __future__ import annotations

import gc
import gzip
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.catalog import Catalog
from headrace.errors import InvalidRequest, ModelNotFound
from headrace.frontends.byte_account import (
    TLS_BYTES,
    UNCOUNTED_BYTES,
    ByteAccount,
    Share,
    default_total_bytes,
    peer_name,
)
from headrace.frontends.exchange import Exchange
from headrace.frontends.peer import Address, Peer
from headrace.limits import GIB, MIB
from tests.unit.frontends.lane_bench import Bench, Client, chunked, echo, post

BIG = 100_000


def bench(total: int, **limits: Any) -> Bench:
    return Bench({"max_memory_bytes": total, "max_body_bytes": 4 * BIG, **limits})


def test_a_peer_gets_half_and_the_others_what_is_left() -> None:
    account = ByteAccount(1000)
    assert account.take("a", 500)
    assert not account.take("a", 1)
    assert account.take("b", 400)
    assert not account.take("c", 101)
    assert account.take("c", 100)
    assert account.refused == {"peer": 1, "total": 1}
    for peer, size in (("a", 500), ("b", 400), ("c", 100)):
        account.give(peer, size)
    assert account.used_bytes == 0


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:0db8:0001:0002"),
        ("fe80::1%eth0", "fe80:0000:0000:0000"),
        ("/run/socket", "/run/socket"),
    ],
)
def test_a_peer_is_an_address_of_ipv6_its_first_half(host: str, name: str) -> None:
    assert peer_name(Peer(Address(host, 1))) == name


@pytest.mark.parametrize(
    ("memory", "workers", "total"),
    [(0, 1, 512 * MIB), (16 * GIB, 1, 4 * GIB), (16 * GIB, 16, 512 * MIB), (GIB, 2, GIB // 4)],
)
def test_default_of_the_total(memory: int, workers: int, total: int) -> None:
    assert default_total_bytes(memory, workers, 64 * MIB) == total


def test_a_closed_share_holds_nothing() -> None:
    account = ByteAccount(1000)
    share = Share(account, lambda: Peer())
    share.spend(100)
    share.close()
    share.give(100)
    assert share.take(5000)
    assert account.used_bytes == 0


def test_bodies_held_one_byte_short_are_refused_when_half_is_used() -> None:
    b = bench(8 * BIG)
    clients = [b.connect() for _ in range(6)]
    for client in clients:
        client.send(post(bytes(BIG))[:-1], step=30_000)
        assert b.lane.account.used_bytes <= 4 * BIG
    refused = [client for client in clients if client.transport.written]
    assert len(refused) == 2
    answer = refused[0].answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert b'"memory_full"' in answer.body
    assert b.lane.account.refused["peer"] == 2
    small = b.connect()
    small.send(post(bytes(UNCOUNTED_BYTES)))
    assert len(b.exchanges) == 1


def test_an_announced_body_without_room_is_refused_before_it_comes() -> None:
    b = bench(2 * BIG)
    client = b.connect()
    client.send(post(bytes(2 * BIG), b"Expect: 100-continue\r\n")[: -2 * BIG])
    assert client.answer().status == 503


def test_a_body_in_one_read_without_room_keeps_the_connection() -> None:
    b = bench(BIG)
    client = b.connect()
    for _ in range(2):  # the second time its head is known
        client.send(post(bytes(BIG)))
        assert client.over
        client = b.connect()
    assert b.lane.account.used_bytes == 0


@pytest.mark.parametrize("room", [True, False])
def test_inflated_bodies_are_counted(room: bool) -> None:
    b = bench(8 * BIG if room else BIG)
    client = b.connect()
    client.send(post(gzip.compress(bytes(BIG)), b"Content-Encoding: gzip\r\n"))
    if room:
        assert b.lane.account.used_bytes == BIG
        b.exchanges[0].respond_json(b"{}")
    assert client.answer().status == (200 if room else 503)
    assert b.lane.account.used_bytes == 0


def test_an_answer_without_room_becomes_an_error() -> None:
    b = bench(2 * BIG)
    client = b.connect()
    client.send(post())
    b.exchanges[0].respond_json(bytes(BIG + 1))
    assert client.answer().status == 503


def test_pipelined_requests_wait_while_large_answers_are_owed() -> None:
    b = bench(1000 * BIG, max_unsent_bytes=BIG)
    client = b.connect()
    client.transport.stall()
    b.reply = lambda exchange: exchange.respond_json(bytes(BIG)) if len(b.exchanges) < 50 else None
    client.send(post() * 10)
    assert len(b.exchanges) == 1  # the answer to it is not read
    assert not client.transport.reading
    assert b.lane.account.used_bytes == client.transport.unread_bytes
    for _ in range(10):
        client.transport.client_reads(10 * BIG)
        b.settle()
    assert len(client.answers()) == 10
    assert b.lane.account.used_bytes == 0
    assert client.transport.reading


def test_tls_connections_are_counted() -> None:
    b = bench(8 * BIG)
    client = b.connect(tls=True)
    assert b.lane.account.used_bytes == TLS_BYTES
    client.leave()
    assert b.lane.account.used_bytes == 0


STEPS = st.sampled_from(
    (
        *("connect", "part", "part", "rest", "rest", "whole", "chunked", "gzip", "small"),
        *("answer", "answer", "large", "error", "piece", "claim"),
        *("stall", "read", "leave", "eof", "time", "garbage"),
    )
)


class World:
    """Connections in any state; one method for everything that can happen to one."""

    def __init__(self, total: int) -> None:
        self.bench = bench(total, max_unsent_bytes=2 * BIG, max_pipelined=3)
        self.clients: list[Client] = []
        self.partial: dict[int, bytes] = {}

    def check(self) -> None:
        account = self.bench.lane.account
        assert account.used_bytes == sum(c.connection.share.used_bytes for c in self.clients)
        assert all(c.connection.share.used_bytes >= 0 for c in self.clients)

    def step(self, what: str, number: int) -> None:
        if what == "connect" or not self.clients:
            self.clients.append(self.bench.connect())
        elif what == "time":
            self.bench.loop.advance(100.0)
        elif what in ("answer", "large", "error", "piece", "claim"):
            self.reply(what, number)
        else:
            client = self.clients[number % len(self.clients)]
            if not client.transport.lost:
                self.act(what, client)
        self.bench.settle()
        self.check()

    def act(self, what: str, client: Client) -> None:
        transport = client.transport
        rest = self.partial.pop(id(client), b"")
        if what == "stall":
            transport.stall()
        elif what == "read":
            transport.client_reads(10 * BIG)
        elif what == "leave":
            client.leave()
        elif what == "eof":
            client.eof()
        else:
            whole = post(bytes(BIG))
            packed = gzip.compress(bytes(BIG))
            data = {
                "part": rest or whole[: BIG // 2],
                "rest": rest,
                "whole": rest + whole,
                "chunked": rest + chunked(bytes(BIG)),
                "gzip": rest + post(packed, b"Content-Encoding: gzip\r\n"),
                "small": rest + post() * 5,
                "garbage": b"\0\0",
            }[what]
            client.send(data)
            if what == "part" and not rest:
                self.partial[id(client)] = whole[BIG // 2 :]

    def reply(self, what: str, number: int) -> None:
        gone = {c.connection for c in self.clients if c.transport.closing}
        waiting = [e for e in self.bench.exchanges if not e.finished and e.connection not in gone]
        if not waiting:
            return
        exchange = waiting[number % len(waiting)]
        if what == "piece":
            if exchange.unsent is None and not exchange.chunked:
                exchange.chunked = True
                exchange.connection.begin(exchange, 200, b"")
            exchange.connection.send(exchange, bytes(BIG), last=False)
        elif what == "claim":
            exchange.hold_answer(BIG)
        elif exchange.chunked:
            exchange.connection.send(exchange, b"", last=True)
        elif what == "error":
            exchange.respond_error(InvalidRequest("no"))
        else:
            exchange.finished = True
            exchange.respond_json(bytes(BIG) if what == "large" else b"{}")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(STEPS, st.integers(0, 9)), max_size=40), st.sampled_from((5, 20, 1000)))
def test_nothing_is_held_after_the_end(steps: list[tuple[str, int]], bodies: int) -> None:
    world = World(bodies * BIG)
    for what, number in steps:
        world.step(what, number)
    lane = world.bench.lane
    for client in world.clients:  # clients that stay, and read
        for _ in range(50):
            client.transport.client_reads(100 * BIG)
            world.bench.settle()
            world.reply("answer", 0)
            world.bench.settle()
    world.check()
    held = [c for c in world.clients if not c.transport.lost and id(c) not in world.partial]
    for client in held:
        if not client.connection._exchanges and client.connection._reader.held_bytes == 0:
            assert client.connection.share.used_bytes == 0
    lane.abort()
    world.bench.settle()
    assert lane.account.used_bytes == 0
    assert not lane.account._by_peer


def test_a_predicted_answer_without_room_cancels_the_request() -> None:
    b = bench(2 * BIG)
    client = b.connect()
    client.send(post())

    class Ticket:
        done = cancelled = False
        rows = BIG

        class served:
            answer_row_bytes = 4

        def cancel(self) -> None:
            self.cancelled = True

    ticket: Any = Ticket()
    (exchange,) = b.exchanges
    try:
        exchange.submitted(ticket)
    except Exception as error:  # noqa: BLE001 - as the lane does
        exchange.respond_error(error)
    assert ticket.cancelled
    assert client.answer().status == 503
    client.send(post())
    b.exchanges[1].respond_json(b"{}")
    assert client.answer().status == 200


def test_echo_of_a_large_body_holds_nothing_afterwards() -> None:
    b = bench(8 * BIG)
    b.reply = echo
    client = b.connect()
    client.send(post(bytes(BIG)), step=10_000)
    assert client.answer().status == 200
    assert b.lane.account.used_bytes == 0
    assert isinstance(b.exchanges[0], Exchange)


def test_an_error_about_an_unknown_model_does_not_keep_the_caller_alive() -> None:
    class Body:
        pass

    def ask() -> weakref.ref[Body]:
        body = Body()
        try:
            Catalog().resolve("none")
        except ModelNotFound:
            pass
        return weakref.ref(body)

    gc.disable()
    try:
        assert ask()() is None
    finally:
        gc.enable()
