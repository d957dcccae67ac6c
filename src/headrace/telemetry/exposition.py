"""The text format of Prometheus, version 0.0.4, and nothing else.

https://prometheus.io/docs/instrumenting/exposition_formats/ : ``HELP`` and ``TYPE`` once a
family, all samples of a family together, histograms with cumulative ``le`` buckets, label
values with backslash, quote and line feed escaped, UTF-8, a line feed at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def labels(**values: str) -> str:
    """``name="value"`` pairs in the order given, values escaped."""
    return ",".join([f'{name}="{value.translate(_ESCAPES)}"' for name, value in values.items()])


class Exposition:
    """Families are written one after the other; ``text()`` is the page."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str) -> None:
        """Opens a family. ``kind``: counter, gauge, histogram or summary."""
        self._lines += (
            f"# HELP {name} {text.translate(_HELP_ESCAPES)}",
            f"# TYPE {name} {kind}",
        )

    def sample(self, name: str, label_set: str, value: float) -> None:
        """One line; ``label_set`` comes from :func:`labels` or is ""."""
        self._lines.append(f"{name}{{{label_set}}} {value}" if label_set else f"{name} {value}")

    def single(self, name: str, kind: str, text: str, value: float) -> None:
        """A family with one sample and no labels."""
        self.family(name, kind, text)
        self.sample(name, "", value)

    def histogram(
        self, name: str, label_set: str, bounds: Iterable[str], counts: Sequence[int], total: float
    ) -> None:
        """Cumulative buckets, ``_sum`` and ``_count``.

        Args:
            name: of the family.
            label_set: may be "".
            bounds: the upper bounds as text, ascending, without ``+Inf``.
            counts: not cumulative; one more than ``bounds``, for what is above the last.
            total: the sum of everything observed.
        """
        before = f"{label_set}," if label_set else ""
        cumulative = list(accumulate(counts))
        for bound, count in zip((*bounds, "+Inf"), cumulative, strict=True):
            self._lines.append(f'{name}_bucket{{{before}le="{bound}"}} {count}')
        self.sample(f"{name}_sum", label_set, total)
        self.sample(f"{name}_count", label_set, cumulative[-1])

    def text(self) -> bytes:
        """The page."""
        return "\n".join([*self._lines, ""]).encode()
