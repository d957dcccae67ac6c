"""Readings of a machine described by files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.telemetry.process import UsageReader


def describe(proc: Path, *, busy: int, idle: int) -> None:
    (proc / "self/fd").mkdir(parents=True, exist_ok=True)
    (proc / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 7 7\ncpu0 1 2 3 4\n")
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n")
    (proc / "self/statm").write_text("500 100 50 1 0 50 0\n")
    for number in range(4):
        (proc / "self/fd" / str(number)).touch()


def test_processors_are_measured_between_two_readings(tmp_path: Path) -> None:
    describe(tmp_path, busy=100, idle=100)
    reader = UsageReader(tmp_path)
    describe(tmp_path, busy=130, idle=110)
    assert reader.machine().utilization == pytest.approx(30 / 40)
    assert reader.machine().utilization == 0  # no time has passed since


def test_memory_that_is_not_available_is_used(tmp_path: Path) -> None:
    describe(tmp_path, busy=1, idle=1)
    reading = UsageReader(tmp_path).machine()
    assert (reading.memory_total_bytes, reading.memory_used_bytes) == (1000 * 1024, 400 * 1024)


def test_the_process_itself(tmp_path: Path) -> None:
    describe(tmp_path, busy=1, idle=1)
    reading = UsageReader(tmp_path).process()
    assert reading.resident_bytes == 100 * os.sysconf("SC_PAGE_SIZE")
    assert reading.open_files == 3  # without the one that lists the folder
    assert reading.cpu_seconds > 0


def test_a_machine_that_tells_nothing_reads_as_zero(tmp_path: Path) -> None:
    reader = UsageReader(tmp_path)
    assert reader.process().resident_bytes == 0
    assert reader.process().open_files == 0
    assert reader.machine().utilization == 0
    assert reader.machine().memory_total_bytes == 0


def test_this_machine() -> None:
    reader = UsageReader()
    assert 0 <= reader.machine().utilization <= 1
    assert reader.process().uptime_seconds >= 0
