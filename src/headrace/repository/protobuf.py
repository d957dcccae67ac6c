"""Reading the protobuf wire format without a schema, a copy, or trust.

What it is for: looking at a model file before any library that was not written for
hostile input does. It walks (field number, wire type, value) triples over a buffer, gives
lengths as positions instead of slices, and refuses what no encoder writes.

Wire format: https://protobuf.dev/programming-guides/encoding/. Groups (wire types 3 and
4) are deprecated, used by no format read here, and refused.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types. A LENGTH field's value is its start; its end is the fourth of the tuple."""

MAX_VARINT_BYTES = 10
"""ceil(64 / 7): a 64-bit number never needs more."""

Buffer = bytes | mmap.mmap
Field = tuple[int, int, int, int]
"""(field number, wire type, value, end): for LENGTH the value is the first byte's position
and ``end`` the position after the last; for VARINT the unsigned number; for FIXED32 and
FIXED64 the position. ``end`` is always where the next field begins."""

Fields = Iterator[Field]

MAX_TEXT_BYTES = 64 * 1024
"""A name or a path; a longer one is not a name."""


class WireError(ValueError):
    """The bytes are not a protobuf message; ``position`` is where that became clear."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} at byte {position}")
        self.position = position


class FieldBudget:
    """How many more fields may be read: what keeps a large hostile file from costing minutes."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, count: int, position: int) -> None:
        """Takes ``count`` fields off.

        Raises:
            WireError: there were not so many left.
        """
        self.left -= count
        if self.left < 0:
            raise WireError("more fields than any real model has", position)


def read_varint(buffer: Buffer, position: int, end: int) -> tuple[int, int]:
    """The unsigned number at ``position`` and the position after it.

    Raises:
        WireError: it runs past ``end`` or is longer than 64 bits allow.
    """
    result = 0
    for shift in range(0, 7 * MAX_VARINT_BYTES, 7):
        if position >= end:
            raise WireError("a number is cut off", position)
        byte = buffer[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, position
    raise WireError("a number is longer than 64 bits", position)


def signed(value: int) -> int:
    """An ``int64`` from the unsigned number it is written as (two's complement)."""
    return value - (1 << 64) if value >> 63 else value


def fields(
    buffer: Buffer,
    start: int,
    end: int,
    budget: FieldBudget,
    *,
    skip: re.Pattern[bytes] | None = None,
) -> Fields:
    """Every field of the message in ``buffer[start:end]``, in order, without copying.

    ``skip`` matches runs of fields (perhaps none) that nobody wants to see; they are passed
    over at the speed of the regular expression engine and cost no budget.

    Raises:
        WireError: truncated, an unknown wire type, field number 0, or ``budget`` is spent.
    """
    position = start
    count = 0
    while position < end:
        if skip is not None:
            run = skip.match(buffer, position, end)
            if run is not None and run.end() > position:
                position = run.end()
                continue
        began = position
        tag = buffer[position]
        if tag < 0x80:  # fields 1 to 15: one byte, nearly all there are
            position += 1
        else:
            tag, position = read_varint(buffer, position, end)
        wire = tag & 7
        if wire in _WITH_NUMBER:
            value = buffer[position] if position < end else 0x80
            if value < 0x80:
                position += 1
            else:
                value, position = read_varint(buffer, position, end)
            if wire == LENGTH:
                value, position = position, position + value
        else:
            value = position
            position += _fixed_size(wire, began)
        if position > end or tag < 8:
            raise WireError(*_complaint(tag, began))
        count += 1
        if count == _BATCH:  # the budget is kept in steps: a call for each would double the cost
            budget.spend(count, position)
            count = 0
        yield tag >> 3, wire, value, position
    budget.spend(count, position)


_BATCH = 256
_WITH_NUMBER = (LENGTH, VARINT)


def _fixed_size(wire: int, position: int) -> int:
    if wire == FIXED32:
        return 4
    if wire == FIXED64:
        return 8
    raise WireError(f"unknown wire type {wire}", position)


def _complaint(tag: int, position: int) -> tuple[str, int]:
    if tag < 8:
        return "field number 0", position
    return f"field {tag >> 3} is longer than what is left", position


def packed_varints(buffer: Buffer, start: int, end: int) -> Iterator[int]:
    """The unsigned numbers of a packed repeated field.

    Raises:
        WireError: the last one is cut off, or one is too long.
    """
    position = start
    while position < end:
        value, position = read_varint(buffer, position, end)
        yield value


def text(buffer: Buffer, start: int, end: int) -> str:
    """A ``string`` field.

    Raises:
        WireError: it is not UTF-8, or longer than :data:`MAX_TEXT_BYTES`.
    """
    if end - start > MAX_TEXT_BYTES:
        raise WireError("a name is longer than names are", start)
    try:
        return bytes(buffer[start:end]).decode()
    except UnicodeDecodeError:
        raise WireError("a name is not UTF-8", start) from None
