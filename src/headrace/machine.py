"""What this process may use of the machine it runs on: cores, memory, instruction sets.

Inside a container the machine's size and the container's share are two numbers, and only
the second is true for us: threads beyond the share are throttled, memory beyond it kills.
So every number here is the smallest of what the hardware, the CPU affinity and the control
groups allow (version 1 and 2; every level of the hierarchy, since a limit of a parent holds
for its children: https://docs.kernel.org/admin-guide/cgroup-v2.html).

``root`` stands for ``/`` and is an argument so that a test can describe another machine.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

SLASH = Path("/")

_UNLIMITED_BYTES = 1 << 60
"""Control groups of version 1 say "no limit" as the largest page-aligned 63-bit number."""


def usable_cores(root: Path = SLASH) -> int:
    """Number of threads that can compute at one time without being throttled; at least 1.

    A quota of 2.5 CPUs gives 2: three busy threads would all be stopped for a part of every
    scheduling period, which costs more latency than the half core brings throughput.
    """
    quota = cpu_quota(root)
    cores = affinity_cores()
    return cores if quota is None else max(1, min(cores, int(quota)))


def affinity_cores() -> int:
    """Number of logical CPUs the scheduler may put this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = SLASH) -> float | None:
    """CPUs granted by the control groups (2.5 = two and a half); None where unlimited."""
    found: list[float] = []
    for folder in _groups(root, "cpu"):
        words = _read(folder / "cpu.max").split()  # version 2: "max 100000" or "250000 100000"
        if len(words) == 2 and words[0].isdigit():
            found.append(int(words[0]) / int(words[1]))
        quota = _read(folder / "cpu.cfs_quota_us")  # version 1: -1 means unlimited
        period = _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            found.append(int(quota) / int(period))
    return min((cpus for cpus in found if cpus > 0), default=None)


def memory_bytes(root: Path = SLASH) -> int:
    """Bytes this process may hold: physical memory or the control groups' limit; 0 = unknown."""
    total = 0
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024  # the kernel says kB and means KiB
    limit = memory_limit_bytes(root)
    return min(total, limit) if limit is not None and total else limit or total


def memory_limit_bytes(root: Path = SLASH) -> int | None:
    """The control groups' limit on memory in bytes; None where there is none."""
    limits = [
        int(text)
        for folder in _groups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name)).isdigit()  # version 2 says "max" for no limit
    ]
    return min((limit for limit in limits if limit < _UNLIMITED_BYTES), default=None)


def can_hold_children() -> bool:
    """Whether this system has what models in child processes need: Linux 5.3 or later."""
    return hasattr(os, "pidfd_open") and hasattr(os, "memfd_create")


def oom_kills(root: Path = SLASH) -> int | None:
    """Processes of this control group that the kernel killed for memory so far; None: not told.

    Whoever's limit was met, a parent's too, the kernel counts in the group of the process that
    it killed: ``oom_kill`` in ``memory.events`` (version 2) or ``memory.oom_control`` (version
    1, since Linux 4.13). Outside any group ``/proc/vmstat`` counts for the whole machine.
    """
    files = [
        folder / name
        for folder in _groups(root, "memory")
        for name in ("memory.events", "memory.oom_control")
    ]
    for file in (*files, root / "proc/vmstat"):
        for line in _read(file).splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdigit():
                return int(count)
    return None


def cpu_model(root: Path = SLASH) -> str:
    """The processor's name as the kernel tells it, or the architecture where it does not."""
    return _cpuinfo(root, "model name") or platform.processor() or platform.machine() or "unknown"


def cpu_flags(root: Path = SLASH) -> frozenset[str]:
    """Instruction-set extensions in the kernel's spelling (``avx512_vnni``, ``amx_int8`` ...).

    On ARM these are the ``Features`` (``asimd``, ``sve``, ``bf16`` ...). Empty where the
    kernel does not say.
    """
    return frozenset((_cpuinfo(root, "flags") or _cpuinfo(root, "Features")).split())


def describe(root: Path = SLASH) -> dict[str, Any]:
    """All of it as JSON-serialisable facts, for reports that must name their machine."""
    return {
        "cpu": cpu_model(root),
        "architecture": platform.machine(),
        "logical_cpus": os.cpu_count() or 1,
        "affinity_cores": affinity_cores(),
        "cpu_quota": cpu_quota(root),
        "usable_cores": usable_cores(root),
        "memory_bytes": memory_bytes(root),
        "memory_limit_bytes": memory_limit_bytes(root),
        "cpu_flags": sorted(cpu_flags(root)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpuinfo(root: Path, key: str) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups this process is in, the innermost first.

    Where a container sees its own group as the root of the mount while
    ``/proc/self/cgroup`` tells the path on the host, the inner folders do not exist and
    reading them finds nothing; the mount's root is always among those yielded.
    """
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 has no controller named here and one hierarchy; version 1 has a folder each.
        base = mount / controllers if controllers else mount
        inner = PurePosixPath(path.lstrip("/"))
        for group in (inner, *inner.parents):
            yield base / group


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
