"""How the demo speaks: plain lines of 80 columns, the same in a terminal and in a pipe."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence

WIDTH = 80
"""Fits every terminal, an e-mail and a bug report."""

LABEL_WIDTH = 10


class Terminal:
    """Where the demo's lines go. Labels, not colours, carry the meaning."""

    def __init__(self) -> None:
        self.is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._passing = False

    def line(self, text: str = "") -> None:
        """One line, at once, also into a pipe."""
        self._clear()
        print(text, flush=True)

    def row(self, label: str, text: str) -> None:
        """A labelled paragraph."""
        indent = " " * (LABEL_WIDTH + 1)
        for number, line in enumerate(_wrapped(text, WIDTH - len(indent))):
            self.line(f"{label if number == 0 else '':<{LABEL_WIDTH}} {line}".rstrip())

    def passing(self, label: str, text: str) -> None:
        """A line that the next one replaces; only where somebody watches."""
        if self.is_interactive:
            self._clear()
            self._passing = bool(text)
            print(f"{label:<{LABEL_WIDTH}} {text}"[:WIDTH] if text else "", end="", flush=True)

    def agrees(self, question: str) -> bool:
        """Asks; where nobody can answer, the answer is yes."""
        if not self.is_interactive:
            return True
        try:
            answer = input(f"{'':<{LABEL_WIDTH}} {question} [Y/n] ")
        except EOFError:
            self.line()
            return False
        return answer.strip().lower() in {"", "y", "yes"}

    def _clear(self) -> None:
        if self._passing:
            print(f"\r{'':<{WIDTH - 1}}\r", end="")
            self._passing = False


def amount(count: int) -> str:
    """Bytes as a person reads them, in units of 1000, as download pages do."""
    if count >= 10_000_000:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e6:.1f} MB"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]
) -> Iterator[str]:
    """Cells wrapped to ``widths``; the two widest columns read from the left, figures from
    the right."""
    yield from _cells(head, widths)
    yield "  ".join("-" * width for width in widths)
    for row in rows:
        yield from _cells(row, widths)


def _cells(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    columns = [_wrapped(text, width) for text, width in zip(row, widths, strict=True)]
    for number in range(max(map(len, columns))):
        parts = [column[number] if number < len(column) else "" for column in columns]
        padded = [
            f"{part:>{width}}" if width < LABEL_WIDTH else f"{part:<{width}}"
            for part, width in zip(parts, widths, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    # A path or a digest is copied from here: it stays in one piece even if it is too long.
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
