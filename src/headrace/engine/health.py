"""How a served version is doing: what it answered, what it failed, and the shapes it was given.

One note for each batch, because it is taken on the path of every request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from headrace.core.rollout import Record

SAMPLE = 512
"""Latencies that are remembered, the last ones: enough for a 95 % time within 1 %."""

SHAPES_MAX = 64
"""Different shapes of a batch that are remembered. Those that come once one has been told
often: a text model with lengths of 1 to 512 has more than anybody could warm."""

Shapes = tuple[tuple[int, ...] | None, ...]
"""Of the arrays of one execution; None: an optional one was left out."""


class Health:
    """Of one served version. Counts are taken on the event loop, shapes on any thread."""

    __slots__ = ("_latencies_ns", "_shapes", "answered", "failed", "last_used_ns")

    def __init__(self) -> None:
        self.answered = 0
        self.failed = 0
        self.last_used_ns = 0
        self._latencies_ns: deque[int] = deque(maxlen=SAMPLE)
        self._shapes: dict[Shapes, int] = {}

    def batch(self, requests: int, failed: int, latency_ns: int, now_ns: int) -> None:
        """A batch is back; ``latency_ns`` of its first request, from arrival."""
        self.last_used_ns = now_ns
        self.failed += failed
        answered = requests - failed
        if answered:
            self.answered += answered
            self._latencies_ns.append(latency_ns)

    def ran(self, inputs: Sequence[np.ndarray | None]) -> None:
        """An execution with these inputs begins; any thread."""
        shapes = tuple([None if array is None else array.shape for array in inputs])
        seen = self._shapes
        if shapes in seen or len(seen) < SHAPES_MAX:
            # Two threads may count one for two: the order of the shapes is all that matters.
            seen[shapes] = seen.get(shapes, 0) + 1

    def record(self) -> Record:
        """What a successor is compared with, or is compared by."""
        return Record(self.answered, self.failed, list(self._latencies_ns))

    def shapes(self) -> list[Shapes]:
        """The most frequent first."""
        seen = dict(self._shapes)
        return sorted(seen, key=lambda shapes: -seen[shapes])

    def remember(self, shapes: Sequence[Shapes]) -> None:
        """What an earlier copy was given, for when this one has been given nothing yet."""
        for each in shapes:
            if len(self._shapes) < SHAPES_MAX:
                self._shapes.setdefault(each, 0)
