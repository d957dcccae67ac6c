"""Numbers for shapes: requests meet in a batch only if theirs are equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.engine.served import ServedModel

_SHAPES_MAX = 65_536
"""Shapes remembered. Beyond it the memory is cleared, which at worst separates a few
requests that could have run together."""


class ShapeKeys:
    """Interns what must agree between requests: every size but the rows and the padded axis."""

    def __init__(self) -> None:
        self._keys: dict[Any, int] = {}
        self._next = 1

    def key(self, arrays: Sequence[np.ndarray | None], served: ServedModel) -> int:
        """The number of this shape; 0 where the signature leaves nothing open."""
        if served.uniform_rows:
            return 0
        padding, ragged = served.padding, served.ragged
        shape = tuple(
            [
                None
                if array is None
                else ()
                if index in ragged
                else array.shape[1:]
                if padding is None or padding.values[index] is None
                else array.shape[1 : padding.axis] + array.shape[padding.axis + 1 :]
                for index, array in enumerate(arrays)
            ]
        )
        key = self._keys.get(shape)
        if key is None:
            if len(self._keys) >= _SHAPES_MAX:
                self._keys.clear()
            key = self._keys[shape] = self._next
            self._next += 1
        return key
