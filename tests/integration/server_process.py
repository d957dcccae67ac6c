"""A real ``headrace serve`` in a process of its own, its log, and a socket to talk to it."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

TIMEOUT_S = 120.0
"""A test that hangs fails, at some time."""

_READY = re.compile(r"ready on (https?://\S+)")


class ServerProcess:
    """Started and read line by line. ``env`` is laid over the environment; settings of the
    machine the tests run on do not count.
    """

    def __init__(
        self,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        script: str = "",
        cwd: Path | None = None,
    ) -> None:
        entrance = ["-c", script] if script else ["-m", "headrace"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        self.process = subprocess.Popen(
            [sys.executable, *entrance, "serve", *map(str, arguments)],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=clean | dict(env or {}),
            cwd=cwd,
        )
        self.url = ""
        self.lines: list[str] = []
        self._fresh: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ended, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._fresh.put(line.rstrip("\n"))
        self._fresh.put(None)

    def wait_for(self, text: str) -> str:
        """The next line of the log that has ``text`` in it."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            line = self._fresh.get(timeout=max(0.0, deadline - time.monotonic()))
            assert line is not None, f"ended without {text!r}:\n" + "\n".join(self.lines)
            self.lines.append(line)
            if text in line:
                return line

    def wait_ready(self) -> ServerProcess:
        found = _READY.search(self.wait_for("ready on http"))
        assert found is not None
        self.url = found[1].rstrip('"')
        return self

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status; all of the log is in ``lines`` then."""
        status = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        while (line := self._fresh.get(timeout=1)) is not None:
            self.lines.append(line)
        self._fresh.put(None)
        return status

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Any = None
    ) -> tuple[int, dict[str, str], bytes]:
        """On a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return response.status, fields, response.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        raw = None if body is None else json.dumps(body).encode()
        status, _, answer = self.request(method, path, raw)
        return status, json.loads(answer)

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels, as they stand on the page."""
        status, _, page = self.request("GET", "/metrics")
        assert status == 200
        samples = (line.rsplit(" ", 1) for line in page.decode().splitlines() if line[:1] != "#")
        return {name: float(value) for name, value in samples}

    def connect(self) -> Raw:
        return Raw(self.port)


class Raw:
    """A socket, and answers read off it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_to_the_end(self) -> bytes:
        """Everything until the server closes."""
        data, self._buffer = self._buffer, b""
        while chunk := self.socket.recv(65_536):
            data += chunk
        return data

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """One answer that has a length."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        length = int(fields.get("content-length", "0"))
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return int(first.split()[1]), fields, body

    def _more(self) -> None:
        chunk = self.socket.recv(65_536)
        assert chunk, f"closed after {self._buffer!r}"
        self._buffer += chunk


@contextmanager
def serving(*arguments: object, env: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server that is ready, on a free port; ended afterwards, whatever happened."""
    with ServerProcess(*arguments, "--port", "0", env=env) as server:
        yield server.wait_ready()


def traces_in(file: Path) -> list[dict[str, Any]]:
    """The traces that servers have written; [] while there is no file, or half of an array."""
    text = file.read_text() if file.exists() else ""
    return json.loads(text) if text.endswith("]\n") else []


def limits(**values: float) -> dict[str, str]:
    """Settings of ``server.limits`` as environment variables."""
    return {f"HEADRACE_SERVER__LIMITS__{name.upper()}": str(v) for name, v in values.items()}


def wait_until(holds: Any, what: str) -> None:
    """Asks again and again, because another process decides when."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def listening_port(pid: int) -> int:
    """Where a process listens, 0 for nowhere; from the kernel, because it is told only when
    the server is ready.
    """
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(link.readlink().name.removeprefix("socket:[").removesuffix("]"))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:  # the state LISTEN
            return int(fields[1].split(":")[1], 16)
    return 0


def make_gate_model(folder: Path) -> Path:
    """A Python model whose answer to the row 77 waits for the file ``open`` beside it.

    The file ``entered`` says that such a request is running.
    """
    path = folder / "gate.py"
    path.write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from typing import Annotated\n"
        "import numpy as np\n"
        "Rows = Annotated[np.ndarray, 'INT32[N,1]']\n"
        "class Gate:\n"
        "    def predict(self, x: Rows) -> Rows:\n"
        "        folder = Path(__file__).parent\n"
        "        if 77 in x:\n"
        "            (folder / 'entered').touch()\n"
        "        while 77 in x and not (folder / 'open').exists():\n"
        "            time.sleep(0.002)\n"
        "        return x\n"
    )
    return path


def rows(*values: int, datatype: str = "INT32") -> dict[str, Any]:
    """A request for :func:`make_gate_model`."""
    return {
        "inputs": [
            {"name": "x", "shape": [len(values), 1], "datatype": datatype, "data": list(values)}
        ]
    }


def http_request(method: str, path: str, body: object = None, fields: str = "") -> bytes:
    raw = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: {len(raw)}\r\n\r\n"
    return head.encode() + raw
