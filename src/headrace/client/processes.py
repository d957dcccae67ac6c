"""CPU time of the server's processes, from /proc: what a request costs, whatever the rate.

CPU time is the figure that holds on a shared machine: a neighbour makes requests slower,
not more expensive. Sources: proc(5), fields of /proc/PID/stat and /proc/net/tcp.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

_PROC = Path("/proc")
_LISTEN = "0A"  # TCP_LISTEN in the kernel's own table of states


class CpuReading(msgspec.Struct, frozen=True):
    """Seconds of CPU that a set of process trees has used so far, and its processes."""

    seconds: float
    pids: tuple[int, ...]


def cpu_of(roots: Iterable[int], proc: Path = _PROC) -> CpuReading:
    """User and system time of these processes and all below them.

    Living descendants are read one by one; those that ended are in their parent's count of
    children. Resolution is that of the kernel's clock tick, usually 10 ms.
    """
    roots = tuple(roots)
    if not roots:
        return CpuReading(0.0, ())
    stats = _all_stats(proc)
    pids = _tree(roots, stats)
    ticks = sum(stats[pid].ticks for pid in pids)
    return CpuReading(ticks / os.sysconf("SC_CLK_TCK"), tuple(sorted(pids)))


class Meter:
    """CPU time of this process and of the server's between ``start`` and ``stop``.

    ``own_s`` and ``server_s`` are seconds over ``wall_s``; ``server_s`` is None where there
    is no process to read, or it ended meanwhile and took its figures along.
    """

    def __init__(self, pids: tuple[int, ...] = ()) -> None:
        self.pids = pids
        self.own_s = 0.0
        self.server_s: float | None = None
        self.wall_s = 0.0
        self._before = CpuReading(0.0, ())
        self._own_before = 0.0
        self._started = 0.0

    def start(self) -> None:
        """At the first request."""
        self._before = cpu_of(self.pids)
        self._own_before = time.process_time()
        self._started = time.monotonic()

    def stop(self) -> None:
        """At the last answer."""
        self.wall_s = time.monotonic() - self._started
        self.own_s = time.process_time() - self._own_before
        after = cpu_of(self.pids)
        if after.pids:
            self.server_s = max(0.0, after.seconds - self._before.seconds)
            self.pids = after.pids


def listeners(port: int, proc: Path = _PROC) -> tuple[int, ...]:
    """Processes with a listening TCP socket on this port, as far as we may look.

    Other users' processes stay unseen without their rights, and so does everything where
    there is no /proc; then the answer is empty.
    """
    inodes = {inode for table in ("net/tcp", "net/tcp6") for inode in _inodes(proc / table, port)}
    if not inodes:
        return ()
    links = {f"socket:[{inode}]" for inode in inodes}
    return tuple(sorted(pid for pid in _pids(proc) if _holds(proc / str(pid) / "fd", links)))


class _Stat(msgspec.Struct, frozen=True):
    parent: int
    ticks: int


def _pids(proc: Path) -> list[int]:
    try:
        return [int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()]
    except OSError:
        return []


def _all_stats(proc: Path) -> dict[int, _Stat]:
    stats = {}
    for pid in _pids(proc):
        try:
            text = (proc / str(pid) / "stat").read_text()
        except OSError:  # it ended meanwhile
            continue
        # The name in parentheses may itself contain blanks and parentheses.
        fields = text.rpartition(")")[2].split()
        utime_to_cstime = fields[11:15]  # fields 14 to 17 of proc(5), counted from 1
        stats[pid] = _Stat(int(fields[1]), sum(map(int, utime_to_cstime)))
    return stats


def _tree(roots: Iterable[int], stats: dict[int, _Stat]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.parent, []).append(pid)
    found: set[int] = set()
    left = [pid for pid in roots if pid in stats]
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, [])
    return found


def _inodes(table: Path, port: int) -> set[str]:
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return set()
    rows = [line.split() for line in lines]
    return {
        row[9]
        for row in rows
        if len(row) > 9 and row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port
    }


def _holds(folder: Path, links: set[str]) -> bool:
    try:
        entries = list(folder.iterdir())
    except OSError:
        return False
    return any(_link(entry) in links for entry in entries)


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:  # closed meanwhile
        return ""
