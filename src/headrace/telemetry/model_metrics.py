"""Metrics that models make themselves: kept, added up and written beside the server's own.

Each instance of a model tells what its series are now. Those of all instances of a series add
up; an instance that was started again begins anew, which Prometheus knows how to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from headrace.limits import METRIC_LABEL
from headrace.telemetry.exposition import Exposition, labels
from headrace.telemetry.instruments import SeriesRecord

MAX_SERIES = 4096
"""In one process. Labels are the models' own, and one for each request would never end."""

_RESERVED = ("headrace_", "nv_", "process_")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(METRIC_LABEL)


class ModelSeries(msgspec.Struct, array_like=True):
    """One series; ``counts`` and ``bounds`` are empty unless it is a histogram."""

    family: str
    kind: str
    description: str
    labels: tuple[tuple[str, str], ...]
    value: float = 0.0
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


class ModelMetrics:
    """Of the models of one process."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, int, str, tuple[tuple[str, str], ...]], ModelSeries] = {}

    def measured(self, model: str, version: str, instance: int, record: SeriesRecord) -> None:
        """What a series is now. One that is not well named, or one too many, is left out."""
        pairs = tuple(sorted(record.labels.items()))
        key = (model, version, instance, record.family, pairs)
        known = self._series.get(key)
        if known is None:
            if len(self._series) >= MAX_SERIES or not _may_be_shown(record):
                return
            known = self._series[key] = ModelSeries(
                record.family, record.kind, record.description, pairs
            )
        known.value, known.bounds, known.counts = record.value, record.bounds, record.counts

    def forget(self, model: str, version: str) -> None:
        """The version is gone, and what it counted with it, as Triton has it."""
        for key in [key for key in self._series if key[:2] == (model, version)]:
            del self._series[key]

    def series(self) -> list[ModelSeries]:
        """All of them, instances added up."""
        return added(self._series.values())


def added(series: Iterable[ModelSeries]) -> list[ModelSeries]:
    """One for each family and labels, by name; of two kinds of family the first is kept."""
    total: dict[tuple[str, tuple[tuple[str, str], ...]], ModelSeries] = {}
    kinds: dict[str, tuple[str, tuple[float, ...]]] = {}
    for each in series:
        kind = (each.kind, each.bounds)
        if kinds.setdefault(each.family, kind) != kind:
            continue
        key = (each.family, each.labels)
        sum_ = total.get(key)
        if sum_ is None:
            total[key] = msgspec.structs.replace(each)
            continue
        sum_.value += each.value
        sum_.counts = tuple(a + b for a, b in zip(sum_.counts, each.counts, strict=True))
    return [total[key] for key in sorted(total)]


def write_series(page: Exposition, series: Iterable[ModelSeries]) -> None:
    """Families in the order of their names."""
    family = ""
    for each in series:
        if each.family != family:
            family = each.family
            page.family(family, each.kind, each.description)
        label_set = labels(**dict(each.labels))
        if each.kind == "histogram":
            bounds = [f"{bound:g}" for bound in each.bounds]
            page.histogram(family, label_set, bounds, each.counts, each.value)
        else:
            page.sample(family, label_set, each.value)


def _may_be_shown(record: SeriesRecord) -> bool:
    if not _NAME.match(record.family) or record.family.startswith(_RESERVED):
        return False
    if record.kind == "histogram" and "le" in record.labels:
        return False
    return all(map(_LABEL.match, record.labels))
