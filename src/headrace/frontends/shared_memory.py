"""System shared memory: tensors that a client on the same machine puts where we can read them.

Source: Triton's ``extension_shared_memory.md``. A region is a name for a range of a POSIX shared
memory object, ``/dev/shm/<key>``.

A tensor is *copied* out of the region and an output into it. A view would be cheaper by the copy
of its bytes, but the client may change or truncate the object while the model runs: the first
would change a request that was checked already, the second ends the process with SIGBUS. Reads
and writes go through the file descriptor, so a truncated object is an error like any other.
"""

from __future__ import annotations

import os
import re
import stat
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from headrace.errors import InvalidRequest
from headrace.frontends.codecs import v2_binary
from headrace.types import DTYPE_OF, SharedMemoryRange, Tensor

_OBJECTS = Path("/dev/shm")  # noqa: S108 - where Linux has POSIX shared memory (shm_overview(7))

_KEY = re.compile(r"/?[^/\0]{1,254}")

MAX_REGIONS = 1024
"""Each holds a file descriptor."""


class Region(msgspec.Struct, frozen=True):
    """A registered region; ``descriptor`` is open for reading and writing."""

    name: str
    key: str
    offset: int
    byte_size: int
    descriptor: int


class SharedMemory:
    """The regions that clients registered with this process. Any thread may read and write."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def register(self, name: str, *, key: str, offset: int, byte_size: int) -> None:
        """Opens the object and remembers the range.

        Raises:
            InvalidRequest: the name is taken, the key cannot be one, there is no such object,
                or it is smaller than the range.
        """
        if not name:
            raise _wrong("a shared memory region needs a name")
        if name in self._regions:
            raise _wrong(
                f"shared memory region '{name}' already in manager", code="region_exists", name=name
            )
        if len(self._regions) >= MAX_REGIONS:
            raise _wrong(f"there are {MAX_REGIONS} shared memory regions already", name=name)
        if offset < 0 or byte_size <= 0:
            raise _wrong(
                f"Invalid offset or byte size for shared memory region '{name}': "
                f"{offset}, {byte_size}",
                name=name,
            )
        descriptor = _opened(name, key)
        size = os.fstat(descriptor).st_size
        if offset + byte_size > size:
            os.close(descriptor)
            raise _wrong(
                f"failed to register shared memory region '{name}': invalid args: the object "
                f"'{key}' has {size} bytes, and the region would end at {offset + byte_size}",
                name=name,
            )
        self._regions[name] = Region(name, key, offset, byte_size, descriptor)

    def unregister(self, name: str = "") -> None:
        """Forgets one region, or all. One that is not there is no error, as in Triton."""
        for each in [name] if name else list(self._regions):
            region = self._regions.pop(each, None)
            if region is not None:
                os.close(region.descriptor)

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """``{"name", "key", "offset", "byte_size"}`` of one region, or of all by name.

        Raises:
            InvalidRequest: there is no such region.
        """
        if name and name not in self._regions:
            raise _wrong(
                f"Unable to find system shared memory region: '{name}'",
                code="unknown_region",
                name=name,
            )
        found = [self._regions[name]] if name else [self._regions[n] for n in sorted(self._regions)]
        return [
            {
                "name": region.name,
                "key": region.key,
                "offset": region.offset,
                "byte_size": region.byte_size,
            }
            for region in found
        ]

    def read(
        self, where: SharedMemoryRange, *, name: str, datatype: str, shape: tuple[int, ...]
    ) -> np.ndarray:
        """The tensor ``name``, copied out.

        Raises:
            InvalidRequest: no such region, a range outside of it, or one whose size is not that
                of the shape.
        """
        descriptor, start = self._range(where, name)
        if datatype == "BYTES":
            content = _read(descriptor, start, where, name)
            return v2_binary.decode(
                content, 0, len(content), name=name, datatype=datatype, shape=shape
            )
        dtype = DTYPE_OF[datatype]
        expected = prod(shape) * dtype.itemsize
        if expected != where.byte_size:
            raise _wrong(
                f"unexpected total byte size {where.byte_size} for input '{name}', expecting "
                f"{expected} for shape {list(shape)} of {datatype}",
                code="shape_data_mismatch",
                input=name,
            )
        if not expected:
            return v2_binary.empty(name, datatype, shape)
        array = np.empty(shape, np.uint8 if datatype == "BOOL" else dtype)
        if os.preadv(descriptor, [array.reshape(-1).data.cast("B")], start) != expected:
            raise _truncated(where, name)
        return array != 0 if datatype == "BOOL" else array

    def write(self, where: SharedMemoryRange, tensor: Tensor) -> int:
        """Puts an output where it was asked for. How many bytes it has.

        Raises:
            InvalidRequest: no such region, or the range is too small.
        """
        descriptor, start = self._range(where, tensor.name)
        content: bytes | memoryview
        if tensor.datatype == "BYTES" or not tensor.data.flags.c_contiguous:
            content = v2_binary.encode(tensor)
        else:
            content = tensor.data.reshape(-1).data.cast("B")
        if len(content) > where.byte_size:
            raise _wrong(
                f"shared memory size specified with the request for output '{tensor.name}' "
                f"({where.byte_size} bytes) should be at least {len(content)} bytes to hold the "
                "results",
                code="region_too_small",
                output=tensor.name,
            )
        # Only within the object as it is: writing past its end would make it larger.
        if os.fstat(descriptor).st_size < start + len(content):
            raise _truncated(where, tensor.name)
        if len(content):
            os.pwrite(descriptor, content, start)
        return len(content)

    def close(self) -> None:
        """Forgets all."""
        self.unregister()

    def _found(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise _wrong(
                f"Unable to find shared memory region: '{name}'",
                code="unknown_region",
                hint=f"register it first; there are {sorted(self._regions)}",
                name=name,
            )
        return region

    def _range(self, where: SharedMemoryRange, tensor: str) -> tuple[int, int]:
        region = self._found(where.region)
        if where.offset + where.byte_size > region.byte_size:
            raise _wrong(
                f"Invalid offset + byte size for shared memory region: '{where.region}': tensor "
                f"'{tensor}' would end at {where.offset + where.byte_size}, the region has "
                f"{region.byte_size} bytes",
                code="outside_of_region",
                tensor=tensor,
            )
        return region.descriptor, region.offset + where.offset


def _opened(name: str, key: str) -> int:
    if not _KEY.fullmatch(key) or key.strip("/") in ("", ".", ".."):
        raise _wrong(
            f"Unable to open shared memory region: {key!r} is no key",
            hint="a key is a name as in shm_open(3): one slash, at the beginning, if any",
            name=name,
        )
    try:
        descriptor = os.open(
            _OBJECTS / key.removeprefix("/"),
            os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
        )
    except OSError as error:
        raise _wrong(
            f"Unable to open shared memory region: '{key}': {error.strerror}", name=name, key=key
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _wrong(f"Unable to open shared memory region: '{key}' is no shared memory", name=name)
    return descriptor


def _read(descriptor: int, start: int, where: SharedMemoryRange, tensor: str) -> bytes:
    content = os.pread(descriptor, where.byte_size, start)
    if len(content) != where.byte_size:
        raise _truncated(where, tensor)
    return content


def _truncated(where: SharedMemoryRange, tensor: str) -> InvalidRequest:
    return _wrong(
        f"shared memory region '{where.region}' has become smaller: tensor '{tensor}' is not in it",
        code="region_truncated",
        tensor=tensor,
    )


def _wrong(
    message: str, *, code: str = "wrong_shared_memory", hint: str = "", **details: object
) -> InvalidRequest:
    return InvalidRequest(message, code=code, hint=hint, **details)
