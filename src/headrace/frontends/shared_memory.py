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
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from headrace.engine.inflight import Ticket
from headrace.errors import Forbidden, InvalidRequest
from headrace.frontends import socket_owner
from headrace.frontends.codecs import v2_binary
from headrace.frontends.peer import Connected, Peer
from headrace.types import DTYPE_OF, SharedMemoryRange, Tensor

_OBJECTS = Path("/dev/shm")  # noqa: S108 - where Linux has POSIX shared memory (shm_overview(7))

_KEY = re.compile(r"/?[^/\0]{1,254}")

_SEMAPHORE = "sem."
"""What the keys of POSIX semaphores begin with (sem_overview(7)): locks of other processes."""

MAX_REGIONS = 1024
"""Each holds a file descriptor."""

MAX_REGIONS_OF_OWNER = 512
"""Half of them, so that one user cannot take all. Triton's clients have one or two for a model."""

NO_OWNER = -1
"""Stands for all users where ``server.shared_memory`` is "any"."""

Access = Literal["local", "any", "off"]


class Region(msgspec.Struct, eq=False):
    """A registered region; ``descriptor`` is open for reading and writing, -1 when it is forgotten.

    ``uses``: requests under way that read from it or write to it.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    descriptor: int
    uses: int = 0


class SharedMemory:
    """The regions that clients registered with this process. Any thread may read and write.

    A region belongs to the user who registered it and owns its object; names are each owner's own.

    Args:
        access: see ``ServerConfig.shared_memory``.
        user_of: the uid at the client's end of a connection; None if it cannot be told.
    """

    def __init__(
        self,
        access: Access = "local",
        user_of: Callable[[Peer], int | None] = socket_owner.user_of,
    ) -> None:
        self._access = access
        self._user_of = user_of
        self._regions: dict[tuple[int, str], Region] = {}

    def find_owner(self, peer: Peer) -> int | None:
        """Whose regions a client may use; None: nobody's. Looks it up once for a connection."""
        if self._access != "local":
            return NO_OWNER if self._access == "any" else None
        if peer.user is None:
            peer.user = self._user_of(peer)
        return peer.user

    def owner_of(self, peer: Peer) -> int:
        """The same.

        Raises:
            Forbidden: nobody's.
        """
        owner = self.find_owner(peer)
        if owner is None:
            raise _unavailable(self._access)
        return owner

    def register(self, name: str, *, key: str, offset: int, byte_size: int, owner: int) -> None:
        """Opens the object and remembers the range.

        Raises:
            InvalidRequest: the name is taken, the key cannot be one, there is no such object,
                it is another user's, it is smaller than the range, or there are too many.
        """
        if not name:
            raise _wrong("a shared memory region needs a name")
        if (owner, name) in self._regions:
            raise _wrong(
                f"shared memory region '{name}' already in manager", code="region_exists", name=name
            )
        self._check_room(name, owner)
        if offset < 0 or byte_size <= 0:
            raise _wrong(
                f"Invalid offset or byte size for shared memory region '{name}': "
                f"{offset}, {byte_size}",
                name=name,
            )
        descriptor = _opened(name, key, owner)
        size = os.fstat(descriptor).st_size
        if offset + byte_size > size:
            os.close(descriptor)
            raise _wrong(
                f"failed to register shared memory region '{name}': invalid args: the object "
                f"'{key}' has {size} bytes, and the region would end at {offset + byte_size}",
                name=name,
            )
        self._regions[owner, name] = Region(name, key, offset, byte_size, descriptor)

    def unregister(self, name: str = "", *, owner: int) -> None:
        """Forgets one region of the owner, or all. One that is not there is no error, as in Triton.

        Raises:
            InvalidRequest: a request that is under way uses one of them. The rest is forgotten.
        """
        busy = []
        for region in [self._regions.get((owner, name))] if name else self._of(owner):
            if region is None:
                continue
            if region.uses:
                busy.append(region.name)
            else:
                self._forget(owner, region)
        if busy:
            raise _wrong(
                f"shared memory region '{busy[0]}' is currently in use",
                code="region_in_use",
                hint="unregister it again when the requests that use it are answered",
                name=busy[0],
            )

    def status(self, name: str = "", *, owner: int | None) -> list[dict[str, Any]]:
        """``{"name", "key", "offset", "byte_size"}`` of one region of the owner, or of all by name.

        Raises:
            InvalidRequest: there is no such region.
        """
        found = [region for region in self._of(owner) if name in ("", region.name)]
        if name and not found:
            raise _wrong(
                f"Unable to find system shared memory region: '{name}'",
                code="unknown_region",
                name=name,
            )
        return [
            {
                "name": region.name,
                "key": region.key,
                "offset": region.offset,
                "byte_size": region.byte_size,
            }
            for region in sorted(found, key=lambda region: region.name)
        ]

    def find(self, name: str, *, owner: int) -> Region:
        """A region of the owner.

        Raises:
            InvalidRequest: there is none of that name.
        """
        region = self._regions.get((owner, name))
        if region is None:
            raise _unknown(name)
        return region

    def close(self) -> None:
        """Forgets all."""
        for (owner, _), region in list(self._regions.items()):
            self._forget(owner, region)

    def _of(self, owner: int | None) -> list[Region]:
        return [region for (its, _), region in self._regions.items() if its == owner]

    def _forget(self, owner: int, region: Region) -> None:
        del self._regions[owner, region.name]
        descriptor, region.descriptor = region.descriptor, -1
        os.close(descriptor)

    def _check_room(self, name: str, owner: int) -> None:
        most = MAX_REGIONS if owner == NO_OWNER else MAX_REGIONS_OF_OWNER
        if len(self._of(owner)) >= most:
            raise _wrong(f"you have {most} shared memory regions already", name=name)
        if len(self._regions) >= MAX_REGIONS:
            raise _wrong(f"there are {MAX_REGIONS} shared memory regions already", name=name)


class RequestMemory(msgspec.Struct, eq=False):
    """What one request may read and write: the regions of the user who sent it."""

    memory: SharedMemory
    client: Connected
    regions: dict[str, Region] = {}
    """By name; those that the request has named."""

    def reserve(self, where: SharedMemoryRange) -> None:
        """Finds the region.

        Raises:
            InvalidRequest: there is none.
            Forbidden: this client may use none.
        """
        if where.region not in self.regions:
            owner = self.memory.owner_of(self.client.peer())
            self.regions[where.region] = self.memory.find(where.region, owner=owner)

    def follow(self, ticket: Ticket) -> None:
        """Counts the request as a use of its regions until it has ended."""
        if self.regions and not ticket.done:
            for region in self.regions.values():
                region.uses += 1
            ticket.when_ended(self._ended)

    def _ended(self, _: Ticket) -> None:
        # The answer is encoded in the same turn of the event loop, so nothing comes between.
        for region in self.regions.values():
            region.uses -= 1

    def read(
        self, where: SharedMemoryRange, *, name: str, datatype: str, shape: tuple[int, ...]
    ) -> np.ndarray:
        """The tensor ``name``, copied out.

        Raises:
            InvalidRequest: no such region, a range outside of it, or one whose size is not that
                of the shape.
            Forbidden: as ``reserve``.
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

    def _range(self, where: SharedMemoryRange, tensor: str) -> tuple[int, int]:
        self.reserve(where)
        region = self.regions[where.region]
        if region.descriptor < 0:  # unregistered while the request waited for its model
            raise _unknown(where.region)
        if where.offset + where.byte_size > region.byte_size:
            raise _wrong(
                f"Invalid offset + byte size for shared memory region: '{where.region}': tensor "
                f"'{tensor}' would end at {where.offset + where.byte_size}, the region has "
                f"{region.byte_size} bytes",
                code="outside_of_region",
                tensor=tensor,
            )
        return region.descriptor, region.offset + where.offset


def _opened(name: str, key: str, owner: int) -> int:
    plain = key.removeprefix("/")
    if not _KEY.fullmatch(key) or plain in ("", ".", "..") or plain.startswith(_SEMAPHORE):
        raise _wrong(
            f"Unable to open shared memory region: {key!r} is no key",
            hint="a key is a name as in shm_open(3): one slash, at the beginning, if any",
            name=name,
        )
    try:
        descriptor = os.open(
            _OBJECTS / plain,
            os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
        )
    except OSError as error:
        raise _wrong(
            f"Unable to open shared memory region: '{key}': {error.strerror}", name=name, key=key
        ) from None
    found = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(found.st_mode):
        problem = "is no shared memory"
    elif owner not in (NO_OWNER, found.st_uid):
        problem = "belongs to another user than the client"
    if problem:
        os.close(descriptor)
        raise _wrong(f"Unable to open shared memory region: '{key}' {problem}", name=name)
    return descriptor


def _read(descriptor: int, start: int, where: SharedMemoryRange, tensor: str) -> bytes:
    content = os.pread(descriptor, where.byte_size, start)
    if len(content) != where.byte_size:
        raise _truncated(where, tensor)
    return content


def _unknown(name: str) -> InvalidRequest:
    return _wrong(
        f"Unable to find shared memory region: '{name}'",
        code="unknown_region",
        hint="register it first; only regions of the user that the client runs as are found",
        name=name,
    )


def _unavailable(access: Access) -> Forbidden:
    if access == "off":
        return Forbidden(
            "this server takes no shared memory",
            code="shared_memory_off",
            hint="send the tensors with the request, or start the server with "
            'server.shared_memory = "local"',
            setting="server.shared_memory",
        )
    return Forbidden(
        "shared memory is only for clients on the server's machine, and the user of this one "
        "cannot be told",
        code="shared_memory_not_local",
        hint="connect to a loopback address, from the server's network namespace; or, where every "
        "client may see every shared memory object, start the server with server.shared_memory = "
        '"any"',
        setting="server.shared_memory",
    )


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
