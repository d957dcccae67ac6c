"""Goodput over offered load as an SVG: text that a browser draws, and needs nothing to write."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 46, 52
_COLOURS = ("#0b6e4f", "#c8553d", "#4062bb", "#8f5fb0", "#7a7a7a", "#c49a00", "#00798c")


class Line(msgspec.Struct, frozen=True):
    """One curve: (x, y), ascending in x."""

    name: str
    points: Sequence[tuple[float, float]]


def draw(
    lines: Sequence[Line], *, title: str, x_label: str, y_label: str, diagonal: bool = False
) -> str:
    """The picture; axes begin at 0.

    Args:
        diagonal: draws y = x, what the offered load would be if all of it were served.
    """
    points = [point for line in lines for point in line.points]
    x_most = _rounded(max([x for x, _ in points], default=1.0))
    y_most = _rounded(max([y for _, y in points], default=1.0))

    def place(x: float, y: float) -> str:
        across = _LEFT + x / x_most * (_WIDTH - _LEFT - _RIGHT)
        up = _HEIGHT - _BOTTOM - min(y / y_most, 1.0) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{across:.1f},{up:.1f}"

    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
    )
    parts = [
        head,
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 24, title, "font-size='15'"),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, x_label, "text-anchor='middle'"),
        _text(14, _TOP - 10, y_label),
    ]
    for step in range(6):
        x, y = x_most * step / 5, y_most * step / 5
        at_x, at_y = place(x, 0).split(","), place(0, y).split(",")
        grid = (
            f'<path d="M{place(0, y)} L{place(x_most, y)} M{place(x, 0)} L{place(x, y_most)}" '
            'stroke="#ddd" fill="none"/>'
        )
        parts += [
            grid,
            _text(float(at_x[0]), _HEIGHT - _BOTTOM + 16, f"{x:g}", "text-anchor='middle'"),
            _text(_LEFT - 6, float(at_y[1]) + 4, f"{y:g}", "text-anchor='end'"),
        ]
    if diagonal:
        least = min(x_most, y_most)
        path = f"M{place(0, 0)} L{place(least, least)}"
        parts.append(f'<path d="{path}" stroke="#999" stroke-dasharray="4 4"/>')
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " L".join([place(x, y) for x, y in line.points])
        width = 2.6 if number == 0 else 1.4
        parts.append(f'<path d="M{path}" stroke="{colour}" stroke-width="{width}" fill="none"/>')
        at = _TOP + 14 + 20 * number
        parts.append(
            f'<path d="M{_WIDTH - _RIGHT + 14},{at} h22" stroke="{colour}" stroke-width="{width}"/>'
        )
        parts.append(_text(_WIDTH - _RIGHT + 42, at + 4, line.name))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def _rounded(most: float) -> float:
    """A little above ``most``, with one or two digits."""
    if most <= 0:
        return 1.0
    step = 10.0 ** len(str(int(most))) / 20
    return step * -(-most // step)
