"""What a child prints, line by line, to the server's own standard error."""

from __future__ import annotations

import os
import sys

MAX_LINE_BYTES = 8 * 1024
"""A longer line is broken in two, so that one without an end cannot fill the memory."""

_READ_BYTES = 64 * 1024


class ChildLog:
    """Forwards one pipe, every line with the model's name before it. Owns ``descriptor``.

    Args:
        descriptor: the reading end of a pipe.
        model: whose output it is.
    """

    def __init__(self, descriptor: int, model: str) -> None:
        self._descriptor = descriptor
        self._prefix = f"[{model}] "
        self._rest = b""
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
        self._write(lines)
        return bool(data)

    def close(self) -> None:
        """Forwards what is left, also of a last line without an end, and closes the pipe."""
        self.forward()
        self._write([self._rest] if self._rest else [])
        os.close(self._descriptor)

    def _write(self, lines: list[bytes]) -> None:
        if not lines or sys.stderr is None:
            return
        text = "".join(f"{self._prefix}{line.decode(errors='replace')}\n" for line in lines)
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            pass  # closed: there is nowhere to complain
