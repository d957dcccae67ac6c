"""Machines described by their files: what the kernel shows is what we report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from headrace import machine

UNLIMITED_V1 = "9223372036854771712"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n")
    write(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name\t: Turbine 9000\nflags : fpu avx2\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_machine_without_control_groups_is_limited_by_nothing(root: Path) -> None:
    assert machine.cpu_quota(root) is None
    assert machine.memory_limit_bytes(root) is None
    assert machine.memory_bytes(root) == 16 * 1024**3
    assert machine.usable_cores(root) == machine.affinity_cores() >= 1


def test_version_2_takes_the_tightest_limit_of_the_whole_path(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/kubepods/pod7/web\n")
    write(root, "sys/fs/cgroup/kubepods/pod7/web/cpu.max", "400000 100000\n")
    write(root, "sys/fs/cgroup/kubepods/pod7/web/memory.max", "max\n")
    write(root, "sys/fs/cgroup/kubepods/cpu.max", "250000 100000\n")
    write(root, "sys/fs/cgroup/kubepods/memory.max", f"{2 * 1024**3}\n")
    assert machine.cpu_quota(root) == 2.5
    assert machine.memory_bytes(root) == 2 * 1024**3


def test_version_1_keeps_a_folder_for_each_controller(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n")
    write(root, "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us", "150000\n")
    write(root, "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us", "100000\n")
    write(root, "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes", f"{1024**3}\n")
    assert machine.cpu_quota(root) == 1.5
    assert machine.usable_cores(root) == 1
    assert machine.memory_limit_bytes(root) == 1024**3


def test_version_1_spells_unlimited_as_a_number(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:memory:/\n3:cpu:/\n")
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", UNLIMITED_V1)
    assert machine.cpu_quota(root) is None
    assert machine.memory_limit_bytes(root) is None


def test_a_container_that_sees_its_own_group_as_the_root_is_found(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/docker/host-path-that-is-not-mounted-here\n")
    write(root, "sys/fs/cgroup/cpu.max", "100000 100000\n")
    assert machine.cpu_quota(root) == 1.0


def test_a_quota_below_one_cpu_still_gives_a_thread(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    write(root, "sys/fs/cgroup/cpu.max", "20000 100000\n")
    assert machine.usable_cores(root) == 1


def test_a_quota_above_the_affinity_changes_nothing(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    write(root, "sys/fs/cgroup/cpu.max", "102400000 100000\n")
    assert machine.usable_cores(root) == machine.affinity_cores()


def test_the_processor_is_named(root: Path) -> None:
    assert machine.cpu_model(root) == "Turbine 9000"
    assert machine.cpu_flags(root) == {"fpu", "avx2"}


def test_arm_calls_its_flags_features(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor : 0\nFeatures : fp asimd sve\n")
    assert machine.cpu_flags(tmp_path) == {"fp", "asimd", "sve"}
    assert machine.cpu_model(tmp_path)  # falls back to the architecture


def test_an_empty_machine_is_described_without_an_error(tmp_path: Path) -> None:
    facts = machine.describe(tmp_path)
    assert facts["memory_bytes"] == 0
    assert facts["cpu_flags"] == []
    json.dumps(facts)


def test_this_machine_is_described() -> None:
    facts = machine.describe()
    assert 1 <= facts["usable_cores"] <= (os.cpu_count() or 1)
    assert facts["memory_bytes"] > 0


def test_version_2_counts_kills_for_memory_in_the_innermost_group(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/pod/web\n")
    write(root, "sys/fs/cgroup/pod/web/memory.events", "low 7\noom 5\noom_kill 3\n")
    write(root, "sys/fs/cgroup/pod/memory.events", "oom_kill 11\noom_group_kill 0\n")
    assert machine.oom_kills(root) == 3


def test_a_container_that_sees_its_group_as_the_root_counts_there(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/seen/by/the/host\n")
    write(root, "sys/fs/cgroup/memory.events", "oom_group_kill 9\noom_kill 2\n")
    assert machine.oom_kills(root) == 2


def test_version_1_counts_kills_for_memory_beside_other_things(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:memory:/docker/ab\n3:cpu:/\n0::/\n")
    write(
        root,
        "sys/fs/cgroup/memory/docker/ab/memory.oom_control",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
    )
    assert machine.oom_kills(root) == 4


def test_without_groups_the_machine_counts_and_without_that_nobody_does(root: Path) -> None:
    assert machine.oom_kills(root) is None
    write(root, "proc/vmstat", "nr_free_pages 1\noom_kill 6\n")
    assert machine.oom_kills(root) == 6
