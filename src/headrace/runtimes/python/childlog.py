"""What a child prints, line by line, to the server's own standard error."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable

MAX_LINE_BYTES = 8 * 1024
"""A longer line is broken in two, so that one without an end cannot fill the memory."""

MAX_LINES = 1000
"""Of one child in a minute; what is beyond is counted and dropped. Enough for a traceback of
every request that fails, and 8 MiB a minute at most."""

_WINDOW_S = 60.0
_LAST = 20
"""Dropped lines that are kept for when the child dies: they may say why."""

_READ_BYTES = 64 * 1024

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), *range(127, 160))}
_ESCAPED |= {code: f"\\u{code:04x}" for code in (0x2028, 0x2029)}
"""A line is one line of the log, whatever is in it, and controls no terminal."""


class ChildLog:
    """Forwards one pipe, every line with the model's name before it. Owns ``descriptor``.

    Args:
        descriptor: the reading end of a pipe.
        model: whose output it is.
        clock: in seconds.
    """

    def __init__(
        self, descriptor: int, model: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._descriptor = descriptor
        self._prefix = f"[{model}] "
        self._rest = b""
        self._clock = clock
        self._window_s = clock()
        self._lines = self._dropped = 0
        self._last: deque[bytes] = deque(maxlen=_LAST)
        os.set_blocking(descriptor, False)

    def fileno(self) -> int:
        """The pipe, for a selector."""
        return self._descriptor

    def forward(self) -> bool:
        """Forwards what is there, without waiting; False once nobody can write any more."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return True
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest[:MAX_LINE_BYTES])
            self._rest = self._rest[MAX_LINE_BYTES:]
        self._take(lines)
        return bool(data)

    def close(self) -> None:
        """Forwards what is left, also of a last line without an end, and closes the pipe."""
        self.forward()
        self._take([self._rest] if self._rest else [])
        if self._dropped:
            self._write([f"{self._dropped} lines dropped; the last of them:".encode()])
            self._write(self._last)
        os.close(self._descriptor)

    def _take(self, lines: list[bytes]) -> None:
        if not lines:
            return
        if self._clock() - self._window_s >= _WINDOW_S:
            if self._dropped:
                self._write([f"{self._dropped} lines dropped".encode()])
            self._window_s, self._lines, self._dropped = self._clock(), 0, 0
        kept = lines[: MAX_LINES - self._lines]
        dropped = lines[len(kept) :]
        self._lines += len(kept)
        self._write(kept)
        if dropped:
            if not self._dropped:
                told = f"more than {MAX_LINES} lines in a minute: the next are dropped"
                self._write([told.encode()])
            self._dropped += len(dropped)
            self._last.extend(dropped[-_LAST:])

    def _write(self, lines: list[bytes] | deque[bytes]) -> None:
        if not lines or sys.stderr is None:
            return
        text = "".join([f"{self._prefix}{_readable(line)}\n" for line in lines])
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            pass  # closed: there is nowhere to complain


def _readable(line: bytes) -> str:
    return line.removesuffix(b"\r").decode(errors="replace").translate(_ESCAPED)
