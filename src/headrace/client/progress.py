"""Where a run is, while it runs: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TextIO

from headrace.client.samples import Samples

_PLAIN_EVERY_S = 5.0
_BAR_WIDTH = 24


class Progress:
    """A ``Watch`` of the drivers. ``duration_s`` or ``requests`` say when it is over."""

    def __init__(
        self,
        stream: TextIO,
        *,
        label: str = "",
        duration_s: float | None = None,
        requests: int | None = None,
        unicode: bool = True,
    ) -> None:
        self._stream = stream
        self._label = f"{label}  " if label else ""
        self._duration_s = duration_s
        self._requests = requests
        self._bar = ("█", "░") if unicode else ("#", ".")
        self._terminal = stream.isatty()
        self._shown_s = 0.0
        self._drawn = False

    def __call__(self, samples: Samples) -> None:
        """Shows the state if it is time to."""
        elapsed_s = max(0.0, (time.monotonic_ns() - samples.started_ns) / 1e9)
        if self._terminal:
            self._drawn = True
            self._stream.write(f"\r\x1b[K{self._line(samples, elapsed_s)}")
            self._stream.flush()
        elif elapsed_s - self._shown_s >= _PLAIN_EVERY_S:
            self._shown_s = elapsed_s
            self._stream.write(self._line(samples, elapsed_s) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Wipes the bar; plain lines stay."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _line(self, samples: Samples, elapsed_s: float) -> str:
        parts = [0.0]
        if self._duration_s:
            parts.append(elapsed_s / self._duration_s)
        if self._requests:
            parts.append(len(samples) / self._requests)
        share = min(1.0, max(parts))
        filled = round(share * _BAR_WIDTH)
        bar = (
            f"{self._bar[0] * filled}{self._bar[1] * (_BAR_WIDTH - filled)} "
            if (self._terminal)
            else ""
        )
        failed = f"  {samples.failed} failed" if samples.failed else ""
        return (
            f"{self._label}{bar}{share:4.0%}  {elapsed_s:.1f} s  {samples.sent} sent  "
            f"{samples.ok} ok{failed}  {samples.outstanding} waiting"
        )
