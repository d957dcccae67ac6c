"""What a benchmark found out: one JSON line per case, with all that is needed to repeat it."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

import headrace
from headrace import machine
from headrace.client.journal import append, commit, utc_now

_PACKAGES = ("httptools", "msgspec", "numpy", "onnxruntime", "openvino", "tokenizers", "uvloop")
_FLAG_STEMS = ("avx", "amx", "sve", "asimd", "bf16", "i8mm")


class Spread(msgspec.Struct, frozen=True):
    """A figure that was measured several times."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        ordered = sorted(values)
        return cls(median(ordered), ordered[0], ordered[-1], len(ordered))


Figure = Spread | float | int | str


class Goal(msgspec.Struct, frozen=True):
    """A bound that a figure must keep. ``unit`` stands behind the numbers ("x", "us")."""

    what: str
    value: Spread
    bound: float
    unit: str = "x"
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the median keeps the bound."""
        value = self.value.median
        return value >= self.bound if self.at_least else value <= self.bound


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One case of one benchmark: a row of its table. ``skipped`` says why there is nothing."""

    benchmark: str
    case: str
    figures: dict[str, Figure] = {}
    goals: tuple[Goal, ...] = ()
    skipped: str = ""


def save(path: Path, results: Sequence[Result], *, seed: int, arguments: Sequence[str]) -> None:
    """Appends one line per result.

    Raises:
        ConfigError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    circumstances = {
        "time_utc": utc_now(),
        "seed": seed,
        "machine": _machine(),
        "versions": _versions(),
        "commit": commit(),
        "command": shlex.join(("python", "-m", "benchmarks", *arguments)),
    }
    append(path, [_line(result) | circumstances for result in results])


def _line(result: Result) -> dict[str, Any]:
    line: dict[str, Any] = msgspec.to_builtins(result)
    for goal, shown in zip(result.goals, line["goals"], strict=True):
        shown["met"] = goal.met
    return line


def _machine() -> dict[str, Any]:
    facts = machine.describe()
    facts["cpu_flags"] = [flag for flag in facts["cpu_flags"] if flag.startswith(_FLAG_STEMS)]
    facts["load_average"] = [round(load, 2) for load in os.getloadavg()]
    return facts


def _versions() -> dict[str, str]:
    versions = {"headrace": headrace.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
