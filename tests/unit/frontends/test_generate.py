"""Triton's generate extension: JSON by names in, JSON by names out, or events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InferenceFailed, InvalidRequest, Overloaded
from headrace.frontends.byte_account import ByteAccount, Share
from headrace.frontends.codecs import generate as codec
from headrace.frontends.exchange import Exchange
from headrace.frontends.generate import MAX_UNSENT_EVENTS, GenerateRoute
from headrace.frontends.heads import Head
from headrace.frontends.peer import Peer
from headrace.telemetry.instruments import RequestRecord
from headrace.types import InferenceRequest, InferenceResponse, ModelMetadata, Tensor, TensorSpec

SIGNATURE = ModelMetadata(
    "m",
    ("1",),
    "python",
    (
        TensorSpec("text", "BYTES", (-1, 1)),
        TensorSpec("x", "FP32", (-1, 2)),
        TensorSpec("n", "UINT8", (1,)),
        TensorSpec("on", "BOOL", (1,)),
        TensorSpec("b", "BF16", (-1,)),
    ),
    (),
)


@pytest.fixture(autouse=True, scope="module")
def _as_the_server_does() -> Iterator[None]:
    with np.errstate(over="raise"):
        yield


def decoded(body: object) -> InferenceRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return codec.decode_request(raw, SIGNATURE, "")


@pytest.mark.parametrize(
    ("name", "value", "shape", "data"),
    [
        ("text", "hello", (1, 1), [[b"hello"]]),
        ("text", ["a", "b"], (1, 2), [[b"a", b"b"]]),
        ("text", [["a"], ["ü"]], (2, 1), [[b"a"], ["ü".encode()]]),
        ("x", [1, 2.5], (1, 2), [[1, 2.5]]),
        ("x", [[1, 2], [3, 4]], (2, 2), [[1, 2], [3, 4]]),
        ("x", 7, (1, 1), [[7]]),
        ("n", 255, (1,), [255]),
        ("on", True, (1,), [True]),
        ("b", [1.0], (1,), [0x3F80]),
        ("x", [], (1, 0), [[]]),
    ],
)
def test_a_value_becomes_a_tensor(name: str, value: Any, shape: tuple[int, ...], data: Any) -> None:
    (tensor,) = decoded({name: value}).inputs
    assert (tensor.name, tensor.shape) == (name, shape)
    assert tensor.data.shape == shape
    assert tensor.data.tolist() == data


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 1),
        ("text", None),
        ("x", "1"),
        ("x", True),
        ("x", [[1, 2], [3]]),
        ("x", [1, [2]]),
        ("x", {"a": 1}),
        ("n", 256),
        ("n", -1),
        ("n", 1.5),
        ("on", 1),
        ("text", "\ud800"),
    ],
)
def test_a_value_that_the_input_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"unable to parse input '{name}'|JSON"):
        decoded({name: value})


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b'{"id": 7}', b'{"parameters": []}', b"\xff", b"[" * 9999]
)
def test_a_body_that_is_none(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decoded(body)


def test_what_is_no_input_is_a_parameter() -> None:
    request = decoded({"id": "7", "x": [1, 2], "colour": "red", "parameters": {"priority": 2}})
    assert request.id == "7"
    assert request.parameters == {"colour": "red", "priority": 2}
    assert request.priority == 2


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda each: st.lists(each, max_size=3)))  # fmt: skip
def test_any_value_is_a_tensor_or_an_error(value: Any) -> None:
    for name in ("text", "x", "n", "on", "b"):
        try:
            (tensor,) = decoded({name: value}).inputs
        except InvalidRequest:
            continue
        assert tensor.data.shape == tensor.shape


def answer(*values: float, name: str = "y") -> InferenceResponse:
    array = np.array(values, np.float32)
    return InferenceResponse("m", "1", "", [Tensor(name, "FP32", array.shape, array)])


def test_an_answer_by_names() -> None:
    texts = np.array([b"a", "ü".encode()], dtype=object)
    response = answer(1.5)
    response.outputs.append(Tensor("t", "BYTES", (2,), texts))
    told = json.loads(codec.encode_response(response))
    assert told == {"model_name": "m", "model_version": "1", "y": 1.5, "t": ["a", "ü"]}
    response.outputs = [Tensor("t", "BYTES", (1,), np.array([b"\xff"], dtype=object))]
    with pytest.raises(InferenceFailed, match="not UTF-8"):
        codec.encode_response(response)


class Client:
    """Takes what an exchange sends; ``reads`` set: it is not slow."""

    def __init__(self) -> None:
        self.share = Share(ByteAccount(1 << 30), lambda: Peer())
        self.closed = False
        self.code = 0
        self.head = b""
        self.body = b""
        self.ended = False
        self.reads = asyncio.Event()
        self.reads.set()

    def finish_ok(self, exchange: Exchange, body: bytes) -> None:
        exchange.respond(200, body)

    def begin(self, exchange: Exchange, code: int, head: bytes) -> None:
        assert not self.code
        self.code, self.head = code, head

    def send(self, exchange: Exchange, data: bytes, *, last: bool) -> None:
        assert not self.ended
        self.body += data
        self.ended = last

    def abort(self) -> None:
        self.closed = True

    def peer(self) -> Peer:
        return Peer()

    async def writable(self) -> None:
        await self.reads.wait()

    @property
    def events(self) -> list[Any]:
        assert self.body == b"" or self.body.endswith(b"\n\n")
        pieces = self.body.decode().split("\n\n")[:-1]
        return [json.loads(piece.removeprefix("data: ")) for piece in pieces]


class Ticket:
    cancelled = False
    done = False
    rows = 1

    def __init__(self) -> None:
        self.served = SimpleNamespace(answer_row_bytes=8)

    def cancel(self) -> None:
        self.cancelled = True


class Engine:
    """Keeps the reply, for the test to use."""

    def __init__(self) -> None:
        self.catalog = self
        self.ticket = Ticket()
        self.reply: Any = None

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        return SIGNATURE

    def resolve(self, name: str, version: str = "") -> Any:
        return SimpleNamespace(batchable=False, output_row_values=1)

    def submit(self, request: InferenceRequest, reply: Any) -> Ticket:
        self.reply = reply
        return self.ticket


def asked(*, streams: bool, http_1_0: bool = False) -> tuple[Engine, Client, Exchange]:
    engine, client = Engine(), Client()
    head = Head(b"POST", b"/", {}, [], http_1_0=http_1_0)
    exchange = Exchange(client, head, b'{"x": [1, 2]}', 1, True)
    GenerateRoute(engine).handle(exchange, ("m", "", streams))  # type: ignore[arg-type]
    return engine, client, exchange


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_answer() -> None:
    engine, client, exchange = asked(streams=False)
    engine.reply.complete(answer(3), RequestRecord("m", "1"))
    assert (client.code, json.loads(client.body)["y"]) == (200, 3)
    assert exchange.cancel is None


@pytest.mark.parametrize("parts", [0, 2, 5])
async def test_generate_wants_exactly_one(parts: int) -> None:
    engine, client, _ = asked(streams=False)
    for number in range(parts):
        engine.reply.part(answer(number))
    engine.reply.complete(InferenceResponse("m", "1", "", []), RequestRecord("m", "1"))
    assert client.code == 400
    assert "generate expects model to produce exactly 1 response" in client.body.decode()


async def test_one_part_and_an_empty_end_are_one_answer() -> None:
    engine, client, _ = asked(streams=False)
    engine.reply.part(answer(4))
    engine.reply.complete(InferenceResponse("m", "1", "", []), RequestRecord("m", "1"))
    assert (client.code, json.loads(client.body)["y"]) == (200, 4)


async def test_events_in_order_and_no_done() -> None:
    engine, client, _ = asked(streams=True)
    engine.reply.part(answer(1))
    await settled()
    assert [event["y"] for event in client.events] == [1]
    engine.reply.part(answer(2))
    engine.reply.complete(answer(3), RequestRecord("m", "1"))
    await settled()
    assert [event["y"] for event in client.events] == [1, 2, 3]
    assert client.ended
    assert b"text/event-stream" in client.head
    assert b"transfer-encoding: chunked" in client.head


async def test_a_stream_without_an_answer_ends() -> None:
    engine, client, _ = asked(streams=True)
    engine.reply.complete(InferenceResponse("m", "1", "", []), RequestRecord("m", "1"))
    await settled()
    assert (client.code, client.body, client.ended) == (200, b"", True)


async def test_an_error_before_the_stream_is_an_answer() -> None:
    engine, client, _ = asked(streams=True)
    engine.reply.fail(Overloaded("full"))
    assert client.code == 503
    assert client.ended


async def test_an_error_later_is_an_event() -> None:
    engine, client, _ = asked(streams=True)
    engine.reply.part(answer(1))
    engine.reply.fail(InferenceFailed("broke"))
    await settled()
    assert client.code == 200
    assert [event.get("error", "") for event in client.events] == ["", "broke"]
    assert client.ended


async def test_a_slow_client_gets_all_of_it_later() -> None:
    engine, client, _ = asked(streams=True)
    client.reads.clear()
    for number in range(10):
        engine.reply.part(answer(number))
    engine.reply.complete(answer(10), RequestRecord("m", "1"))
    await settled()
    assert client.body == b""
    client.reads.set()
    await settled()
    assert [event["y"] for event in client.events] == list(range(11))
    assert client.ended


async def test_what_a_client_does_not_read_is_bounded() -> None:
    engine, client, _ = asked(streams=True)
    client.reads.clear()
    for number in range(MAX_UNSENT_EVENTS + 1):
        engine.reply.part(answer(number))
    assert engine.ticket.cancelled
    client.reads.set()
    await settled()
    assert client.events[-1]["code"] == "slow_client"
    assert client.ended


async def test_a_client_that_left_is_sent_nothing() -> None:
    engine, client, exchange = asked(streams=True)
    engine.reply.part(answer(1))
    await settled()
    client.closed = True
    assert exchange.cancel is not None
    exchange.cancel()
    engine.reply.part(answer(2))
    await settled()
    assert [event["y"] for event in client.events] == [1]
    assert engine.ticket.cancelled


async def test_over_http_1_0_the_end_of_the_connection_ends_it() -> None:
    engine, client, exchange = asked(streams=True, http_1_0=True)
    engine.reply.complete(answer(1), RequestRecord("m", "1"))
    await settled()
    assert not exchange.keep_alive
    assert b"chunked" not in client.head
