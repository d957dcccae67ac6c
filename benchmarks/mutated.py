"""A million mutated requests over HTTP/1.1, HTTP/2 and gRPC: the server lives, its memory is flat.

Valid requests of every kind are changed at random: bytes flipped, cut out, doubled, replaced by
other numbers or by pieces of other requests. On each connection all requests but the last have a
changed body in a valid frame, so that all of them are parsed; the last one is changed anywhere.
Resident memory is read after one part in twenty, which fills caches and allocators, and at the end.
"""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import attack_wire as wire
from benchmarks import mlp
from benchmarks.attack_cases import write_models
from benchmarks.attack_wire import Target
from benchmarks.results import Goal, Result, Spread
from benchmarks.servers import headrace_server
from benchmarks.settings import Settings
from headrace.protos import message as message_class

NAME = "mutated"
REQUESTS = 1_000_000
A_CONNECTION = 20
WARM_UP_SHARE = 0.05
MAX_GROWTH = 1.05

_MIB = 1 << 20
_PIECES = (
    b"\0", b"\xff", b"-1", b"0", b"9" * 30, b"1e999", b"NaN", b"[", b"]", b"{", b"}", b'"',
    b"\\u0000", b"\r\n", b"\r\n\r\n", b": ", b"null",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", b"\xc3\x28",
)  # fmt: skip

Send = Callable[[Target, random.Random], Counter[str]]
"""Sends :data:`A_CONNECTION` requests over one connection and counts the answers."""


def _tensor(name: str, datatype: str, values: list[Any], shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": values}


def _json(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"id": "1", "inputs": list(tensors), **more}).encode()


_ROW = _tensor("x", "FP32", [0.5] * 16, [1, 16])
_WORDS = _tensor("x", "BYTES", ["good morning", "gut\u00e9"], [2])
_OUTPUTS = [{"name": "y", "parameters": {"classification": 1}}]
_ROUTES: list[tuple[str, str, bytes]] = [
    ("POST", "/v2/models/mlp/infer", _json(_ROW)),
    ("POST", "/v2/models/mlp/versions/1/infer", _json(_ROW, outputs=_OUTPUTS)),
    ("POST", "/v2/models/mlp/infer", _json(_ROW, parameters={"priority": 1, "timeout": 10**6})),
    ("POST", "/v2/models/words/infer", _json(_WORDS)),
    ("POST", "/v2/models/words/generate", b'{"x":"hello","parameters":{"a":[1,2,{"b":null}]}}'),
    ("POST", "/v2/models/words/generate_stream", b'{"x":"hello"}'),
    ("POST", "/v1/models/mlp:predict", json.dumps({"instances": [[0.5] * 16]}).encode()),
    ("POST", "/v1/embeddings", b'{"model":"words","input":["a","b"]}'),
    ("POST", "/v2/repository/index", b'{"ready":true}'),
    ("POST", "/v2/repository/models/words/load", b'{"parameters":{"config":"{}"}}'),
    ("POST", "/v2/systemsharedmemory/region/r/register", b'{"key":"/none","byte_size":64}'),
    ("POST", "/v2/logging", b'{"log_verbose_level":1}'),
    ("GET", "/v2/models/mlp", b""),
    ("GET", "/v2/models/mlp/stats", b""),
    ("GET", "/metrics", b""),
    ("GET", "/v2/health/ready", b""),
]
_BODIES = [body for _, _, body in _ROUTES if body]


def _calls() -> list[tuple[str, bytes]]:
    """Methods of the inference service with a valid message each."""

    def of(kind: str, **fields: Any) -> bytes:
        return bytes(message_class(f"inference.{kind}")(**fields).SerializeToString())

    row = {**_ROW, "contents": {"fp32_contents": _ROW["data"]}}
    words = {**_WORDS, "contents": {"bytes_contents": [b"good morning", b"night"]}}
    tensors = [{k: v for k, v in tensor.items() if k != "data"} for tensor in (row, words)]
    raw = {k: v for k, v in tensors[0].items() if k != "contents"}
    binary = of(
        "ModelInferRequest",
        model_name="mlp",
        inputs=[raw],
        raw_input_contents=[bytes(64)],
        parameters={"priority": {"int64_param": 1}},
    )
    return [
        ("ModelInfer", of("ModelInferRequest", model_name="mlp", inputs=tensors[:1])),
        ("ModelInfer", of("ModelInferRequest", model_name="words", inputs=tensors[1:])),
        ("ModelInfer", binary),
        ("ModelStreamInfer", binary),
        ("ModelMetadata", of("ModelMetadataRequest", name="mlp")),
        ("ModelStatistics", of("ModelStatisticsRequest", name="mlp")),
        ("RepositoryIndex", of("RepositoryIndexRequest", ready=True)),
        ("RepositoryModelLoad", of("RepositoryModelLoadRequest", model_name="words")),
        ("SystemSharedMemoryRegister", of("SystemSharedMemoryRegisterRequest", name="r", key="/n")),
    ]


_CALLS = _calls()
_MESSAGES = [message for _, message in _CALLS]


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """``data`` with one to four changes; never much longer."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        upto = min(len(changed), at + rng.randint(1, 16))
        match rng.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at:upto]
            case 2:
                changed[at:at] = changed[at:upto]
            case 3:
                changed[at:upto] = rng.choice(_PIECES)
            case _:
                other = rng.choice(others)
                begin = rng.randrange(len(other))
                changed[at:upto] = other[begin : begin + rng.randint(1, 64)]
    return bytes(changed)


def run(settings: Settings) -> Iterator[Result]:
    """One third each over HTTP/1.1, HTTP/2 and gRPC, in turn, to one server."""
    work = settings.work / NAME
    repository = work / "repository"
    mlp.write_mlp(repository / "mlp" / "1", settings.seed)
    write_models(repository)
    wanted = settings.scaled(REQUESTS)
    rng = random.Random(settings.seed)
    answers: dict[str, Counter[str]] = {send.__name__: Counter() for send in SENDERS}
    with headrace_server(repository, work) as server:
        target = Target(server, repository, work)
        sent = first = 0
        while sent < wanted:
            for send in SENDERS:
                answers[send.__name__] += send(target, rng)
                sent += A_CONNECTION
            if not first and sent >= wanted * WARM_UP_SHARE:
                first = server.memory_bytes()
        last = server.memory_bytes()
        (request, *_) = mlp.make_requests(mlp.JSON, settings.seed, 1)
        status, body = server.post(mlp.PATH, request.body, request.headers)
        assert status == 200, body
    growth = last / first
    broken = sum(counts[status] for counts in answers.values() for status in ("500", "2", "13"))
    yield Result(
        benchmark=NAME,
        case=f"{sent} requests",
        figures={
            "first MiB": round(first / _MIB, 1),
            "last MiB": round(last / _MIB, 1),
            "growth": round(growth, 4),
            **{name: _told(counts) for name, counts in answers.items()},
        },
        goals=(
            Goal("resident memory at the end over the start", Spread.of([growth]), MAX_GROWTH),
            Goal("answers 500, grpc-status 2 or 13", Spread.of([broken]), 0, ""),
        ),
    )


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{answer}: {count}" for answer, count in counts.most_common(12))


def over_http1(target: Target, rng: random.Random) -> Counter[str]:
    """Pipelined; the last, changed anywhere, on a connection whose sending side is closed."""
    *chosen, broken = rng.choices(_ROUTES, k=A_CONNECTION)
    requests = []
    for number, (method, path, body) in enumerate(chosen):
        changed = mutate(body, rng, _BODIES) if body else b""
        closing = "Connection: close\r\n" if number == len(chosen) - 1 else ""
        requests.append(_http1(method, path, changed, closing))
    with target.connect() as connection:
        received = _exchange(connection, b"".join(requests), half_close=False)
    with target.connect() as connection:
        last = mutate(_http1(*broken), rng, _BODIES)
        received += _exchange(connection, last, half_close=True)
    answers = received.split(b"HTTP/1.1 ")[1:]
    return Counter(answer[:3].decode("latin-1") for answer in answers)


def over_http2(target: Target, rng: random.Random) -> Counter[str]:
    """A stream for each request."""
    with target.connect() as connection:
        client = wire.Http2(connection)
        pieces = []
        for number in range(A_CONNECTION):
            method, path, body = rng.choice(_ROUTES)
            if rng.random() < 0.2:
                path = "/" + mutate(path.encode(), rng, _BODIES).decode("latin-1")
            changed = mutate(body, rng, _BODIES) if body else b""
            head = client.request(2 * number + 1, method, path, end=not body)
            pieces.append(head + (wire.data(2 * number + 1, changed) if body else b""))
        return _finish(client, pieces, rng)


def over_grpc(target: Target, rng: random.Random) -> Counter[str]:
    """Unary calls, and streams of a few messages."""
    with target.connect() as connection:
        client = wire.Http2(connection)
        pieces = []
        for number in range(A_CONNECTION):
            method, message = rng.choice(_CALLS)
            changed = wire.message(mutate(message, rng, _MESSAGES))
            if rng.random() < 0.05:
                changed = mutate(changed, rng, _MESSAGES)
            head = client.call(2 * number + 1, f"/inference.GRPCInferenceService/{method}")
            pieces.append(head + wire.data(2 * number + 1, changed))
        return _finish(client, pieces, rng)


SENDERS: tuple[Send, ...] = (over_http1, over_http2, over_grpc)


def _finish(client: wire.Http2, frames: Sequence[bytes], rng: random.Random) -> Counter[str]:
    """Sends all but the last and reads their answers; then the last, changed anywhere."""
    client.send(b"".join(frames[:-1]))
    answers = client.statuses(len(frames) - 1)
    client.send(mutate(frames[-1], rng, _BODIES))
    client.finish()
    return answers + client.statuses()


def _exchange(connection: socket.socket, data: bytes, *, half_close: bool) -> bytes:
    """Everything that the server sends until it closes."""
    received = b""
    try:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(1 << 16):
            received += chunk
    except TimeoutError:
        raise
    except OSError:
        pass  # the server closed while there was more to read
    return received


def _http1(method: str, path: str, body: bytes, fields: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
