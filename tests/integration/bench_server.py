"""A small server that speaks V2 (and embeddings) and misbehaves on demand.

``ScriptedServer(script)`` runs on the caller's event loop; ``python bench_server.py`` runs
one in a process of its own and prints its port. A script is called once for every inference
request with its number (from 0), and says what to answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import httptools
import numpy as np


@dataclass
class Reply:
    """``hold``: answered when it is set. ``drop``: the connection is closed instead."""

    status: int = 200
    body: bytes | None = None  # None: the right answer
    hold: asyncio.Event | None = None
    delay_s: float = 0.0
    close: bool = False
    drop: bool = False
    raw: bytes | None = None  # written as it is, instead of everything else


Script = Callable[[int], Reply]


@dataclass
class Model:
    """``y`` is as long as ``x`` has rows."""

    inputs: list[dict[str, object]] = field(
        default_factory=lambda: [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    )
    outputs: list[dict[str, object]] = field(
        default_factory=lambda: [{"name": "y", "datatype": "FP32", "shape": [-1]}]
    )


class ScriptedServer:
    """Attributes: what arrived (``arrived_ns``, ``bodies``), how many at one time at most."""

    def __init__(self, script: Script | None = None, model: Model | None = None) -> None:
        self.script: Script = script or (lambda number: Reply())
        self.model = model or Model()
        self.port = 0
        self.arrived_ns: list[int] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.running = 0
        self.most_running = 0
        self.connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in tuple(self.connections):
            connection.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)  # an aborted transport is closed on the loop's next turn

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def describe(self, path: str) -> tuple[int, object] | None:
        """Everything but inference."""
        if path == "/v2":
            return 200, {"name": "scripted", "version": "1", "extensions": []}
        if path == "/v2/repository/index":
            return 200, [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
        if path == "/v2/models/m":
            signature = {"inputs": self.model.inputs, "outputs": self.model.outputs}
            return 200, {"name": "m", "versions": ["1"], "platform": "scripted", **signature}
        if path in {"/v2/models/m/infer", "/v1/embeddings"}:
            return None
        return 404, {"error": f"Request for unknown model: '{path}' is not found"}


class _Connection(asyncio.Protocol):
    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._reset()

    def _reset(self) -> None:
        self._url, self._body = b"", b""
        self._headers: dict[str, str] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path, body, headers = self._url.decode(), self._body, self._headers
        self._reset()
        described = self.server.describe(path)
        if described is not None:
            status, facts = described
            self._write(status, json.dumps(facts).encode(), close=False)
            return
        number = len(self.server.arrived_ns)
        self.server.arrived_ns.append(time.monotonic_ns())
        self.server.bodies.append(body)
        self.server.headers.append(headers)
        self.server.running += 1
        self.server.most_running = max(self.server.most_running, self.server.running)
        reply = self.server.script(number)
        if reply.hold is None and not reply.delay_s:
            self._answer(path, body, headers, reply)
        else:
            loop = asyncio.get_running_loop()
            task = loop.create_task(self._later(path, body, headers, reply))
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)

    async def _later(self, path: str, body: bytes, headers: dict[str, str], reply: Reply) -> None:
        if reply.delay_s:
            await asyncio.sleep(reply.delay_s)
        if reply.hold is not None:
            await reply.hold.wait()
        self._answer(path, body, headers, reply)

    def _answer(self, path: str, body: bytes, headers: dict[str, str], reply: Reply) -> None:
        self.server.running -= 1
        if reply.drop:
            self.transport.close()
        elif reply.raw is not None:
            self.transport.write(reply.raw)
        elif reply.body is not None or reply.status != 200:
            text = json.dumps({"error": "scripted refusal"}).encode()
            self._write(reply.status, reply.body if reply.body is not None else text, reply.close)
        elif path == "/v1/embeddings":
            given = json.loads(body)["input"]
            count = len(given) if isinstance(given, list) else 1
            data = [{"object": "embedding", "index": i, "embedding": [0.5]} for i in range(count)]
            self._write(200, json.dumps({"object": "list", "data": data}).encode(), reply.close)
        else:
            self._v2(body, headers.get("inference-header-content-length"), reply.close)

    def _v2(self, body: bytes, header_length: str | None, close: bool) -> None:
        head = json.loads(body[: int(header_length)] if header_length else body)
        rows = int(head["inputs"][0]["shape"][0])
        values = np.arange(rows, dtype=np.float32)
        output: dict[str, object] = {"name": "y", "datatype": "FP32", "shape": [rows]}
        if header_length is None:
            output["data"] = values.tolist()
            self._write(200, json.dumps({"outputs": [output]}).encode(), close)
            return
        output["parameters"] = {"binary_data_size": values.nbytes}
        answer = json.dumps({"outputs": [output]}).encode()
        self._write(200, answer + values.tobytes(), close, len(answer))

    def _write(
        self, status: int, body: bytes, close: bool, header_length: int | None = None
    ) -> None:
        if self.transport.is_closing():
            return
        lines = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(body)}"]
        if close:
            lines.append("Connection: close")
        if header_length is not None:
            lines.append(f"Inference-Header-Content-Length: {header_length}")
        self.transport.write("\r\n".join((*lines, "", "")).encode() + body)
        if close:
            self.transport.close()


_tasks: set[asyncio.Task[None]] = set()


@asynccontextmanager
async def serving(
    script: Script | None = None, model: Model | None = None
) -> AsyncIterator[ScriptedServer]:
    """A server on the running loop."""
    server = ScriptedServer(script, model)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@contextmanager
def serving_in_thread(
    script: Script | None = None, model: Model | None = None
) -> Iterator[ScriptedServer]:
    """A server on a loop of its own, for code that brings its own loop, too."""
    server, started = ScriptedServer(script, model), threading.Event()
    loop = asyncio.new_event_loop()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(server.start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(server.stop())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def main() -> None:
    server = ScriptedServer()
    await server.start()
    print(server.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until our parent ends


if __name__ == "__main__":
    asyncio.run(main())
