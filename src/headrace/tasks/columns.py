"""The columns of tabular data: their options, and one value or array checked against one.

What a column accepts does not depend on how it was sent: a JSON record and a V2 tensor go
through the same rules and end in the same arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from headrace.errors import ConfigError, InvalidRequest
from headrace.types import DTYPE_OF, DYNAMIC, TensorSpec

Datatype = Literal["FP64", "INT64", "BYTES", "BOOL"]

_PYTHON_TYPES: dict[str, frozenset[type]] = {
    "FP64": frozenset({float, int}),
    "INT64": frozenset({int}),
    "BYTES": frozenset({str}),
    "BOOL": frozenset({bool}),
}
"""Exact types, because ``True`` is an ``int`` to Python and a mistake to everybody else."""

_SPOKEN = {"FP64": "a number", "INT64": "a whole number", "BYTES": "a string", "BOOL": "a boolean"}


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One named column. ``nullable``: JSON ``null`` and NaN mean "missing" to the model."""

    name: str
    datatype: Datatype = "FP64"
    nullable: bool = False

    @property
    def spec(self) -> TensorSpec:
        """The column as a public input: one value for each row."""
        return TensorSpec(self.name, self.datatype, (DYNAMIC,))


def check_columns(columns: Sequence[Column]) -> None:
    """Refuses what no request could satisfy.

    Raises:
        ConfigError: two columns of one name, or a nullable one that has no way to say null.
    """
    names = [column.name for column in columns]
    for column in columns:
        if names.count(column.name) > 1:
            raise ConfigError(f"column {column.name!r} is listed {names.count(column.name)} times")
        if column.nullable and column.datatype != "FP64":
            raise ConfigError(
                f"column {column.name!r} is nullable and {column.datatype}; only FP64 has NaN",
                hint='give it datatype = "FP64", or fill missing values before sending',
            )


def array_from_values(column: Column, values: list[Any]) -> np.ndarray:
    """JSON values of one column -> an array of its dtype, shape [rows].

    Raises:
        InvalidRequest: names the first row whose value is null, of another type, or too large.
    """
    allowed = _PYTHON_TYPES[column.datatype]
    kinds = set(map(type, values))
    if column.nullable and type(None) in kinds:
        values = [float("nan") if value is None else value for value in values]
        kinds = kinds - {type(None)} | {float}
    if not kinds <= allowed:
        row = next(i for i, value in enumerate(values) if type(value) not in allowed)
        raise _wrong_value(column, row, values[row])
    if column.datatype == "BYTES":
        return _object_array([value.encode() for value in values])
    try:
        return np.array(values, dtype=DTYPE_OF[column.datatype])
    except OverflowError:
        row = next(i for i, value in enumerate(values) if not _fits(column, value))
        raise _wrong_value(column, row, values[row]) from None


def check_array(column: Column, data: np.ndarray) -> None:
    """What a datatype alone does not say: no infinity, and NaN only where it means "missing".

    Raises:
        InvalidRequest: names the first row that is wrong.
    """
    if column.datatype != "FP64":
        return
    bad = np.isinf(data) if column.nullable else ~np.isfinite(data)
    if bad.any():
        row = int(bad.argmax())
        raise _wrong_value(column, row, None if np.isnan(data[row]) else float(data[row]))


def _object_array(values: list[bytes]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _fits(column: Column, value: Any) -> bool:
    try:
        np.array(value, dtype=DTYPE_OF[column.datatype])
    except OverflowError:
        return False
    return True


def _wrong_value(column: Column, row: int, value: Any) -> InvalidRequest:
    hint = ""
    if value is None:
        what = "is null" if column.datatype != "FP64" else "is null or NaN"
        hint = "this column cannot be missing; fill it before sending"
    elif type(value) in _PYTHON_TYPES[column.datatype]:
        what = f"is {_shortened(value)}, which is out of range"
    else:
        what = f"is {_shortened(value)}"
    return InvalidRequest(
        f"column {column.name!r} {what} in row {row}; expected {_SPOKEN[column.datatype]}",
        hint=hint,
        column=column.name,
        row=row,
        expected=column.datatype,
    )


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
