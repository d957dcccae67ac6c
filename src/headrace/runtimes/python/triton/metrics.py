"""Metrics of a model's own: ``MetricFamily`` and ``Metric`` of ``triton_python_backend_utils``.

They are kept here, in the child. What has changed is told to the server with the end of the
``execute`` that changed it, or at once where none is under way.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headrace.runtimes.python.triton.objects import TritonModelException
from headrace.runtimes.python.triton.wire import Measured


class Board(Protocol):
    """Where changes are shown."""

    def changed(self, metric: Metric) -> None:
        """Any thread."""
        ...


BOARDS: list[Board] = []
"""The child's own, once the module is installed."""


class MetricFamily:
    """Metrics of one name and kind, told apart by their labels."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    def __init__(self, name: str, description: str, kind: str) -> None:
        if kind not in (self.COUNTER, self.GAUGE, self.HISTOGRAM):
            raise TritonModelException(f"metric {name!r} is of no known kind: {kind!r}")
        self.name, self.description, self.kind = name, description, kind

    def Metric(  # noqa: N802 - the backend's own name
        self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None
    ) -> Metric:
        """One series of the family; ``buckets``: the upper bounds of a histogram's."""
        return Metric(self, dict(labels or {}), tuple(sorted(map(float, buckets or ()))))


class Metric:
    """One series. Any thread may change it."""

    def __init__(
        self, family: MetricFamily, labels: dict[str, str], bounds: tuple[float, ...] = ()
    ) -> None:
        histogram = family.kind == MetricFamily.HISTOGRAM
        if bool(bounds) != histogram:
            raise TritonModelException(
                f"metric {family.name!r}: buckets are for a histogram, which needs them"
            )
        self._family, self._labels, self._bounds = family, labels, bounds
        self._lock = threading.Lock()
        self._value = 0.0
        self._counts = [0] * (len(bounds) + 1) if histogram else []
        self._show()

    def increment(self, value: float) -> None:
        """Adds to a counter, which only grows, or to a gauge."""
        if value < 0:
            self._refuse_unless(MetricFamily.GAUGE, "decremented")
        self._refuse_if(MetricFamily.HISTOGRAM, "incremented")
        with self._lock:
            self._value += float(value)
        self._show()

    def set(self, value: float) -> None:
        """Replaces the value of a gauge."""
        self._refuse_unless(MetricFamily.GAUGE, "set")
        with self._lock:
            self._value = float(value)
        self._show()

    def observe(self, value: float) -> None:
        """Counts one observation of a histogram."""
        self._refuse_unless(MetricFamily.HISTOGRAM, "observed")
        with self._lock:
            self._value += float(value)
            self._counts[bisect_left(self._bounds, float(value))] += 1
        self._show()

    def value(self) -> float:
        """What a counter or gauge is now."""
        self._refuse_if(MetricFamily.HISTOGRAM, "read")
        return self._value

    def measured(self) -> Measured:
        """What the server is told."""
        family = self._family
        with self._lock:
            return Measured(
                family.name,
                family.kind,
                family.description,
                {str(name): str(value) for name, value in self._labels.items()},
                self._value,
                self._bounds,
                tuple(self._counts),
            )

    def _show(self) -> None:
        for board in BOARDS:
            board.changed(self)

    def _refuse_unless(self, kind: str, done: str) -> None:
        if self._family.kind != kind:
            self._refuse(done)

    def _refuse_if(self, kind: str, done: str) -> None:
        if self._family.kind == kind:
            self._refuse(done)

    def _refuse(self, done: str) -> Any:
        name, kind = self._family.name, self._family.kind
        raise TritonModelException(f"metric {name!r} is a {kind}, which cannot be {done}")
