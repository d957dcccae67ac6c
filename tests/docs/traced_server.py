"""A server in this process that says where its requests went: ``python traced_server.py``.

Serves a tiny text model, sends it requests over a socket, and prints as JSON: for the first
request and for one that repeats its head, every call of a function of ours as
``[thread, file]`` (one entry where a file calls itself), and how many objects only the
garbage collector could free after ``REQUESTS`` more.
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

import uvloop

import headrace
from headrace.config import Config, ModelConfig
from headrace.repository.layout import scan
from headrace.server.app import Application
from headrace.server.sockets import listening_socket
from tests.unit.repository.bert_models import TinyBert

OURS = f"{Path(headrace.__file__).parent}/"

REQUESTS = 200

_BODY = b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["w5 w6"]}]}'
_REQUEST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b"


class Tracer:
    """``sys.setprofile`` on every thread; kept between ``begin`` and ``end``."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, str]] | None = None
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def begin(self) -> None:
        self._calls = []

    def end(self) -> list[tuple[str, str]]:
        calls, self._calls = self._calls or [], None
        return [call for i, call in enumerate(calls) if i == 0 or call != calls[i - 1]]

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        path = frame.f_code.co_filename
        if self._calls is not None and event == "call" and path.startswith(OURS):
            self._calls.append((threading.current_thread().name, path.removeprefix(OURS)))


def open_up(connection: socket.socket) -> None:
    """Any other request, so that what a new connection needs is done."""
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def ask(connection: socket.socket) -> None:
    connection.sendall(_REQUEST % (len(_BODY), _BODY))
    answer = b""
    while not answer.endswith(b"]}]}"):
        received = connection.recv(65536)
        assert received, answer
        answer += received
    assert answer.startswith(b"HTTP/1.1 200 "), answer


async def main(folder: Path) -> None:
    tracer = Tracer()
    config = Config(defaults=ModelConfig(runtime="onnxruntime"), cache_dir=str(folder / "cache"))
    app = Application(config)
    listener = listening_socket("127.0.0.1", 0)
    await app.listen([listener])
    await app.load(scan([TinyBert().save(folder / "m")], config=config))
    loop = asyncio.get_running_loop()
    connection = socket.create_connection(listener.getsockname())

    async def traced() -> list[tuple[str, str]]:
        tracer.begin()
        # We are back on the loop only when the turn that wrote the answer is over.
        await loop.run_in_executor(None, ask, connection)
        return tracer.end()

    await loop.run_in_executor(None, open_up, connection)
    first, again = await traced(), await traced()
    gc.collect()
    gc.disable()
    await loop.run_in_executor(None, lambda: [ask(connection) for _ in range(REQUESTS)])
    gc.set_debug(gc.DEBUG_SAVEALL)
    left = gc.collect()
    kinds = sorted({type(each).__name__ for each in gc.garbage})
    connection.close()
    app.stop()
    await app.run_until_stopped()
    await app.close()
    print(json.dumps({"first": first, "again": again, "left": left, "kinds": kinds}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        uvloop.run(main(Path(scratch)))
