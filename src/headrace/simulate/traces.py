"""Recorded arrivals: a CSV of times, or a recording of a server (``headrace serve --record``)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import msgspec

from headrace.core.events import NEVER_NS, RequestsArrived
from headrace.engine.recording import read_recording
from headrace.errors import ConfigError
from headrace.simulate.workload import NS, Arrival

COLUMNS = ("time_s", "model", "tenant", "priority", "rows", "length", "slo_ms", "timeout_ms")
"""Of the CSV; ``time_s`` is needed, in any order, with a first line that names them."""

MAX_ARRIVALS = 20_000_000


def read_trace(path: Path, *, slo_ns: int = 0) -> list[Arrival]:
    """Its requests from time 0 on, sorted.

    Args:
        slo_ns: of requests that say none.

    Raises:
        ConfigError: it cannot be read, or a line is wrong; names the line.
    """
    try:
        if path.suffix == ".jsonl":
            arrivals = list(_from_recording(path))
        else:
            with path.open(newline="", encoding="utf-8") as file:
                arrivals = list(_from_csv(file, path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from None
    if not arrivals:
        raise ConfigError(f"the trace {path} has no request")
    arrivals.sort(key=lambda arrival: arrival.at_ns)
    first_ns = arrivals[0].at_ns
    return [
        msgspec.structs.replace(
            arrival,
            at_ns=arrival.at_ns - first_ns,
            slo_ns=arrival.slo_ns or slo_ns,
        )
        for arrival in arrivals
    ]


def _from_csv(file: Iterator[str], path: Path) -> Iterator[Arrival]:
    reader = csv.DictReader(file)
    names = [name.strip() for name in reader.fieldnames or ()]
    unknown = [name for name in names if name not in COLUMNS]
    if "time_s" not in names or unknown:
        raise ConfigError(
            f"{path}:1: expected a line of column names with time_s"
            + (f", and {unknown[0]!r} is none" if unknown else ""),
            hint=f"columns: {', '.join(COLUMNS)}",
        )
    reader.fieldnames = names
    numbers: dict[str, dict[str, int]] = {"model": {}, "tenant": {}}
    for row in reader:
        if reader.line_num > MAX_ARRIVALS:
            raise ConfigError(f"{path} has more than {MAX_ARRIVALS:,} lines")
        try:
            yield _arrival(row, numbers)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}:{reader.line_num}: {error}") from None


def _arrival(row: dict[str, str], numbers: dict[str, dict[str, int]]) -> Arrival:
    def number(name: str, default: float, least: float) -> float:
        text = (row.get(name) or "").strip()
        value = float(text) if text else default
        if not least <= value < 1e12:
            raise ValueError(f"{name}: expected a number from {least:g}, got {text!r}")
        return value

    def named(kind: str, first: int) -> int:
        name = (row.get(kind) or "").strip()
        return numbers[kind].setdefault(name, len(numbers[kind]) + first) if name else first

    return Arrival(
        int(number("time_s", -1.0, 0.0) * NS),
        named("model", 1),
        named("tenant", 1) if (row.get("tenant") or "").strip() else 0,
        int(number("priority", 0.0, 0.0)),
        int(number("rows", 1.0, 1.0)),
        int(number("length", 0.0, 0.0)),
        int(number("slo_ms", 0.0, 0.0) * 1e6),
        int(number("timeout_ms", 0.0, 0.0) * 1e6),
    )


def _from_recording(path: Path) -> Iterator[Arrival]:
    for entry in read_recording(path):
        if not isinstance(entry.event, RequestsArrived):
            continue
        for request in entry.event.requests:
            timeout_ns = request.deadline_ns - request.arrival_ns
            slo_ns = request.due_ns - request.arrival_ns
            yield Arrival(
                request.arrival_ns,
                request.model,
                request.tenant,
                request.priority,
                request.rows,
                request.length,
                slo_ns if request.due_ns < NEVER_NS else 0,
                timeout_ns if request.deadline_ns < NEVER_NS else 0,
                0,
                request.shape_key,
            )
