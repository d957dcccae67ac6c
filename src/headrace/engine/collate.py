"""Many requests' arrays into one batch, and one batch's arrays back to each request.

Law: request k gets back exactly the rows it put in, never a row of a neighbour and never a
row of padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from headrace.errors import InferenceFailed
from headrace.runtimes.base import ShapePolicy
from headrace.tasks.base import Padding


class Rows(Protocol):
    """What is collated: a ``tasks.base.Item`` or an ``inflight.Part``."""

    @property
    def arrays(self) -> Sequence[np.ndarray | None]:
        """One for each input of the model; first axis ``rows``."""
        ...

    @property
    def rows(self) -> int:
        """Rows that stay together."""
        ...

    @property
    def length(self) -> int:
        """Size of the padded axis; 0 where nothing is padded."""
        ...


def collate(
    items: Sequence[Rows], padding: Padding | None, policy: ShapePolicy
) -> tuple[list[np.ndarray | None], int]:
    """Stacks ``items`` along the first axis.

    With ``padding`` the padded axis is brought to the longest item, rounded up as the
    runtime likes. Where more than one row runs, rows are rounded up too, by repeating the
    last row: a row the model has accepted already cannot make the batch fail.

    Returns:
        One array per model input (None where all left an optional input out), and the
        number of rows that are real.
    """
    if len(items) == 1 and padding is None:
        return list(items[0].arrays), items[0].rows
    rows = sum([item.rows for item in items])
    if padding is None:
        return _concatenate(items, rows, policy.row_multiple), rows
    longest = _round_up(max(item.length for item in items), policy.length_multiple)
    total = _round_up(rows, policy.row_multiple) if rows > 1 else rows
    columns = zip(*(item.arrays for item in items), strict=True)
    batch = [
        _pad(column, value, padding.axis, longest, total)
        for column, value in zip(columns, padding.values, strict=True)
    ]
    return batch, rows


def split(
    outputs: Sequence[np.ndarray], rows: Sequence[int], real_rows: int
) -> list[list[np.ndarray]]:
    """Cuts every output into consecutive pieces of ``rows`` (views, not copies).

    Raises:
        InferenceFailed: an output has fewer rows than went in, so nobody can know whose
            answer is whose.
    """
    for output in outputs:
        if output.ndim == 0 or output.shape[0] < real_rows:
            raise InferenceFailed(
                f"the model returned an output of shape {list(output.shape)} for a batch of "
                f"{real_rows} rows",
                code="wrong_output_rows",
                hint="the first axis of every output must count the rows of the input",
            )
    if len(rows) == 1:
        return [[output[:real_rows] for output in outputs]]
    if len(rows) == real_rows:
        # One row each, the common case: walking along an axis is cheaper than slicing it.
        columns = [output[:real_rows, np.newaxis] for output in outputs]
        if len(columns) == 1:
            return [[row] for row in columns[0]]
        return [list(row) for row in zip(*columns, strict=True)]
    pieces: list[list[np.ndarray]] = []
    start = 0
    for count in rows:
        end = start + count
        pieces.append([output[start:end] for output in outputs])
        start = end
    return pieces


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _concatenate(items: Sequence[Rows], rows: int, multiple: int) -> list[np.ndarray | None]:
    batch: list[np.ndarray | None] = []
    missing = _round_up(rows, multiple) - rows
    for index, first in enumerate(items[0].arrays):
        # Items meet only with an equal shape key, so an input is left out by all or by none.
        if first is None:
            batch.append(None)
            continue
        arrays: list[Any] = [item.arrays[index] for item in items]
        if missing:
            arrays.extend([arrays[-1][-1:]] * missing)
        batch.append(np.concatenate(arrays))
    return batch


def _pad(
    column: Sequence[np.ndarray | None],
    value: float | None,
    axis: int,
    longest: int,
    total: int,
) -> np.ndarray | None:
    first = column[0]
    if first is None:
        return None
    shape = list(first.shape)
    shape[0] = total
    if value is not None:
        shape[axis] = longest
    batch = np.full(shape, 0 if value is None else value, dtype=first.dtype)
    row = 0
    before = (slice(None),) * (axis - 1)
    for array in column:
        assert array is not None  # a task fills an input for all of its items or for none
        where: tuple[slice, ...] = (slice(row, row + len(array)),)
        if value is not None:
            where = (*where, *before, slice(0, array.shape[axis]))
        batch[where] = array
        row += len(array)
    if row < total:
        batch[row:] = batch[row - 1]
    return batch
