"""An ASGI application behind the fast lane: what it is told, and what becomes of its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from headrace.errors import ModelNotFound
from headrace.frontends.asgi_bridge import AsgiBridge
from tests.unit.frontends.lane_bench import HOST, Bench, Client, post

Message = dict[str, Any]
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


class App:
    """Sends ``messages``; an exception among them is raised, an event is waited for."""

    def __init__(self) -> None:
        self.scopes: list[Message] = []
        self.received: list[Message] = []
        self.messages: list[Message | Exception | asyncio.Event] = []
        self.cancelled = asyncio.Event()
        self.disconnected = asyncio.Event()
        self.awaits_disconnect = False

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        self.scopes.append(scope)
        self.received.append(await receive())
        try:
            for message in self.messages:
                if isinstance(message, asyncio.Event):
                    await message.wait()
                elif isinstance(message, Exception):
                    raise message
                else:
                    await send(message)
            if self.awaits_disconnect:
                self.received.append(await receive())
                self.disconnected.set()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def start(status: int = 200, **fields: str) -> Message:
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def client(app: App) -> Client:
    bridge = AsgiBridge(app, scheme="https")
    return Bench({}, bridge.handle, asyncio.get_running_loop()).connect()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_scope_is_the_request(app: App, client: Client) -> None:
    app.messages = [start(), body(b"")]
    client.send(
        b"PUT /a%20b/%C3%A9?x=%20&y HTTP/1.1\r\nHost: h\r\nX-A:  b \r\nX-a: c\r\n"
        b"Content-Length: 2\r\n\r\nhi"
    )
    await settle()
    (scope,) = app.scopes
    assert scope["type"] == "http"
    assert scope["method"] == "PUT"
    assert scope["path"] == "/a b/é"
    assert scope["raw_path"] == b"/a%20b/%C3%A9"
    assert scope["query_string"] == b"x=%20&y"
    assert scope["http_version"] == "1.1"
    assert scope["scheme"] == "https"
    assert scope["headers"] == [
        (b"host", b"h"),
        (b"x-a", b"b"),
        (b"x-a", b"c"),
        (b"content-length", b"2"),
    ]
    assert app.received == [{"type": "http.request", "body": b"hi", "more_body": False}]


async def test_an_answer_in_one_piece_has_its_length(app: App, client: Client) -> None:
    app.messages = [start(201, x="y", connection="close", content_length="5"), body(b"12345")]
    client.send(GET)
    await settle()
    answer = client.answer()
    assert (answer.status, answer.body) == (201, b"12345")
    assert answer.headers["x"] == "y"
    assert answer.headers["content-length"] == "5"
    assert "connection" not in answer.headers, "that is for the lane to say"


async def test_a_length_that_is_not_true_is_not_believed(app: App, client: Client) -> None:
    app.messages = [start(content_length="5"), body(b"")]
    client.send(GET + GET)
    await settle()
    assert [answer.body for answer in client.answers()] == [b"", b""]


async def test_an_answer_in_pieces_is_chunked(app: App, client: Client) -> None:
    app.messages = [start(), body(b"one ", more=True), body(b"", more=True), body(b"two")]
    client.send(GET + GET)
    await settle()
    assert [answer.body for answer in client.answers()] == [b"one two", b"one two"]
    assert not client.over


async def test_an_answer_in_pieces_ends_with_the_connection_for_http_1_0(
    app: App, client: Client
) -> None:
    app.messages = [start(), body(b"one ", more=True), body(b"two")]
    client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    await settle()
    head, _, rest = client.transport.written.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"chunked" not in head
    assert rest == b"one two"
    assert client.transport.lost


async def test_head_has_the_length_that_get_would_have(app: App, client: Client) -> None:
    app.messages = [start(content_length="5"), body(b"")]
    client.send(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n")
    await settle()
    assert client.answer(head=True).headers["content-length"] == "5"


async def test_head_of_an_answer_in_pieces_has_no_chunks(app: App, client: Client) -> None:
    app.messages = [start(), body(b"one", more=True), body(b"two")]
    client.send((b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n") * 2)
    await settle()
    for answer in client.answers(head=True):
        assert answer.headers["transfer-encoding"] == "chunked"
    assert not client.over


async def test_errors_of_ours_are_answered_as_what_they_are(app: App, client: Client) -> None:
    app.messages = [ModelNotFound("no such model")]
    client.send(GET)
    await settle()
    assert client.answer().status == 404


@pytest.mark.parametrize("messages", [[KeyError("secret")], [start(), KeyError("secret")], []])
async def test_no_answer_is_a_500(app: App, client: Client, messages) -> None:
    app.messages = messages
    client.send(GET)
    await settle()
    answer = client.answer()
    assert answer.status == 500
    assert b"secret" not in answer.body


@pytest.mark.parametrize("end", [[KeyError()], []])
async def test_half_an_answer_is_cut_off(app: App, client: Client, end) -> None:
    """So that nobody takes it for a whole one."""
    app.messages = [start(), body(b"half", more=True), *end]
    client.send(GET)
    await settle()
    assert client.transport.aborted
    assert not client.transport.written.endswith(b"0\r\n\r\n")


async def test_an_error_after_the_answer_changes_nothing(app: App, client: Client) -> None:
    app.messages = [start(), body(b"done"), KeyError()]
    client.send(GET)
    await settle()
    assert client.answer().body == b"done"
    assert not client.over


async def test_who_leaves_cancels_the_application(app: App, client: Client) -> None:
    app.messages = [asyncio.Event()]
    client.send(GET)
    await settle()
    client.leave()
    await app.cancelled.wait()


async def test_after_the_answer_there_is_nothing_to_cancel(app: App, client: Client) -> None:
    release = asyncio.Event()
    app.messages = [start(), body(b"done"), release]
    client.send(GET)
    await settle()
    client.leave()
    release.set()
    await settle()
    assert not app.cancelled.is_set()


async def test_after_the_answer_the_application_is_told_that_it_is_over(
    app: App, client: Client
) -> None:
    app.messages = [start(), body(b"done")]
    app.awaits_disconnect = True
    client.send(GET)
    await app.disconnected.wait()
    assert app.received[-1] == {"type": "http.disconnect"}


async def test_an_application_waits_for_a_client_that_reads_slowly(
    app: App, client: Client
) -> None:
    client.transport.stall()
    large = b"x" * 100_000
    app.messages = [start(), body(large, more=True), body(b"the end")]
    client.send(GET)
    await settle()
    assert b"the end" not in client.transport.written
    client.transport.client_reads(100_000)
    await settle()
    assert client.answer().body == large + b"the end"


async def test_answers_of_several_requests_keep_their_order(app: App, client: Client) -> None:
    async def call(scope: Message, receive: Any, send: Any) -> None:
        content = (await receive())["body"]
        for _ in range(5 if content == b"slow" else 0):
            await asyncio.sleep(0)
        await send(start())
        await send(body(content))

    bench = Bench({}, AsgiBridge(call).handle, asyncio.get_running_loop())
    client = bench.connect()
    client.send(post(b"slow") + post(b"fast"))
    await settle()
    assert [answer.body for answer in client.answers()] == [b"slow", b"fast"]


async def test_one_begins_in_each_turn_of_the_loop(app: App, client: Client) -> None:
    app.messages = [start(), body(b"x")]
    client.send(GET * 12)
    begun = []
    while len(app.scopes) < 12:
        begun.append(len(app.scopes))
        await asyncio.sleep(0)
    await settle()
    assert max(after - before for before, after in pairwise(begun)) == 1
    assert len(client.answers()) == 12


async def test_one_that_waits_for_its_turn_leaves_with_its_client(app: App, client: Client) -> None:
    client.send(GET * 3)
    client.connection.connection_lost(None)
    await settle()
    assert len(app.scopes) <= 1
