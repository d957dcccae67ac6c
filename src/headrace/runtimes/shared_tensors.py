"""Arrays between two processes through shared memory: one copy each way, nothing to clean up.

A direction is a few *segments*: anonymous memory files (``memfd_create``) that both sides
map. The writer copies arrays into one segment and sends a small :class:`Parcel` over a
channel of its own; the reader makes arrays that are views of the segment.

The law: **a segment is not written while an array that was read from it is alive.** It is
the reader who knows, so it is the reader who names the segment to write next
(:meth:`TensorReader.next_segment`), and the name travels with its message the other way.
Where every other segment is still lent out, ``read`` copies instead of lending; so what is
read belongs to whoever read it, for as long as they like, and memory stays bounded.

Why memory files and not ``multiprocessing.shared_memory``: they have no name, so a process
that is killed leaves nothing behind in ``/dev/shm``; they do not count against the 64 MiB
that containers give that mount; and they can be sealed against shrinking, so a broken peer
cannot turn our next read into a SIGBUS.

Segments start small, double as they need to, and never shrink; pages that nobody touched
cost nothing. BYTES travel as their lengths (uint64) followed by their contents.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from headrace.errors import HeadraceError, InferenceFailed
from headrace.types import DTYPE_OF

SEGMENTS = 3
"""Per direction: one being read, one lent to whoever is still encoding the last answer, one
to write. More would only help callers who hoard answers; those get copies."""

INITIAL_BYTES = 1 << 20
"""First size of a segment. Pages are allocated when touched, so this is only a reservation."""

ALIGNMENT = 64
"""Every array starts on a cache line, which is also what the widest SIMD loads want."""

_MAX_LABEL = 60  # memfd_create(2) takes 249 bytes, and a character is at most four

_DTYPES = {dtype.str: dtype for dtype in DTYPE_OF.values()}
_OBJECT = np.dtype(object)
_LENGTH = np.dtype(np.uint64)


class ArrayLayout(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where one array lies: ``dtype`` as numpy's ``dtype.str``, ``offset`` in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Parcel(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was written: the segment, its size in bytes now, and each array (None: left out)."""

    segment: int
    size: int
    arrays: tuple[ArrayLayout | None, ...]


def create_segments(label: str) -> list[int]:
    """Makes the segments of one direction; ``label`` shows up in ``/proc/PID/maps``.

    Returns:
        File descriptors, owned by the caller, not inherited by child processes.
    """
    descriptors: list[int] = []
    try:
        for _ in range(SEGMENTS):
            descriptors.append(
                os.memfd_create(label[:_MAX_LABEL], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            )
            os.ftruncate(descriptors[-1], INITIAL_BYTES)
            fcntl.fcntl(descriptors[-1], fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return descriptors


class _Segment:
    """One memory file and this process's mapping of it."""

    __slots__ = ("descriptor", "mapping", "size")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = 0
        self.mapping: mmap.mmap | None = None

    def map(self, size: int) -> mmap.mmap:
        """At least ``size`` bytes of it. An older mapping lives on while arrays need it.

        Raises:
            OSError: no memory, or the file is smaller.
        """
        if self.mapping is None or size > self.size:
            self.mapping = mmap.mmap(self.descriptor, size)
            self.size = size
        return self.mapping

    def close(self) -> None:
        self.mapping = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


_Shapes = list[tuple[np.dtype, tuple[int, ...]] | None]


class _Written(NamedTuple):
    """How the last batch lies in a segment: most are laid out as the one before them."""

    shapes: _Shapes
    targets: list[np.ndarray]
    parcel: Parcel


class TensorWriter:
    """The sending end of one direction. Owns ``descriptors``.

    Args:
        descriptors: from :func:`create_segments`, in the same order on both sides.
        max_bytes: largest segment; a parcel above it is refused.
        too_large: the error of that refusal, by whose tensors these are.
    """

    def __init__(
        self,
        descriptors: Sequence[int],
        *,
        max_bytes: int,
        too_large: type[HeadraceError] = InferenceFailed,
    ) -> None:
        self._segments = [_Segment(descriptor) for descriptor in descriptors]
        self._last: list[_Written | None] = [None] * len(descriptors)
        self._max_bytes = max_bytes
        self._too_large = too_large

    def write(self, segment: int, arrays: Sequence[np.ndarray | None]) -> Parcel:
        """Copies ``arrays`` into ``segment``, which the reader named.

        Args:
            segment: what the other side's ``next_segment`` said.
            arrays: of the dtypes in ``headrace.types``; object arrays hold ``bytes``.

        Raises:
            InferenceFailed: together they are larger than ``max_bytes`` (where ``too_large`` is
                no other), or than memory.
        """
        shapes = [None if array is None else (array.dtype, array.shape) for array in arrays]
        last = self._last[segment]
        if last is not None and last.shapes == shapes:
            for target, array in zip(last.targets, arrays, strict=True):
                if array is not None:  # it never is: the shapes say so
                    np.copyto(target, array)
            return last.parcel
        return self._lay_out(segment, arrays, shapes)

    def _lay_out(
        self, segment: int, arrays: Sequence[np.ndarray | None], shapes: _Shapes
    ) -> Parcel:
        layouts: list[ArrayLayout | None] = []
        end = 0
        for array in arrays:
            if array is None:
                layouts.append(None)
                continue
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            nbytes = _packed_bytes(array) if array.dtype == _OBJECT else array.nbytes
            layouts.append(ArrayLayout(array.dtype.str, array.shape, offset, nbytes))
            end = offset + nbytes
        self._last[segment] = None
        target = self._segments[segment]
        size = self._size_for(target, end)
        try:
            if size > max(target.size, INITIAL_BYTES):
                os.ftruncate(target.descriptor, size)
            mapping = target.map(size)
        except OSError as error:
            raise InferenceFailed(f"no {size} bytes of shared memory to be had: {error}") from error
        targets = [
            _fill(mapping, layout, array)
            for array, layout in zip(arrays, layouts, strict=True)
            if array is not None and layout is not None
        ]
        parcel = Parcel(segment, target.size, tuple(layouts))
        kept = [target for target in targets if target is not None]
        if len(kept) == len(arrays):
            self._last[segment] = _Written(shapes, kept, parcel)
        return parcel

    def close(self) -> None:
        """Gives the segments back; the reader keeps what it has mapped."""
        self._last = [None] * len(self._segments)
        for segment in self._segments:
            segment.close()

    def _size_for(self, segment: _Segment, needed: int) -> int:
        if needed > self._max_bytes:
            raise self._too_large(
                f"the tensors of one batch take {needed} bytes of shared memory, "
                f"and max_shared_bytes is {self._max_bytes}",
                hint="send smaller batches, or raise max_shared_bytes in runtime_options",
                limit="max_shared_bytes",
                expected=self._max_bytes,
                got=needed,
            )
        size = max(segment.size, INITIAL_BYTES)
        return size if needed <= size else max(needed, min(2 * size, self._max_bytes))


class TensorReader:
    """The receiving end of one direction. Owns ``descriptors``.

    One thread at a time may be in its methods; arrays may be dropped by any thread.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._segments = [_Segment(descriptor) for descriptor in descriptors]
        self._free = list(range(len(descriptors)))
        self._named: int | None = None
        self._lent: dict[int, weakref.ref[np.ndarray]] = {}

    def next_segment(self) -> int:
        """The segment the writer is to use next; the same until something was read."""
        if self._named is None:
            # The one given back last, because its pages are still in the cache.
            self._named = self._free.pop()
        return self._named

    def read(self, parcel: Parcel) -> list[np.ndarray | None]:
        """The arrays of a parcel, writable, C-contiguous and the caller's to keep.

        Raises:
            ValueError: the parcel does not describe what lies in the segment.
        """
        index = parcel.segment
        if index != self._named:
            raise ValueError(f"segment {index} was written, and {self._named} was named")
        mapping = self._segments[index].map(max(parcel.size, INITIAL_BYTES))
        owner: np.ndarray = np.frombuffer(mapping, np.uint8)
        arrays = [None if layout is None else _view(owner, layout) for layout in parcel.arrays]
        self._named = None
        if self._free:
            self._lend(owner, index)
            return arrays
        copies = [None if array is None else array.copy() for array in arrays]
        self._free.append(index)
        return copies

    def close(self) -> None:
        """Gives the segments back; arrays that were read stay valid."""
        self._lent.clear()
        for segment in self._segments:
            segment.close()

    def _lend(self, owner: np.ndarray, index: int) -> None:
        # Every view keeps `owner` alive, so its end is the end of the last of them.
        free = self._free
        self._lent[index] = weakref.ref(owner, lambda _: free.append(index))


def _packed_bytes(array: np.ndarray) -> int:
    return array.size * _LENGTH.itemsize + sum(map(len, array.flat))


def _fill(mapping: mmap.mmap, layout: ArrayLayout, array: np.ndarray) -> np.ndarray | None:
    """Copies one array; returns the view that it was copied to, None for BYTES."""
    if array.dtype != _OBJECT:
        target: np.ndarray = np.ndarray(array.shape, array.dtype, mapping, layout.offset)
        np.copyto(target, array)
        return target
    start = layout.offset + array.size * _LENGTH.itemsize
    lengths: np.ndarray = np.ndarray((array.size,), _LENGTH, mapping, layout.offset)
    lengths[:] = np.fromiter(map(len, array.flat), _LENGTH, array.size)
    mapping[start : layout.offset + layout.nbytes] = b"".join(array.flat)
    return None


def _view(owner: np.ndarray, layout: ArrayLayout) -> np.ndarray:
    dtype = _DTYPES.get(layout.dtype)
    if dtype is None:
        raise ValueError(f"dtype {layout.dtype!r} is not one of the protocol's")
    # numpy does not look: it makes an array that lies before its buffer.
    if layout.offset < 0 or min(layout.shape, default=0) < 0:
        raise ValueError(f"offset {layout.offset} or shape {layout.shape} is negative")
    if dtype == _OBJECT:
        return _unpack(owner, layout)
    try:
        return np.ndarray(layout.shape, dtype, owner, layout.offset)
    except TypeError as error:  # numpy's word for a buffer that is too small
        raise ValueError(str(error)) from error


def _unpack(owner: np.ndarray, layout: ArrayLayout) -> np.ndarray:
    start = layout.offset + math.prod(layout.shape) * _LENGTH.itemsize
    end = layout.offset + layout.nbytes
    if not start <= end <= owner.size:
        raise ValueError("a BYTES tensor lies outside its segment")
    array: np.ndarray = np.empty(layout.shape, _OBJECT)
    lengths = owner[layout.offset : start].view(_LENGTH).tolist()
    if sum(lengths) != end - start:
        raise ValueError("the lengths of a BYTES tensor do not add up to its size")
    contents = owner[start:end].tobytes()
    flat, position = array.reshape(-1), 0
    for index, length in enumerate(lengths):
        flat[index] = contents[position : position + length]
        position += length
    return array
