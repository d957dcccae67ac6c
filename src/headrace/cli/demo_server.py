"""The demo's server: ``headrace serve`` itself, in a process of its own.

Apart, so that what the demo measures is what a client of a real server would see: the
client's work does not share an interpreter with the server's. Started as a module, this file
is that process; it ends when the demo does, however the demo ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from headrace.errors import AddressInUse, HeadraceError, OperatorError

START_TIMEOUT_S = 300.0
"""From start to ready. A slow disk may take a minute for 180 MB; beyond this it hangs."""

STOP_TIMEOUT_S = 40.0
"""From SIGTERM to SIGKILL: a little more than the server's own ``drain_timeout_s``."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_READY = re.compile(r"ready on (\S+)")
_TAKEN = "is taken by another process"
_KEPT = frozenset({"HEADRACE_DEBUG"})


class _Line(msgspec.Struct):
    """One line of the server's log (``telemetry/logs.py``)."""

    level: str = "error"
    event: str = ""


class Server:
    """A running server. ``url``: where; ``told``: what it logged about its model."""

    def __init__(self, model: Path, name: str, *, cache: Path, port: int) -> None:
        """Starts it; :meth:`wait_until_ready` must follow."""
        self.url = ""
        self.told: list[str] = []
        self._stopping = False
        self._events: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()
        command = [
            sys.executable, "-P", "-m", __name__, str(os.getpid()), "serve", str(model.absolute()),
            "--name", name, "--host", "127.0.0.1", "--port", str(port),
            "--cache-dir", str(cache.absolute()), "--log-format", "json",
        ]  # fmt: skip
        # A session of its own: Ctrl-C in the terminal reaches the demo alone, which then ends
        # the server in order. From its own folder, because a headrace.toml is not the demo's.
        self._process = subprocess.Popen(  # noqa: S603 - no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=model,
            env=_without_settings(os.environ),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> None:
        """Returns when it answers.

        Raises:
            AddressInUse: the port was taken.
            OperatorError: it ended instead; the message is its own.
        """
        give_up_s = time.monotonic() + START_TIMEOUT_S
        plain: list[str] = []
        while True:
            try:
                line = self._events.get(timeout=max(0.0, give_up_s - time.monotonic()))
            except queue.Empty:
                raise OperatorError(
                    f"the server was not ready within {START_TIMEOUT_S:.0f} s"
                ) from None
            if line is None:
                raise _why_it_ended(plain)
            if ready := _READY.match(line.event):
                self.url = ready[1]
                return
            if line.level == "error":
                plain.append(line.event)
            elif line.event.startswith(("model ", "runtime auto: ")):
                self.told.append(line.event)

    @property
    def pid(self) -> int:
        """Of the process that serves."""
        return self._process.pid

    def wait(self) -> int:
        """Until it ends by itself; the exit status."""
        return self._process.wait()

    def stop(self) -> None:
        """Lets it finish what it has begun; kills it if that takes too long."""
        self._stopping = True
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for text in self._process.stderr:
            line = _understood(text.rstrip("\n"))
            if self.url and not self._stopping and line.level in {"warning", "error"}:
                print(line.event, file=sys.stderr, flush=True)
            elif not self.url:
                self._events.put(line)
        self._events.put(None)


@contextlib.contextmanager
def serving(model: Path, name: str, *, cache: Path, port: int) -> Iterator[Server]:
    """A server on ``port``, or on a free one where that is taken; stopped on the way out.

    Raises:
        OperatorError: it does not start.
    """
    server = Server(model, name, cache=cache, port=port)
    try:
        try:
            server.wait_until_ready()
        except AddressInUse:
            server.stop()
            server = Server(model, name, cache=cache, port=0)
            server.wait_until_ready()
        yield server
    finally:
        server.stop()


def _understood(text: str) -> _Line:
    try:
        return msgspec.json.decode(text, type=_Line)
    except msgspec.DecodeError:
        return _Line(event=text)


def _why_it_ended(lines: list[str]) -> HeadraceError:
    message = next((line for line in lines if line.startswith("headrace: error: ")), "")
    message = message.removeprefix("headrace: error: ") or "; ".join(lines[-3:])
    hint = next((line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")), "")
    if _TAKEN in message:
        return AddressInUse(message, hint=hint)
    return OperatorError(
        f"the server ended before it was ready: {message or 'silently'}", hint=hint
    )


def _without_settings(env: Mapping[str, str]) -> dict[str, str]:
    """The demo shows what the defaults do."""
    return {
        name: value
        for name, value in env.items()
        if not name.startswith("HEADRACE_") or name in _KEPT
    }


def _end_with(parent: int) -> None:
    """Asks Linux for a SIGTERM when the demo dies (prctl(2)); it may be dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    from headrace.cli.main import main

    _end_with(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
