"""The binary tensor data extension of V2: little-endian, row-major, one tensor after another.

BYTES elements each carry a 4-byte little-endian length. Source: Triton's
``extension_binary_data.md``.
"""

from __future__ import annotations

import struct
from math import prod

import numpy as np

from headrace.errors import InvalidRequest, PayloadTooLarge
from headrace.limits import HttpLimits
from headrace.types import DTYPE_OF, Tensor

_LENGTH = struct.Struct("<I")

STRINGS_MAX = HttpLimits().max_strings


class Reader:
    """Takes tensors off the tail of a request body, in the order of the inputs."""

    __slots__ = ("_body", "_offset", "_strings_left")

    def __init__(self, body: bytes, offset: int, strings_max: int = STRINGS_MAX) -> None:
        if not 0 <= offset <= len(body):
            raise InvalidRequest(
                f"Inference-Header-Content-Length says {offset} bytes, the body has {len(body)}",
                code="wrong_binary_header",
                hint="it is the length of the JSON part of the body, in bytes",
                expected=len(body),
                got=offset,
            )
        self._body = body
        self._offset = offset
        self._strings_left = strings_max

    def read(self, name: str, datatype: str, shape: tuple[int, ...], size_bytes: int) -> np.ndarray:
        """The next ``size_bytes`` as an array of ``shape``; a view where it can be one.

        Raises:
            InvalidRequest: fewer bytes are left, or the size disagrees with the shape.
        """
        start = self._offset
        end = start + size_bytes
        if end > len(self._body):
            raise InvalidRequest(
                f"input '{name}' says binary_data_size {size_bytes}, but only "
                f"{len(self._body) - start} bytes of the body are left",
                code="wrong_binary_size",
                input=name,
                expected=size_bytes,
                got=len(self._body) - start,
            )
        self._offset = end
        array = decode(
            self._body,
            start,
            size_bytes,
            name=name,
            datatype=datatype,
            shape=shape,
            strings_max=self._strings_left,
        )
        if datatype == "BYTES":
            self._strings_left -= array.size
        return array

    def finish(self) -> None:
        """Nothing may be left over.

        Raises:
            InvalidRequest: the body is longer than its inputs say.
        """
        left = len(self._body) - self._offset
        if left:
            raise InvalidRequest(
                f"the body has {left} bytes more than its inputs' binary_data_size say",
                code="wrong_binary_size",
                got=left,
            )


def decode(
    body: bytes,
    start: int,
    size_bytes: int,
    *,
    name: str,
    datatype: str,
    shape: tuple[int, ...],
    strings_max: int = STRINGS_MAX,
) -> np.ndarray:
    """``size_bytes`` of ``body`` as an array of ``shape`` (read-only where it is a view).

    Raises:
        InvalidRequest: the size disagrees with the shape.
    """
    if datatype == "BYTES":
        count = min(prod(shape), size_bytes // _LENGTH.size)
        if count > strings_max:
            raise too_many_strings(count, strings_max)
        return _decode_bytes(body, start, size_bytes, name, shape)
    dtype = DTYPE_OF[datatype]
    # Python's integers: a product that wraps around cannot agree by accident.
    expected = prod(shape) * dtype.itemsize
    if expected != size_bytes:
        raise InvalidRequest(
            f"unexpected total byte size {size_bytes} for input '{name}', expecting {expected} "
            f"for shape {list(shape)} of {datatype}",
            code="shape_data_mismatch",
            input=name,
            expected=expected,
            got=size_bytes,
        )
    if not size_bytes:
        return empty(name, datatype, shape)
    array = np.frombuffer(body, dtype, count=size_bytes // dtype.itemsize, offset=start)
    if datatype == "BOOL":
        # Anything but 0 and 1 in a bool is undefined behaviour further down.
        array = array.view(np.uint8) != 0
    elif not array.flags.aligned:
        array = array.copy()
    return array.reshape(shape)


def too_many_strings(got: int, allowed: int) -> PayloadTooLarge:
    """The error for a request with more elements of BYTES tensors than ``max_strings``."""
    return PayloadTooLarge(
        f"the request has {got} more BYTES elements where {allowed} are allowed",
        code="too_many_strings",
        hint="send several requests, or raise max_strings",
        limit="max_strings",
        allowed=allowed,
        got=got,
    )


def empty(name: str, datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array without elements.

    Raises:
        InvalidRequest: numpy has no array of this shape, such as ``[0, 2**63]``.
    """
    try:
        return np.empty(shape, DTYPE_OF[datatype])
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"input '{name}' has the shape {list(shape)}, which is too large for any array",
            code="wrong_shape",
            input=name,
        ) from None


def _decode_bytes(
    body: bytes, start: int, size_bytes: int, name: str, shape: tuple[int, ...]
) -> np.ndarray:
    end = start + size_bytes
    elements: list[bytes] = []
    position = start
    count = prod(shape)
    while position < end:
        if position + 4 > end or len(elements) >= count:
            break
        (length,) = _LENGTH.unpack_from(body, position)
        position += 4
        if length > end - position:
            raise InvalidRequest(
                f"element {len(elements)} of input '{name}' says {length} bytes, but only "
                f"{end - position} of the tensor are left",
                code="wrong_bytes_length",
                hint="every BYTES element is a 4-byte little-endian length and the bytes",
                input=name,
            )
        elements.append(body[position : position + length])
        position += length
    if not count and position == end:
        return empty(name, "BYTES", shape)
    if position != end or len(elements) != count:
        raise InvalidRequest(
            f"input '{name}' of shape {list(shape)} must hold {count} BYTES elements in "
            f"{size_bytes} bytes, got {len(elements)} in {position - start}",
            code="shape_data_mismatch",
            input=name,
            expected=count,
            got=len(elements),
        )
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array.reshape(shape)


def encode(tensor: Tensor) -> bytes:
    """The bytes of a tensor as the extension wants them."""
    if tensor.datatype == "BYTES":
        parts: list[bytes] = []
        for value in tensor.data.ravel():
            parts.append(_LENGTH.pack(len(value)))
            parts.append(value)
        return b"".join(parts)
    return tensor.data.tobytes()


def float32_to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Rounds to nearest even, as hardware does; the bits as ``uint16``. NaN stays NaN."""
    bits = array.astype(np.float32, copy=False).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Exact: a bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
