"""What models take, measured and not guessed, and how it is given back.

In process the C library's own account is read (``mallinfo2``): what is allocated, whatever the
heap keeps for later. It says 40.1 MB for a model with 40.1 MB of weights, four times in a row,
where the resident set grew by 74 to 104 MB (ONNX Runtime 1.31, glibc 2.36): building a session
takes the file and a copy, and what is freed stays with the process until ``malloc_trim``.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_FIELDS = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


class _Account(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]  # mallinfo(3)


@cache
def _library() -> Any:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = _Account
    return library


def allocated_bytes() -> int:
    """What is allocated in this process; where the C library does not tell, what is resident."""
    library = _library()
    if not hasattr(library, "mallinfo2"):
        return resident_bytes()
    account = library.mallinfo2()
    return int(account.uordblks + account.hblkhd)


def give_back() -> None:
    """Returns freed memory to the system. About 10 ms for a heap of 100 MB; other threads that
    allocate wait for a part of it."""
    library = _library()
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def resident_bytes() -> int:
    """The resident set of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def processes_bytes(pids: Iterable[int]) -> int:
    """What other processes take, pages that several share divided among them (PSS)."""
    return sum(map(_process_bytes, pids))


def _process_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


class Reading:
    """The account as a load begins."""

    __slots__ = ("allocated", "alone", "serial")

    def __init__(self, allocated: int, serial: int, *, alone: bool) -> None:
        self.allocated = allocated
        self.serial = serial
        self.alone = alone


class Meter:
    """Says what a load took, where no other load was under way meanwhile. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self._serial = 0

    def begin(self) -> Reading:
        """A load begins."""
        with self._lock:
            self._under_way += 1
            self._serial += 1
            return Reading(allocated_bytes(), self._serial, alone=self._under_way == 1)

    def end(self, reading: Reading) -> int | None:
        """It is over; what is allocated more than before, or None: others loaded too."""
        with self._lock:
            self._under_way -= 1
            if not reading.alone or self._serial != reading.serial:
                return None
        return max(0, allocated_bytes() - reading.allocated)
