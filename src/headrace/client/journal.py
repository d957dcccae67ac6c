"""One JSON line per run: enough to know later what was measured, where, and how to repeat it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import headrace
from headrace import machine
from headrace.client.spec import BenchSpec
from headrace.client.summary import Summary
from headrace.errors import ConfigError

_SECRET_OPTIONS = ("--header", "-H")
_FLAG_STEMS = ("avx", "amx", "sve", "asimd", "bf16", "i8mm")


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what was asked, what came out, against what."""

    spec: BenchSpec
    summary: Summary
    server: str
    distinct_bodies: int
    mean_body_bytes: float
    started_at: str
    interrupted: bool = False


def utc_now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def record(
    result: RunResult, command: Sequence[str], sweep: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A run as JSON-serialisable values; values of ``--header`` are left out."""
    spec = msgspec.to_builtins(result.spec)
    spec["headers"] = [name for name, _ in result.spec.headers]
    return {
        "kind": "bench",
        "time_utc": result.started_at,
        "scenario": result.spec.scenario,
        "model": result.spec.model,
        "seed": result.spec.seed,
        "parameters": spec,
        "results": msgspec.to_builtins(result.summary),
        "interrupted": result.interrupted,
        "bodies": {"distinct": result.distinct_bodies, "mean_bytes": result.mean_body_bytes},
        "sweep": sweep,
        "server": result.server,
        "machine": _machine(),
        "versions": {
            "headrace": headrace.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "commit": commit(),
        "command": shlex.join(_without_secrets(command)),
    }


def append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Adds lines to a JSONL file, each in one write, so that parallel runs do not mix.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        with path.open("ab", buffering=0) as file:
            for each in records:
                file.write(msgspec.json.encode(each) + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def commit() -> str | None:
    """The checkout this headrace runs from, ``-dirty`` if changed; None outside of one."""
    folder = Path(headrace.__file__).parent
    try:
        # An installed package may lie inside somebody else's checkout: it must be tracked there.
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603  # fixed words, no shell
        ("git", "-C", str(folder), *arguments),  # noqa: S607  # the user's own git
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()


def _machine() -> dict[str, Any]:
    facts = machine.describe()
    facts["cpu_flags"] = [flag for flag in facts["cpu_flags"] if flag.startswith(_FLAG_STEMS)]
    facts["load_average"] = [round(load, 2) for load in os.getloadavg()]
    return facts


def _without_secrets(command: Sequence[str]) -> list[str]:
    """The command line with the values of headers blotted out."""
    shown: list[str] = []
    for word in command:
        after_flag = bool(shown) and shown[-1] in _SECRET_OPTIONS
        secret = after_flag or (word.startswith(("--header=", "-H")) and word != "-H")
        shown.append(f"{word.partition(':')[0]}: ***" if secret else word)
    return shown
