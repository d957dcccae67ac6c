"""Arrivals of a file: CSV or JSONL with a timestamp and, if it has one, a length a line.

CSV without a header is ``timestamp[,length]``. A header, or the keys of JSONL, may say::

    timestamp | time | arrival    [_s | _ms | _us | _ns]     seconds unless a suffix says so
    length | input_length | contexttokens | words | tokens

in any case of letters. A timestamp is a number or a date with a time of day (ISO 8601, "T"
or a blank between). Public traces of language-model services are of these forms.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.client.spec import MAX_REQUESTS
from headrace.errors import ConfigError

_TIME_NAMES = ("timestamp", "time", "arrival")
_LENGTH_NAMES = ("length", "input_length", "contexttokens", "words", "tokens")
_SECOND_NS = 1_000_000_000
_NS_PER = {"": _SECOND_NS, "_s": _SECOND_NS, "_ms": 1_000_000, "_us": 1000, "_ns": 1}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Recording(msgspec.Struct, frozen=True):
    """Nanoseconds since the first arrival, ascending, and the lengths in the same order."""

    offsets_ns: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64] | None


class _Columns(msgspec.Struct, frozen=True):
    time: Any  # a column's number in CSV, a key in JSONL
    scale_ns: int
    length: Any


def read_recording(path: Path) -> Recording:
    """Reads the whole file, sorts it, and shifts it to begin at 0.

    Raises:
        ConfigError: the file cannot be read, is empty or too long, or a line has no usable
            timestamp or length (the line is named).
    """
    json_lines = path.suffix.lower() in {".jsonl", ".ndjson", ".json"}
    moments: list[int] = []
    lengths: list[int] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, moment, length in _json(file) if json_lines else _csv(file):
                moments.append(moment)
                if length is not None:
                    lengths.append(length)
                if len(moments) > MAX_REQUESTS:
                    raise ConfigError(f"{path} has more than {MAX_REQUESTS:,} arrivals")
                if lengths and len(lengths) != len(moments):
                    raise ConfigError(f"{path}, line {number}: some lines have a length, some none")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recording {path}: {error}") from error
    except _LineError as error:
        raise ConfigError(f"{path}, line {error}", hint=_HINT) from error
    if not moments:
        raise ConfigError(f"{path} has no arrivals", hint=_HINT)
    return _sorted(moments, lengths)


_HINT = 'CSV: timestamp_s[,length] a line; JSONL: {"timestamp_ms": 12, "length": 40}'


class _LineError(ValueError):
    """``<line number>: <what is wrong>``."""


def _sorted(moments: list[int], lengths: list[int]) -> Recording:
    times = np.array(moments, np.int64)
    order = np.argsort(times, kind="stable")
    times = times[order]
    return Recording(times - times[0], np.array(lengths, np.int64)[order] if lengths else None)


def _json(lines: Iterable[str]) -> Iterator[tuple[int, int, int | None]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise _LineError(f"{number}: not a JSON object: {error}") from error
        columns = _columns({key: key for key in row}, number)
        yield _row(number, row, columns)


def _csv(lines: Iterable[str]) -> Iterator[tuple[int, int, int | None]]:
    columns: _Columns | None = None
    for number, cells in enumerate(csv.reader(lines), 1):
        if not any(cell.strip() for cell in cells):
            continue
        row = dict(enumerate(cells))
        if columns is None:
            names = {cell.strip(): index for index, cell in row.items()}
            if any(_time_scale(name) for name in names):
                columns = _columns(names, number)
                continue
            columns = _Columns(0, _SECOND_NS, 1 if len(cells) > 1 else None)
        yield _row(number, row, columns)


def _columns(names: dict[str, Any], number: int) -> _Columns:
    time = next((name for name in names if _time_scale(name)), None)
    if time is None:
        raise _LineError(f"{number}: no timestamp among {', '.join(names) or 'nothing'}")
    length = next((names[name] for name in names if name.lower() in _LENGTH_NAMES), None)
    return _Columns(names[time], _time_scale(time), length)


def _time_scale(name: str) -> int:
    """Nanoseconds of one unit of this column; 0 where it is no timestamp."""
    for stem in _TIME_NAMES:
        if name.lower().startswith(stem):
            return _NS_PER.get(name.lower().removeprefix(stem), 0)
    return 0


def _row(number: int, row: dict[Any, Any], columns: _Columns) -> tuple[int, int, int | None]:
    moment = _moment_ns(number, row.get(columns.time), columns.scale_ns)
    if columns.length is None:
        return number, moment, None
    value = row.get(columns.length)
    try:
        length = int(value)  # type: ignore[arg-type]  # None and words are what except is for
    except (TypeError, ValueError) as error:
        raise _LineError(f"{number}: {value!r} is not a length") from error
    if length < 1:
        raise _LineError(f"{number}: a length is at least 1, not {length}")
    return number, moment, length


def _moment_ns(number: int, value: Any, scale_ns: int) -> int:
    """Exact also for nanoseconds since 1970, which a float cannot tell apart."""
    try:
        return int(Decimal(value) * scale_ns)
    except (ArithmeticError, TypeError, ValueError):  # not a number; infinity; None
        pass
    try:
        moment = datetime.fromisoformat(value.strip())
    except (AttributeError, ValueError) as error:
        raise _LineError(f"{number}: {value!r} is not a timestamp") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
