"""What this process and its machine have used so far, read from ``/proc`` where there is one."""

from __future__ import annotations

import os
import time
from pathlib import Path

from headrace.telemetry.snapshot import MachineReading, ProcessReading

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]  # checked before every use

PROC = Path("/proc")


class UsageReader:
    """Reads the usage of this process, and of the machine since the last reading.

    ``proc`` stands for ``/proc`` and is an argument so that a test can describe a machine.
    """

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._started = time.monotonic()
        self._last = self._processor_ticks()

    def process(self) -> ProcessReading:
        """CPU time of all threads, resident memory, open files, time since the start."""
        used = os.times()
        return ProcessReading(
            cpu_seconds=used.user + used.system,
            resident_bytes=self._resident_bytes(),
            open_files=self._open_files(),
            max_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else 0,
            uptime_seconds=time.monotonic() - self._started,
        )

    def machine(self) -> MachineReading:
        """How busy all processors were since the last call (or the start), 0-1, and memory."""
        busy, total = self._processor_ticks()
        busy_before, total_before = self._last
        self._last = busy, total
        elapsed = total - total_before
        memory = self._memory_kib()
        size = memory.get("MemTotal", 0)
        return MachineReading(
            utilization=(busy - busy_before) / elapsed if elapsed > 0 else 0.0,
            memory_total_bytes=size * 1024,
            memory_used_bytes=(size - memory.get("MemAvailable", size)) * 1024,
        )

    def _resident_bytes(self) -> int:
        pages = self._read("self/statm").split()
        return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0

    def _open_files(self) -> int:
        try:
            # The listing itself holds one descriptor open.
            return sum(1 for _ in (self._proc / "self/fd").iterdir()) - 1
        except OSError:
            return 0

    def _processor_ticks(self) -> tuple[int, int]:
        """(busy, busy + idle) of all processors together; see proc_stat(5)."""
        line = self._read("stat").partition("\n")[0].split()
        if len(line) < 6 or line[0] != "cpu":
            return 0, 0
        # user nice system idle iowait irq softirq steal; guest time is already in user.
        ticks = [int(field) for field in line[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)

    def _memory_kib(self) -> dict[str, int]:
        fields = (line.split() for line in self._read("meminfo").splitlines())
        return {field[0].rstrip(":"): int(field[1]) for field in fields if len(field) > 1}

    def _read(self, name: str) -> str:
        try:
            return (self._proc / name).read_text(encoding="ascii")
        except OSError:
            return ""
