"""One line for every request, whatever becomes of it."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import InvalidRequest
from headrace.frontends.access import LoggedConnection
from headrace.frontends.exchange import Exchange
from tests.unit.frontends.lane_bench import HOST, Bench, Client, FakeTransport, echo, post


class Log:
    """Stands where the logger is."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, *, extra: dict[str, Any]) -> None:
        assert event == "request"
        fields = extra["fields"]
        assert fields.pop("ms") >= 0
        self.lines.append(fields)


@pytest.fixture
def log() -> Log:
    return Log()


def connect(bench: Bench, log: Any, peer: object = ("192.0.2.1", 5000)) -> Client:
    transport = FakeTransport(bench.loop)
    transport.get_extra_info = lambda name, default=None: peer
    connection = LoggedConnection(bench.lane, log)
    transport.set_protocol(connection)
    connection.connection_made(transport)
    return Client(bench, transport, connection)


def line(method: str, target: str, status: int, size: int) -> dict[str, Any]:
    return {
        "method": method,
        "target": target,
        "status": status,
        "bytes": size,
        "peer": "192.0.2.1:5000",
    }


def test_a_line_has_what_was_asked_and_what_was_answered(log) -> None:
    client = connect(Bench({}, echo), log)
    client.send(post(b"12345", target=b"/a?b=c"))
    client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert log.lines == [line("POST", "/a?b=c", 200, 5), line("GET", "/", 200, 0)]


def test_answers_are_the_same_with_and_without_the_log(log) -> None:
    sent = post(b"1") * 3 + post(b"2", b"Connection: close\r\n")
    plain, logged = Bench({}, echo), Bench({}, echo)
    one, other = plain.connect(), connect(logged, log)
    one.send(sent)
    other.send(sent)
    told = [(answer.status, answer.headers, answer.body) for answer in one.answers()]
    for _, headers, _ in told:
        headers.pop("date")
    again = [(answer.status, answer.headers, answer.body) for answer in other.answers()]
    for _, headers, _ in again:
        headers.pop("date")
    assert told == again
    assert len(log.lines) == 4


def test_errors_and_refusals_have_their_line(log) -> None:
    def refuse(exchange: Exchange) -> None:
        raise InvalidRequest("no")

    client = connect(Bench({}, refuse), log)
    client.send(post() + b"nonsense\r\n\r\n")
    first, second = log.lines
    assert (first["status"], first["target"]) == (400, "/x")
    assert second["bytes"] > 0
    assert (second["method"], second["target"], second["status"]) == ("-", "-", 400)


def test_who_does_not_wait_is_499(log) -> None:
    bench = Bench()
    client = connect(bench, log)
    client.send(post(target=b"/1") + post(target=b"/2") + post(target=b"/3"))
    bench.exchanges[1].respond_json(b"done, but never sent")
    bench.exchanges[0].respond_json(b"sent")
    client.leave()
    bench.exchanges[2].respond_json(b"too late")
    assert sorted((fields["target"], fields["status"]) for fields in log.lines) == [
        ("/1", 200),
        ("/2", 200),
        ("/3", 499),
    ]


def test_a_stream_is_one_line_at_its_end(log) -> None:
    bench = Bench()
    client = connect(bench, log)
    client.send(post())
    (exchange,) = bench.exchanges
    exchange.chunked = True
    exchange.connection.begin(exchange, 200, b"transfer-encoding: chunked\r\n")
    exchange.connection.send(exchange, b"123", last=False)
    assert not log.lines
    exchange.connection.send(exchange, b"45", last=True)
    assert log.lines == [line("POST", "/x", 200, 5)]


def test_head_has_sent_nothing(log) -> None:
    client = connect(Bench({}, lambda exchange: exchange.respond(200, b"12345")), log)
    client.send(b"HEAD /x HTTP/1.1\r\n" + HOST + b"\r\n")
    assert log.lines == [line("HEAD", "/x", 200, 0)]


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        (("2001:db8::1", 80, 0, 0), "[2001:db8::1]:80"),
        ("/run/socket", "/run/socket"),
        ("", "-"),
        (None, "-"),
    ],
)
def test_who_it_was(log, peer: object, shown: str) -> None:
    connect(Bench({}, echo), log, peer).send(post())
    assert log.lines[0]["peer"] == shown
