"""The least that an answer over HTTP can cost in Python: what headrace is held against.

Bare httptools on uvloop, msgspec, one bare model call for all requests of a turn of the
event loop. It answers V2 inference requests for the tiny MLP correctly and does nothing
else: no validation, routing, limits, time-outs, scheduling, stamps, metrics or shutdown. A
wrong request loses its connection, and every path is the inference path.

``python -m benchmarks.floor_server MODEL json|binary PORT``; MODEL is the MLP's file or
``null``, which answers zeros without a model, as headrace's null runtime does.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, cast

import httptools
import msgspec
import numpy as np
import uvloop

WIDTH_IN, WIDTH_OUT = 16, 2

Run = Callable[[np.ndarray], np.ndarray]

_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
_BINARY_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n"
    b"inference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n%b%b"
)
_LENGTH_HEADER = b"inference-header-content-length"


class _JsonInput(msgspec.Struct, gc=False):
    shape: tuple[int, ...]
    data: list[float]


class _JsonRequest(msgspec.Struct, gc=False):
    inputs: tuple[_JsonInput]


class _BinaryInput(msgspec.Struct, gc=False):
    shape: tuple[int, ...]


class _BinaryRequest(msgspec.Struct, gc=False):
    inputs: tuple[_BinaryInput]


class _Output(msgspec.Struct, gc=False):
    name: str
    datatype: str
    shape: tuple[int, int]
    data: list[float]


class _BinaryOutput(msgspec.Struct, gc=False):
    name: str
    datatype: str
    shape: tuple[int, int]
    parameters: dict[str, int]


class _Answer(msgspec.Struct, gc=False):
    model_name: str
    model_version: str
    outputs: tuple[_Output | _BinaryOutput]


_encode = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder(_JsonRequest).decode
_decode_binary = msgspec.json.Decoder(_BinaryRequest).decode


class Turn:
    """The requests of one turn of the loop, run together at its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, run: Run) -> None:
        self._loop = loop
        self._run = run
        self._waiting: list[tuple[FloorConnection, np.ndarray]] = []

    def add(self, connection: FloorConnection, array: np.ndarray) -> None:
        """Answered before the loop waits for the network again."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append((connection, array))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if len(waiting) == 1:
            connection, array = waiting[0]
            connection.answer(self._run(array))
            return
        output = self._run(np.concatenate([array for _, array in waiting]))
        start = 0
        for connection, array in waiting:
            end = start + len(array)
            connection.answer(output[start:end])
            start = end


class FloorConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body

    def answer(self, output: np.ndarray) -> None:
        """Writes the rows of this client's request."""
        raise NotImplementedError


class JsonConnection(FloorConnection):
    """V2 as JSON."""

    def on_message_complete(self) -> None:
        request = _decode_json(self._body)
        self._body = b""
        tensor = request.inputs[0]
        self._turn.add(self, np.array(tensor.data, np.float32).reshape(tensor.shape))

    def answer(self, output: np.ndarray) -> None:
        shape = (len(output), WIDTH_OUT)
        values: list[float] = output.ravel().tolist()
        body = _encode(_Answer("mlp", "1", (_Output("y", "FP32", shape, values),)))
        self._transport.write(_JSON_HEAD % (len(body), body))


class BinaryConnection(FloorConnection):
    """V2 with binary tensors.

    Needs one header, so llhttp calls back for each; the JSON floor is spared that.
    """

    _json_size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == len(_LENGTH_HEADER) and name.lower() == _LENGTH_HEADER:
            self._json_size = int(value)

    def on_message_complete(self) -> None:
        body, size = self._body, self._json_size
        self._body = b""
        shape = _decode_binary(memoryview(body)[:size]).inputs[0].shape
        self._turn.add(self, np.frombuffer(body, "<f4", offset=size).reshape(shape))

    def answer(self, output: np.ndarray) -> None:
        blob = output.tobytes()
        shape = (len(output), WIDTH_OUT)
        described = _BinaryOutput("y", "FP32", shape, {"binary_data_size": len(blob)})
        header = _encode(_Answer("mlp", "1", (described,)))
        size = len(header)
        self._transport.write(_BINARY_HEAD % (size, size + len(blob), header, blob))


CONNECTIONS: dict[str, type[FloorConnection]] = {"json": JsonConnection, "binary": BinaryConnection}


def load(model: str) -> Run:
    """The bare call of an ONNX file, or of nothing."""
    if model == "null":
        return lambda array: np.zeros((len(array), WIDTH_OUT), np.float32)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session: Any = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    run, outputs = session.run, ["y"]

    def call(array: np.ndarray) -> np.ndarray:
        answer: np.ndarray = run(outputs, {"x": array})[0]
        return answer

    return call


async def serve(model: str, wire: str, port: int) -> None:
    """Listens until the process is ended."""
    loop = asyncio.get_running_loop()
    turn = Turn(loop, load(model))
    make = CONNECTIONS[wire]
    server = await loop.create_server(lambda: make(turn), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
