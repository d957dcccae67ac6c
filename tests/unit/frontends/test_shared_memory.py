"""Tensors in shared memory: validated ranges, copies, and objects that change underneath."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.frontends import shared_memory
from headrace.frontends.shared_memory import SharedMemory
from headrace.types import DTYPE_OF, SharedMemoryRange, Tensor

SIZE = 256


@pytest.fixture
def item() -> Iterator[Path]:
    """An object of 256 bytes, 0 to 255."""
    path = Path("/dev/shm") / f"headrace-test-{uuid.uuid4().hex}"
    path.write_bytes(bytes(range(SIZE)))
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def shared(item: Path) -> Iterator[SharedMemory]:
    """It, registered as ``r`` but for its first and last 16 bytes."""
    memory = SharedMemory()
    memory.register("r", key=f"/{item.name}", offset=16, byte_size=SIZE - 32)
    yield memory
    memory.close()


def at(offset: int, size: int, region: str = "r") -> SharedMemoryRange:
    return SharedMemoryRange(region, offset, size)


def refused(call: Any, *args: Any, **kwargs: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call(*args, **kwargs)
    return caught.value


def test_what_is_registered_is_told(item: Path, shared: SharedMemory) -> None:
    region = {"name": "r", "key": f"/{item.name}", "offset": 16, "byte_size": SIZE - 32}
    assert shared.status() == [region]
    assert shared.status("r") == [region]
    assert "Unable to find system shared memory region: 'x'" in refused(shared.status, "x").message


def test_a_name_is_registered_once(item: Path, shared: SharedMemory) -> None:
    again = refused(shared.register, "r", key=item.name, offset=0, byte_size=1)
    assert "shared memory region 'r' already in manager" in again.message
    shared.unregister("r")
    shared.unregister("r")  # as in Triton, no error
    shared.register("r", key=item.name, offset=0, byte_size=1)


@pytest.mark.parametrize(
    "key", ["", "/", "..", "/..", ".", "a/b", "/../etc/passwd", "//x", "x\0y", "n" * 300]
)
def test_a_key_that_is_none(key: str) -> None:
    error = refused(SharedMemory().register, "r", key=key, offset=0, byte_size=1)
    assert error.message.startswith("Unable to open shared memory region")


def test_a_key_of_nothing_and_of_what_is_no_memory(item: Path) -> None:
    memory = SharedMemory()
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
    memory = SharedMemory()
    refused(memory.register, "r", key=item.name, offset=offset, byte_size=size)
    assert memory.status() == []


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_there_are_so_many_and_no_more(item: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 4)
    memory = SharedMemory()
    before = open_files()
    for number in range(4):
        memory.register(str(number), key=item.name, offset=0, byte_size=1)
    assert open_files() == before + 4
    error = refused(memory.register, "one more", key=item.name, offset=0, byte_size=1)
    assert "4 shared memory regions already" in error.message
    memory.unregister()
    assert open_files() == before
    assert memory.status() == []


def test_a_tensor_is_read_as_a_copy(item: Path, shared: SharedMemory) -> None:
    array = shared.read(at(4, 8), name="x", datatype="UINT8", shape=(2, 4))
    assert array.tolist() == [[20, 21, 22, 23], [24, 25, 26, 27]]
    with item.open("r+b") as file:
        file.seek(20)
        file.write(b"\0" * 8)
    assert array[0, 0] == 20


@pytest.mark.parametrize("datatype", [name for name in DTYPE_OF if name != "BYTES"])
def test_every_datatype_there_and_back(datatype: str, shared: SharedMemory) -> None:
    dtype = DTYPE_OF[datatype]
    array = (np.arange(6) % 2).astype(dtype).reshape(2, 3)
    where = at(3, array.nbytes)  # not aligned
    assert shared.write(where, Tensor("y", datatype, array.shape, array)) == array.nbytes
    got = shared.read(where, name="y", datatype=datatype, shape=(2, 3))
    assert got.dtype == dtype
    assert got.tolist() == array.tolist()


def test_texts_there_and_back(shared: SharedMemory) -> None:
    array = np.array([b"", b"abc", "ü".encode()], dtype=object)
    size = shared.write(at(0, 100), Tensor("y", "BYTES", (3,), array))
    assert size == 4 * 3 + 5
    got = shared.read(at(0, size), name="y", datatype="BYTES", shape=(3,))
    assert got.tolist() == array.tolist()


def test_anything_but_zero_is_true(shared: SharedMemory) -> None:
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
    where: SharedMemoryRange, shape: tuple[int, ...], text: str, shared: SharedMemory
) -> None:
    error = refused(shared.read, where, name="x", datatype="FP32", shape=shape)
    assert text in error.message


def test_an_output_that_does_not_fit(item: Path, shared: SharedMemory) -> None:
    array = np.zeros(4, np.float32)
    error = refused(shared.write, at(0, 15), Tensor("y", "FP32", (4,), array))
    assert "should be at least 16 bytes" in error.message
    assert item.read_bytes() == bytes(range(SIZE))


def test_an_object_that_was_cut_is_an_error_and_no_signal(item: Path, shared: SharedMemory) -> None:
    os.truncate(item, 20)
    error = refused(shared.read, at(0, 8), name="x", datatype="UINT8", shape=(8,))
    assert error.code == "region_truncated"
    refused(shared.read, at(0, 8), name="x", datatype="BYTES", shape=(1,))
    refused(shared.write, at(0, 8), Tensor("y", "UINT8", (8,), np.zeros(8, np.uint8)))
    assert item.stat().st_size == 20


def test_an_object_that_is_gone_is_still_there_for_us(item: Path, shared: SharedMemory) -> None:
    item.unlink()
    got = shared.read(at(0, 2), name="x", datatype="UINT8", shape=(2,))
    assert got.tolist() == [16, 17]


@settings(max_examples=200, deadline=None)
@given(offset=st.integers(0, 2**40), size=st.integers(0, 2**40))
def test_no_range_shows_what_is_not_in_the_region(offset: int, size: int) -> None:
    path = Path("/dev/shm") / f"headrace-test-{uuid.uuid4().hex}"
    path.write_bytes(b"s" * 8 + b"r" * 16 + b"s" * 8)
    memory = SharedMemory()
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
