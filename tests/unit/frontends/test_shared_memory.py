"""Tensors in shared memory: validated ranges, copies, and objects that change underneath."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import Forbidden, InvalidRequest
from headrace.frontends import shared_memory
from headrace.frontends.peer import Peer
from headrace.frontends.shared_memory import RequestMemory, SharedMemory
from headrace.runtimes.shared_tensors import create_segments
from headrace.types import DTYPE_OF, SharedMemoryRange, Tensor

OBJECTS = Path("/dev/shm")
SIZE = 256


@pytest.fixture
def item() -> Iterator[Path]:
    """An object of 256 bytes, 0 to 255."""
    path = OBJECTS / f"headrace-test-{uuid.uuid4().hex}"
    path.write_bytes(bytes(range(SIZE)))
    yield path
    path.unlink(missing_ok=True)


ME = os.getuid()
OTHER = ME + 1


class Client:
    """A client of the user ``uid``, None where the user cannot be told."""

    def __init__(self, uid: int | None) -> None:
        self._peer = Peer(user=uid)

    def peer(self) -> Peer:
        return self._peer


def memory_for(uid: int | None = ME, memory: SharedMemory | None = None) -> RequestMemory:
    return RequestMemory(memory or SharedMemory("local", lambda peer: None), Client(uid))


class Mine:
    """What a client of this process's user can do with one server."""

    def __init__(self) -> None:
        memory = self.memory = SharedMemory("local", lambda peer: None)
        self.register = partial(memory.register, owner=ME)
        self.unregister = partial(memory.unregister, owner=ME)
        self.status = partial(memory.status, owner=ME)
        self.close = memory.close

    def read(self, where: SharedMemoryRange, **of: Any) -> np.ndarray:
        return memory_for(ME, self.memory).read(where, **of)

    def write(self, where: SharedMemoryRange, tensor: Tensor) -> int:
        return memory_for(ME, self.memory).write(where, tensor)


@pytest.fixture
def shared(item: Path) -> Iterator[Mine]:
    """It, registered as ``r`` but for its first and last 16 bytes."""
    mine = Mine()
    mine.register("r", key=f"/{item.name}", offset=16, byte_size=SIZE - 32)
    yield mine
    mine.close()


def at(offset: int, size: int, region: str = "r") -> SharedMemoryRange:
    return SharedMemoryRange(region, offset, size)


def refused(call: Any, *args: Any, **kwargs: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call(*args, **kwargs)
    return caught.value


def test_what_is_registered_is_told(item: Path, shared: Mine) -> None:
    region = {"name": "r", "key": f"/{item.name}", "offset": 16, "byte_size": SIZE - 32}
    assert shared.status() == [region]
    assert shared.status("r") == [region]
    assert "Unable to find system shared memory region: 'x'" in refused(shared.status, "x").message


def test_a_name_is_registered_once(item: Path, shared: Mine) -> None:
    again = refused(shared.register, "r", key=item.name, offset=0, byte_size=1)
    assert "shared memory region 'r' already in manager" in again.message
    shared.unregister("r")
    shared.unregister("r")  # as in Triton, no error
    shared.register("r", key=item.name, offset=0, byte_size=1)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "sem.lock",
        "/sem.lock",
        "..",
        "/..",
        ".",
        "a/b",
        "/../etc/passwd",
        "//x",
        "x\0y",
        "n" * 300,
    ],
)
def test_a_key_that_is_none(key: str) -> None:
    error = refused(Mine().register, "r", key=key, offset=0, byte_size=1)
    assert error.message.startswith("Unable to open shared memory region")


def test_a_key_of_nothing_and_of_what_is_no_memory(item: Path) -> None:
    memory = Mine()
    assert "No such file" in refused(memory.register, "r", key="/no", offset=0, byte_size=1).message
    link = item.with_name(item.name + "-link")
    link.symlink_to("/etc/hostname")
    pipe = item.with_name(item.name + "-pipe")
    os.mkfifo(pipe)
    try:
        for path in (link, pipe):
            refused(memory.register, "r", key=path.name, offset=0, byte_size=1)
    finally:
        link.unlink()
        pipe.unlink()
    assert memory.status() == []


@pytest.mark.parametrize(
    ("offset", "size"), [(0, SIZE + 1), (1, SIZE), (SIZE, 1), (-1, 4), (0, 0), (0, -1), (2**62, 4)]
)
def test_a_region_lies_in_its_object(item: Path, offset: int, size: int) -> None:
    memory = Mine()
    refused(memory.register, "r", key=item.name, offset=offset, byte_size=size)
    assert memory.status() == []


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_there_are_so_many_and_no_more(item: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 4)
    memory = Mine()
    before = open_files()
    for number in range(4):
        memory.register(str(number), key=item.name, offset=0, byte_size=1)
    assert open_files() == before + 4
    error = refused(memory.register, "one more", key=item.name, offset=0, byte_size=1)
    assert "4 shared memory regions already" in error.message
    memory.unregister()
    assert open_files() == before
    assert memory.status() == []


def test_a_tensor_is_read_as_a_copy(item: Path, shared: Mine) -> None:
    array = shared.read(at(4, 8), name="x", datatype="UINT8", shape=(2, 4))
    assert array.tolist() == [[20, 21, 22, 23], [24, 25, 26, 27]]
    with item.open("r+b") as file:
        file.seek(20)
        file.write(b"\0" * 8)
    assert array[0, 0] == 20


@pytest.mark.parametrize("datatype", [name for name in DTYPE_OF if name != "BYTES"])
def test_every_datatype_there_and_back(datatype: str, shared: Mine) -> None:
    dtype = DTYPE_OF[datatype]
    array = (np.arange(6) % 2).astype(dtype).reshape(2, 3)
    where = at(3, array.nbytes)  # not aligned
    assert shared.write(where, Tensor("y", datatype, array.shape, array)) == array.nbytes
    got = shared.read(where, name="y", datatype=datatype, shape=(2, 3))
    assert got.dtype == dtype
    assert got.tolist() == array.tolist()


def test_texts_there_and_back(shared: Mine) -> None:
    array = np.array([b"", b"abc", "ü".encode()], dtype=object)
    size = shared.write(at(0, 100), Tensor("y", "BYTES", (3,), array))
    assert size == 4 * 3 + 5
    got = shared.read(at(0, size), name="y", datatype="BYTES", shape=(3,))
    assert got.tolist() == array.tolist()


def test_anything_but_zero_is_true(shared: Mine) -> None:
    assert shared.read(at(0, 2), name="x", datatype="BOOL", shape=(2,)).tolist() == [True, True]


@pytest.mark.parametrize(
    ("where", "shape", "text"),
    [
        (at(0, 8, "other"), (2,), "Unable to find shared memory region: 'other'"),
        (at(SIZE - 32, 4), (1,), "Invalid offset"),
        (at(0, SIZE - 28), (57,), "Invalid offset"),
        (at(0, 8), (3,), "unexpected total byte size 8"),
        (at(0, 8), (2**40, 2**40), "unexpected total byte size 8"),
    ],
)
def test_a_range_that_is_wrong(
    where: SharedMemoryRange, shape: tuple[int, ...], text: str, shared: Mine
) -> None:
    error = refused(shared.read, where, name="x", datatype="FP32", shape=shape)
    assert text in error.message


def test_an_output_that_does_not_fit(item: Path, shared: Mine) -> None:
    array = np.zeros(4, np.float32)
    error = refused(shared.write, at(0, 15), Tensor("y", "FP32", (4,), array))
    assert "should be at least 16 bytes" in error.message
    assert item.read_bytes() == bytes(range(SIZE))


def test_an_object_that_was_cut_is_an_error_and_no_signal(item: Path, shared: Mine) -> None:
    os.truncate(item, 20)
    error = refused(shared.read, at(0, 8), name="x", datatype="UINT8", shape=(8,))
    assert error.code == "region_truncated"
    refused(shared.read, at(0, 8), name="x", datatype="BYTES", shape=(1,))
    refused(shared.write, at(0, 8), Tensor("y", "UINT8", (8,), np.zeros(8, np.uint8)))
    assert item.stat().st_size == 20


def test_an_object_that_is_gone_is_still_there_for_us(item: Path, shared: Mine) -> None:
    item.unlink()
    got = shared.read(at(0, 2), name="x", datatype="UINT8", shape=(2,))
    assert got.tolist() == [16, 17]


@settings(max_examples=200, deadline=None)
@given(offset=st.integers(0, 2**40), size=st.integers(0, 2**40))
def test_no_range_shows_what_is_not_in_the_region(offset: int, size: int) -> None:
    path = OBJECTS / f"headrace-test-{uuid.uuid4().hex}"
    path.write_bytes(b"s" * 8 + b"r" * 16 + b"s" * 8)
    memory = Mine()
    try:
        memory.register("r", key=path.name, offset=8, byte_size=16)
        where = at(offset, size)
        if offset + size > 16:
            refused(memory.read, where, name="x", datatype="UINT8", shape=(size,))
        else:
            got = memory.read(where, name="x", datatype="UINT8", shape=(size,))
            assert got.tobytes() == b"r" * size
    finally:
        memory.close()
        path.unlink()


# -- owners -------------------------------------------------------------------------------------


def test_an_object_of_another_user_is_refused(item: Path) -> None:
    """Also where the server's user can open it: 0600 says nothing if that is root."""
    memory = SharedMemory()
    before = open_files()
    error = refused(memory.register, "r", key=item.name, offset=0, byte_size=1, owner=OTHER)
    assert "belongs to another user than the client" in error.message
    assert open_files() == before


def test_a_hard_link_does_not_change_whose_an_object_is(item: Path) -> None:
    link = item.with_name(item.name + "-link")
    link.hardlink_to(item)
    try:
        refused(SharedMemory().register, "r", key=link.name, offset=0, byte_size=1, owner=OTHER)
    finally:
        link.unlink()


def test_names_are_each_owners_own(
    item: Path, shared: Mine, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = shared.memory
    theirs = memory_for(OTHER, memory)
    for call in (theirs.reserve, partial(theirs.read, name="x", datatype="UINT8", shape=(8,))):
        error = refused(call, at(0, 8))
        assert "Unable to find shared memory region: 'r'" in error.message
        assert "r" not in error.hint.split()
    assert memory.status(owner=OTHER) == []
    assert refused(memory.status, "r", owner=OTHER).code == "unknown_region"
    memory.unregister("r", owner=OTHER)
    memory.unregister(owner=OTHER)
    assert len(shared.status()) == 1
    monkeypatch.setattr(shared_memory.os, "fstat", lambda _: _Stat(OTHER))
    memory.register("r", key=item.name, offset=0, byte_size=8, owner=OTHER)  # the same name
    assert [r["byte_size"] for r in memory.status(owner=OTHER)] == [8]
    assert [r["byte_size"] for r in shared.status()] == [SIZE - 32]


class _Stat:
    st_mode = 0o100600
    st_size = SIZE

    def __init__(self, uid: int) -> None:
        self.st_uid = uid


def test_one_owner_cannot_take_every_place(item: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 4)
    monkeypatch.setattr(shared_memory, "MAX_REGIONS_OF_OWNER", 2)
    mine = Mine()
    for name in "ab":
        mine.register(name, key=item.name, offset=0, byte_size=1)
    error = refused(mine.register, "c", key=item.name, offset=0, byte_size=1)
    assert "you have 2 shared memory regions already" in error.message
    monkeypatch.setattr(shared_memory.os, "fstat", lambda _: _Stat(OTHER))
    mine.memory.register("a", key=item.name, offset=0, byte_size=1, owner=OTHER)
    mine.close()


def test_who_may_use_any(item: Path) -> None:
    stranger, known = Client(None), Client(ME)
    local, anyone, off = (SharedMemory(how, lambda _: None) for how in ("local", "any", "off"))
    assert local.owner_of(known.peer()) == ME
    for memory, peer, code in (
        (local, stranger.peer(), "shared_memory_not_local"),
        (off, known.peer(), "shared_memory_off"),
    ):
        with pytest.raises(Forbidden) as caught:
            memory.owner_of(peer)
        assert caught.value.code == code
        assert "server.shared_memory" in caught.value.hint
        assert memory.find_owner(peer) is None
    assert memory.status(owner=None) == []
    owner = anyone.owner_of(stranger.peer())
    anyone.register("r", key=item.name, offset=0, byte_size=8, owner=owner)
    assert memory_for(OTHER, anyone).read(at(0, 8), name="x", datatype="UINT8", shape=(8,)).any()
    anyone.close()


def test_the_user_of_a_connection_is_looked_up_once() -> None:
    asked: list[Peer] = []

    def look_up(peer: Peer) -> int:
        asked.append(peer)
        return 7

    memory, peer = SharedMemory("local", look_up), Peer()
    assert [memory.owner_of(peer) for _ in range(3)] == [7, 7, 7]
    assert len(asked) == 1


# -- regions in use -----------------------------------------------------------------------------


class Running:
    """The part of a ticket that shared memory knows."""

    done = False

    def __init__(self) -> None:
        self.end: Any = None

    def when_ended(self, then: Any) -> None:
        self.end = then


def test_a_region_in_use_is_not_unregistered(item: Path, shared: Mine) -> None:
    request = memory_for(ME, shared.memory)
    request.reserve(at(0, 8))
    ticket: Any = Running()
    request.follow(ticket)
    shared.register("idle", key=item.name, offset=0, byte_size=1)
    for name in ("r", ""):
        error = refused(shared.unregister, name)
        assert (error.code, "currently in use" in error.message) == ("region_in_use", True)
    assert [region["name"] for region in shared.status()] == ["r"]
    ticket.end(ticket)
    request.write(at(0, 2), Tensor("y", "UINT8", (2,), np.zeros(2, np.uint8)))  # its own answer
    shared.unregister("r")
    assert shared.status() == []


def test_a_region_that_was_unregistered_is_not_written_to(item: Path, shared: Mine) -> None:
    """A request that waits for its model to be loaded does not count as a use."""
    request = memory_for(ME, shared.memory)
    request.reserve(at(0, 8))
    shared.unregister("r")
    tensor = Tensor("y", "UINT8", (8,), np.zeros(8, np.uint8))
    with (item.with_name(item.name + "-x")).open("w+b") as other:  # has the descriptor's number
        assert refused(request.write, at(0, 8), tensor).code == "unknown_region"
        assert other.read() == b""
    Path(other.name).unlink()
    assert item.read_bytes() == bytes(range(SIZE))


def test_our_own_segments_have_no_name_that_could_be_a_key() -> None:
    before = set(OBJECTS.iterdir())
    descriptors = create_segments("headrace-test")
    try:
        assert set(OBJECTS.iterdir()) == before
        for descriptor in descriptors:
            target = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            assert target.startswith("/memfd:")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
