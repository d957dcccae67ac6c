"""The clients of the attacks: HTTP/1.1 and HTTP/2 by hand, so that they can break the rules."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import hpack
import msgspec

from benchmarks.servers import HOST, Server

TIMEOUT_S = 60.0
_END_STREAM, _END_HEADERS = 0x1, 0x4
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
_MAX_FRAME = 16_384
_HUGE_WINDOW = 2**31 - 1 - 65_535
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Target(msgspec.Struct):
    """The server that is attacked, its repository, and a folder for files."""

    server: Server
    repository: Path
    work: Path

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        source: str = HOST,
    ) -> str:
        """Status and error text of one request on a connection of its own."""
        port = self.server.port
        connection = http.client.HTTPConnection(
            HOST, port, timeout=TIMEOUT_S, source_address=(source, 0)
        )
        try:
            connection.request(method, path, body or None, dict(headers or {}))
            answer = connection.getresponse()
            return f"{answer.status} {error_of(answer.read())}".strip()
        except (ConnectionError, http.client.HTTPException) as error:
            return f"closed: {type(error).__name__}"
        finally:
            connection.close()

    def post_json(self, path: str, value: object, headers: Mapping[str, str] | None = None) -> str:
        """:meth:`ask` with a JSON body."""
        return self.ask("POST", path, json.dumps(value).encode(), headers)

    def connect(self) -> socket.socket:
        """A TCP connection."""
        return socket.create_connection((HOST, self.server.port), timeout=TIMEOUT_S)

    def open_http2(self) -> Http2:
        """An HTTP/2 connection with prior knowledge."""
        return Http2(self.connect())


class Http2:
    """Writes what it is told; reads until every stream has ended or the connection has."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._buffer = b""
        window = b"\x00\x04" + (2**31 - 1).to_bytes(4, "big")
        self.send(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(_SETTINGS, 0, 0, window)
            + frame(_WINDOW_UPDATE, 0, 0, _HUGE_WINDOW.to_bytes(4, "big"))
        )

    def send(self, data: bytes) -> None:
        """Bytes as they are; what the server no longer reads is lost."""
        try:
            self._socket.sendall(data)
        except OSError:
            return

    def request(self, stream: int, method: str, path: str, *, end: bool) -> bytes:
        """The HEADERS frame of an HTTP request."""
        fields = [(":method", method), (":scheme", "http"), (":authority", HOST), (":path", path)]
        flags = _END_HEADERS | (_END_STREAM if end else 0)
        return frame(_HEADERS, flags, stream, self._encoder.encode(fields))

    def statuses(self, wanted: int = 0) -> Counter[str]:
        """How streams ended: ``wanted`` of them, or all until the server closes."""
        seen = Counter[str]()
        ended = 0
        while (not wanted or ended < wanted) and (got := self._frame()) is not None:
            kind, flags, _, payload = got
            if kind == _RST_STREAM:
                seen["RST_STREAM"] += 1
                ended += 1
            elif kind == _GOAWAY:
                seen[f"GOAWAY {int.from_bytes(payload[4:8], 'big')}"] += 1
            elif kind == _HEADERS:
                fields = dict(self._decoder.decode(payload))
                if "grpc-status" in fields or fields.get("content-type") != "application/grpc":
                    seen[str(fields.get("grpc-status") or fields.get(":status"))] += 1
                ended += bool(flags & _END_STREAM)
            elif kind == _DATA:
                ended += bool(flags & _END_STREAM)
        return seen

    def finish(self) -> None:
        """Closes the sending side."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def call(self, stream: int, path: str, *, compressed: bool = False) -> bytes:
        """The HEADERS frame of a gRPC call."""
        fields = [
            (":method", "POST"), (":scheme", "http"), (":authority", HOST), (":path", path),
            ("content-type", "application/grpc"), ("te", "trailers"),
        ]  # fmt: skip
        if compressed:
            fields.append(("grpc-encoding", "gzip"))
        return frame(_HEADERS, _END_HEADERS, stream, self._encoder.encode(fields))

    def answers(self, streams: Iterable[int]) -> str:
        """The different gRPC statuses of these streams, or how the connection ended."""
        waiting, seen = set(streams), dict[str, None]()
        while waiting:
            got = self._frame()
            if got is None:
                seen["closed"] = None
                break
            kind, flags, stream, payload = got
            if kind == _GOAWAY:
                seen[f"GOAWAY {int.from_bytes(payload[4:8], 'big')}"] = None
            elif kind == _RST_STREAM and stream in waiting:
                seen[f"RST_STREAM {int.from_bytes(payload, 'big')}"] = None
                waiting.discard(stream)
            elif kind == _HEADERS:
                fields = dict(self._decoder.decode(payload))
                if flags & _END_STREAM and stream in waiting:
                    waiting.discard(stream)
                    told = (
                        f"grpc-status {fields.get('grpc-status')} {fields.get('grpc-message', '')}"
                    )
                    seen[told.strip()] = None
        return "; ".join(seen)

    def close(self) -> None:
        """Without a word."""
        self._socket.close()

    def _frame(self) -> tuple[int, int, int, bytes] | None:
        head = self._read(9)
        if head is None:
            return None
        payload = self._read(int.from_bytes(head[:3], "big"))
        if payload is None:
            return None
        return head[3], head[4], int.from_bytes(head[5:9], "big"), payload

    def _read(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            try:
                chunk = self._socket.recv(1 << 16)
            except OSError:
                return None
            if not chunk:
                return None
            self._buffer += chunk
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def data(stream: int, payload: bytes, *, end: bool = True) -> bytes:
    """DATA frames of the default maximum size."""
    pieces = [payload[i : i + _MAX_FRAME] for i in range(0, len(payload), _MAX_FRAME)] or [b""]
    frames = [frame(_DATA, 0, stream, piece) for piece in pieces[:-1]]
    return b"".join([*frames, frame(_DATA, _END_STREAM if end else 0, stream, pieces[-1])])


def reset(stream: int) -> bytes:
    """RST_STREAM with CANCEL."""
    return frame(_RST_STREAM, 0, stream, (8).to_bytes(4, "big"))


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """A gRPC message with its prefix."""
    body = gzip.compress(payload, 6) if compressed else payload
    return bytes((compressed,)) + len(body).to_bytes(4, "big") + body


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def infer_message(model: str, inputs: Sequence[bytes] = ()) -> bytes:
    """A ``ModelInferRequest`` with these encoded tensors."""
    return field(1, model.encode()) + b"".join(field(5, tensor) for tensor in inputs)


def error_of(body: bytes) -> str:
    """The error text of an answer in JSON, cut to 120 characters; "" for other answers."""
    try:
        value = json.loads(body)
    except ValueError:
        return ""
    text = value.get("error", "") if isinstance(value, dict) else ""
    return str(text.get("message", text) if isinstance(text, dict) else text)[:120]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))
