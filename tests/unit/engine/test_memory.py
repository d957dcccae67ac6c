"""What is allocated is seen, what overlapped is not guessed."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from headrace.engine import memory
from headrace.engine.memory import Meter

MB = 1_000_000
LARGE = 64 * MB
SLACK = 8 * MB
"""What everything else in this process may allocate or free meanwhile."""


@contextmanager
def allocated(size: int) -> Iterator[None]:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.free.restype = None
    block = library.malloc(size)
    assert block
    ctypes.memset(block, 1, size)  # resident, where only that is known
    try:
        yield
    finally:
        library.free(block)


def test_an_allocation_is_seen_and_so_is_its_end() -> None:
    before = memory.allocated_bytes()
    with allocated(LARGE):
        assert abs(memory.allocated_bytes() - before - LARGE) < SLACK
    assert abs(memory.allocated_bytes() - before) < SLACK


def test_many_small_ones_are_seen_as_well() -> None:
    before = memory.allocated_bytes()
    kept = [bytes(2000) for _ in range(20_000)]
    assert memory.allocated_bytes() - before > 0.9 * len(kept) * 2000


def test_what_is_resident() -> None:
    with allocated(LARGE):
        assert memory.resident_bytes() > LARGE


def test_freed_memory_goes_back() -> None:
    kept = [bytes(2000) for _ in range(20_000)]
    holding = memory.resident_bytes()
    size = len(kept) * 2000
    kept.clear()
    memory.give_back()
    assert memory.resident_bytes() < holding - size / 2


def test_where_the_c_library_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_library", lambda: object())
    assert memory.allocated_bytes() > MB
    memory.give_back()


def test_what_other_processes_take() -> None:
    script = f"kept = b'x' * {LARGE}; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        alone = memory.processes_bytes([child.pid])
        assert alone > LARGE
        assert memory.processes_bytes([child.pid, child.pid]) > 1.9 * LARGE
        child.communicate(b"\n")
    assert memory.processes_bytes([child.pid]) == 0  # gone: nothing, and no error
    assert memory.processes_bytes([]) == 0


def test_a_load_that_was_alone_is_measured() -> None:
    meter = Meter()
    for _ in range(2):  # one after another is alone too
        reading = meter.begin()
        with allocated(LARGE):
            took = meter.end(reading)
        assert took is not None
        assert abs(took - LARGE) < SLACK


def test_a_load_that_frees_more_than_it_takes_takes_nothing() -> None:
    meter = Meter()
    with allocated(LARGE):
        reading = meter.begin()
    assert meter.end(reading) == 0


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_of_loads_that_overlap_none_is_measured(*, first_ends_first: bool) -> None:
    meter = Meter()
    readings = [meter.begin(), meter.begin()]
    for reading in readings if first_ends_first else reversed(readings):
        assert meter.end(reading) is None
    assert meter.end(meter.begin()) is not None  # and the next is alone again


def test_one_that_begins_and_ends_within_another_spoils_it() -> None:
    meter = Meter()
    outer = meter.begin()
    assert meter.end(meter.begin()) is None
    assert meter.end(outer) is None
