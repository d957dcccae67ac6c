"""A sample of a table, however it comes, as named numpy columns.

What a client can send later is what is kept: numbers, whole numbers, booleans and texts.
Categories, dates and the like are refused, because no request could carry them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from headrace.errors import ConfigError

MAX_CSV_BYTES = 256 * 1024 * 1024
"""A sample is there to compare answers on; a thousand rows do."""

_MISSING = frozenset({"", "na", "nan", "null", "none", "n/a"})
"""Cells that mean "missing" in a column of numbers; pandas reads them so, too."""


class Sample(msgspec.Struct, frozen=True):
    """Columns by name, all of one length, in order.

    dtypes: float64 (NaN is "missing"), int64, bool, or object with ``str`` elements.
    """

    columns: dict[str, np.ndarray]

    @property
    def rows(self) -> int:
        """How many."""
        return len(next(iter(self.columns.values())))

    def datatype(self, name: str) -> str:
        """FP64, INT64, BOOL or BYTES."""
        return {"f": "FP64", "i": "INT64", "b": "BOOL", "O": "BYTES"}[self.columns[name].dtype.kind]

    def select(self, names: Sequence[str]) -> Sample:
        """These columns only, in this order.

        Raises:
            ConfigError: one is not there.
        """
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise ConfigError(
                f"the sample has no column {missing[0]!r}",
                hint=f"it has: {', '.join(list(self.columns)[:20])}",
                missing=missing,
            )
        return Sample({name: self.columns[name] for name in names})


def read_sample(sample: Any, columns: Sequence[str] = ()) -> Sample:
    """Anything with columns -> :class:`Sample`.

    Args:
        sample: a data frame (pandas, polars: anything with ``columns`` and ``[name]``), a
            mapping of name to values, a structured array, or rows of numbers.
        columns: which ones and in which order; for bare rows, their names. Without them
            bare rows get ``x0``, ``x1`` ...

    Raises:
        ConfigError: no rows, columns of different lengths, or values that no client can send.
    """
    named = _by_name(sample, columns)
    if not named:
        raise ConfigError("the sample has no columns")
    result = Sample({name: _column(name, values) for name, values in named.items()})
    lengths = {name: len(values) for name, values in result.columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"the sample's columns have different lengths: {lengths}")
    if result.rows == 0:
        raise ConfigError("the sample has no rows", hint="give a few rows of real data")
    return result.select(columns) if columns else result


def has_names(sample: Any) -> bool:
    """Whether a sample names its columns itself, as bare rows do not."""
    structured = getattr(getattr(sample, "dtype", None), "names", None)
    return isinstance(sample, Sample | Mapping) or hasattr(sample, "columns") or bool(structured)


def read_csv(path: Path, as_text: Sequence[str] = ()) -> Sample:
    """A CSV file with a header line. Types are guessed as pandas does.

    Whole numbers, then numbers (an empty cell is missing), then ``true``/``false``, else
    text. ``as_text`` names columns that look like numbers and are not (post codes).

    Raises:
        ConfigError: not UTF-8, no header, doubled names, lines of different lengths, too large.
    """
    try:
        if path.stat().st_size > MAX_CSV_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_CSV_BYTES:,} bytes; a sample is small")
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is not a CSV file in UTF-8: {error}") from None
    rows = [line for line in lines if line]
    if len(rows) < 2:
        raise ConfigError(f"{path} has no rows under a header line")
    header = [name.strip() for name in rows[0]]
    doubled = {name for name in header if header.count(name) > 1}
    if doubled or "" in header:
        raise ConfigError(f"{path}: the header line has doubled or empty names: {sorted(doubled)}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise ConfigError(f"{path}: row {number} has {len(row)} cells, not {len(header)}")
    unknown = set(as_text) - set(header)
    if unknown:
        raise ConfigError(f"{path} has no column {min(unknown)!r}; it has {header}")
    cells = dict(zip(header, zip(*rows[1:], strict=True), strict=True))
    return Sample({name: _texts(v) if name in as_text else _guess(v) for name, v in cells.items()})


def _by_name(sample: Any, columns: Sequence[str]) -> dict[str, Any]:
    if isinstance(sample, Sample):
        return dict(sample.columns)
    if isinstance(sample, Mapping):
        return {str(name): values for name, values in sample.items()}
    if hasattr(sample, "columns") and hasattr(sample, "__getitem__"):
        return {str(name): sample[name] for name in sample.columns}
    array = np.asarray(sample)
    if array.dtype.names:
        return {name: array[name] for name in array.dtype.names}
    if array.ndim != 2:
        raise ConfigError(
            f"the sample has shape {list(array.shape)}; expected rows and columns",
            hint="give a data frame, a mapping of columns, or a two-dimensional array",
        )
    names = list(columns) or [f"x{i}" for i in range(array.shape[1])]
    if len(names) != array.shape[1]:
        raise ConfigError(f"{len(names)} names for {array.shape[1]} columns of the sample")
    return {name: array[:, i] for i, name in enumerate(names)}


def _column(name: str, values: Any) -> np.ndarray:
    if isinstance(values, list | tuple):  # numpy would turn [1, "x"] into two texts
        return _objects(name, list(values))
    array = np.asarray(values)
    if array.ndim != 1:
        raise ConfigError(f"column {name!r} of the sample has {array.ndim} dimensions; expected 1")
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind in "OUST":
        return _objects(name, array.tolist())
    raise ConfigError(
        f"column {name!r} of the sample is of {array.dtype}, which no request can carry",
        hint="turn it into numbers, booleans or texts before the model sees it",
    )


def _objects(name: str, values: list[Any]) -> np.ndarray:
    """Python objects: all texts, all booleans, or numbers where some may be missing."""
    values = [value.decode() if isinstance(value, bytes) else value for value in values]
    present = [value for value in values if not _is_missing(value)]
    if len(present) == len(values) and all(isinstance(value, str) for value in values):
        return _texts(values)
    if len(present) == len(values) and all(isinstance(v, bool | np.bool_) for v in values):
        return np.array(values, dtype=np.bool_)
    if all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in present):
        if len(present) == len(values) and all(isinstance(v, int | np.integer) for v in values):
            return np.array(values, dtype=np.int64)
        return np.array([np.nan if _is_missing(v) else float(v) for v in values])
    if any(_is_missing(value) for value in values):
        raise ConfigError(
            f"column {name!r} of the sample has missing values and is not numeric",
            hint="only numbers can be missing; fill it before the model sees it",
        )
    kinds = sorted({type(value).__name__ for value in values})
    raise ConfigError(f"column {name!r} of the sample mixes {', '.join(kinds)}")


def _is_missing(value: Any) -> bool:
    """None, NaN, and pandas' own NA and NaT."""
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _texts(values: Sequence[str]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = [str(value) for value in values]
    return array


def _guess(cells: Sequence[str]) -> np.ndarray:
    stripped = [cell.strip() for cell in cells]
    lowered = [cell.lower() for cell in stripped]
    if set(lowered) <= {"true", "false"}:
        return np.array([cell == "true" for cell in lowered])
    for kind, dtype, missing in ((int, np.int64, False), (float, np.float64, True)):
        try:
            return np.array(_numbers(stripped, kind, missing=missing), dtype=dtype)
        except (ValueError, OverflowError):
            continue
    return _texts(cells)


def _numbers(cells: Sequence[str], kind: Callable[[str], float], *, missing: bool) -> list[float]:
    return [float("nan") if missing and c.lower() in _MISSING else kind(c) for c in cells]
