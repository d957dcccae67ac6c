"""Latency over offered load in a terminal: 80 columns, Unicode or plain ASCII. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec

WIDTH = 80
HEIGHT = 16
_MARGIN = 9  # for the labels of the y axis

Point = tuple[float, float]


class Series(msgspec.Struct, frozen=True):
    """A line: ``(x, y)`` with ``y`` above 0; a mark for Unicode and one for ASCII."""

    name: str
    points: Sequence[Point]
    mark: str
    ascii_mark: str


class _Style(msgspec.Struct, frozen=True):
    vertical: str
    horizontal: str
    corner: str
    tick: str
    trace: str
    bound: str


_UNICODE = _Style("│", "─", "└", "┤", "·", "╌")
_ASCII = _Style("|", "-", "+", "+", ".", "-")


class _Scale(msgspec.Struct, frozen=True):
    """Columns are linear in x from 0, rows logarithmic in y, row 0 on top."""

    x_max: float
    low: float  # log10
    high: float
    columns: int
    rows: int

    def column(self, x: float) -> int:
        return min(self.columns - 1, round(x / self.x_max * (self.columns - 1)))

    def row(self, y: float) -> int:
        share = (math.log10(y) - self.low) / (self.high - self.low)
        return min(self.rows - 1, max(0, round((1 - share) * (self.rows - 1))))


def draw(
    series: Sequence[Series],
    *,
    unicode: bool,
    bound: float | None = None,
    x_label: str = "offered requests/s",
    title: str = "latency, ms",
    width: int = WIDTH,
) -> str:
    """The chart as lines of at most ``width`` characters; "" where there is no point.

    ``bound`` is drawn as a horizontal line (the SLO).
    """
    points = [point for line in series for point in line.points if point[1] > 0]
    if not points:
        return ""
    style = _UNICODE if unicode else _ASCII
    scale = _scale(points, bound, width - _MARGIN - 1)
    cells = [[" "] * scale.columns for _ in range(scale.rows)]
    if bound is not None:
        cells[scale.row(bound)] = [style.bound] * scale.columns
    for line in series:
        _trace(cells, scale, line.points, style.trace)
    for line in series:
        for x, y in line.points:
            mark = line.mark if unicode else line.ascii_mark
            cells[scale.row(y)][scale.column(x)] = mark
    return "\n".join(
        (_legend(series, bound, style, title, unicode), *_frame(cells, scale, style, x_label))
    )


def _scale(points: Sequence[Point], bound: float | None, columns: int) -> _Scale:
    values = [y for _, y in points] + ([bound] if bound is not None else [])
    low, high = math.log10(min(values)), math.log10(max(values))
    if high - low < 0.5:  # a flat line in the middle, not noise blown up to the whole height
        middle = (low + high) / 2
        low, high = middle - 0.25, middle + 0.25
    return _Scale(max(x for x, _ in points) or 1.0, low, high, columns, HEIGHT)


def _trace(cells: list[list[str]], scale: _Scale, points: Sequence[Point], dot: str) -> None:
    for (x0, y0), (x1, y1) in pairwise(points):
        first, last = scale.column(x0), scale.column(x1)
        for column in range(first + 1, last):
            share = (column - first) / (last - first)
            y = 10 ** (math.log10(y0) * (1 - share) + math.log10(y1) * share)
            cells[scale.row(y)][column] = dot


def _legend(
    series: Sequence[Series], bound: float | None, style: _Style, title: str, unicode: bool
) -> str:
    names = [f"{line.mark if unicode else line.ascii_mark} {line.name}" for line in series]
    if bound is not None:
        names.append(f"{style.bound * 3} SLO {bound:g}")
    return f"{title}   " + "   ".join(names)


def _frame(cells: list[list[str]], scale: _Scale, style: _Style, x_label: str) -> list[str]:
    labels = {scale.row(tick): f"{tick:g}" for tick in _ticks(scale)}
    lines = []
    for row, line in enumerate(cells):
        edge = style.tick if row in labels else style.vertical
        lines.append(f"{labels.get(row, ''):>{_MARGIN - 1}} {edge}{''.join(line)}".rstrip())
    lines.append(" " * _MARGIN + style.corner + style.horizontal * (scale.columns - 1))
    left, right = "0", f"{scale.x_max:.4g}"
    middle = x_label.center(scale.columns - len(left) - len(right))
    lines.append(f"{' ' * _MARGIN}{left}{middle}{right}")
    return lines


def _ticks(scale: _Scale) -> list[float]:
    """1, 2 and 5 times the powers of ten inside the scale, thinned to single rows."""
    decades = range(math.floor(scale.low), math.ceil(scale.high) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    inside = [tick for tick in ticks if scale.low <= math.log10(tick) <= scale.high]
    if len(inside) > scale.rows // 2:
        inside = [tick for tick in inside if math.log10(tick).is_integer()]
    return inside
