"""Tensors of every datatype, for the codecs of V2."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from headrace.types import DTYPE_OF, SharedMemoryRange, Tensor

SHAPES = st.one_of(
    st.just(()),
    npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
)


@st.composite
def tensors(draw: st.DrawFn, *, finite: bool = False, text: bool = False) -> Tensor:
    """``finite``: as JSON can say it. ``text``: BYTES are UTF-8."""
    datatype = draw(st.sampled_from(sorted(DTYPE_OF)))
    shape = draw(SHAPES)
    return Tensor(
        draw(st.text(max_size=5)), datatype, shape, _data(draw, datatype, shape, finite, text)
    )


def _data(draw: st.DrawFn, datatype: str, shape: Any, finite: bool, text: bool) -> np.ndarray:
    if datatype == "BYTES":
        element = st.text(max_size=6).map(str.encode) if text else st.binary(max_size=6)
        array = np.empty(shape, dtype=object)
        for index in np.ndindex(*shape):
            array[index] = draw(element)
        return array
    elements: Any = None
    if datatype in ("FP16", "FP32", "FP64") and finite:
        elements = {"allow_nan": False, "allow_infinity": False}
    array = draw(npst.arrays(DTYPE_OF[datatype], shape, elements=elements))
    if datatype == "BF16" and finite:
        array = np.where((array & 0x7F80) == 0x7F80, 0, array).astype(np.uint16)
    return array


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert got.name == expected.name
    assert got.datatype == expected.datatype
    assert got.shape == expected.shape
    assert got.data.shape == tuple(expected.shape)
    assert got.data.dtype == expected.data.dtype
    assert got.data.flags.c_contiguous
    if expected.datatype == "BYTES":
        assert got.data.tolist() == expected.data.tolist()
    else:
        assert got.data.tobytes() == expected.data.tobytes()


def floats(*values: float, name: str = "x") -> Tensor:
    array = np.array(values, np.float32)
    return Tensor(name, "FP32", array.shape, array)


class FakeShared:
    """Shared memory: every element read is its offset; remembers what is written."""

    def __init__(self) -> None:
        self.written: list[tuple[SharedMemoryRange, bytes]] = []
        self.reserved: list[SharedMemoryRange] = []

    def reserve(self, where: SharedMemoryRange) -> None:
        self.reserved.append(where)

    def read(
        self, where: SharedMemoryRange, *, name: str, datatype: str, shape: tuple[int, ...]
    ) -> np.ndarray:
        return np.full(shape, where.offset, DTYPE_OF[datatype])

    def write(self, where: SharedMemoryRange, tensor: Tensor) -> int:
        self.written.append((where, tensor.data.tobytes()))
        return tensor.data.nbytes
