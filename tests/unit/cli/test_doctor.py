"""Facts of machines that a test describes, and the advice each deserves."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import checkup
from headrace.cli import main as cli
from headrace.cli.doctor import report

Facts = dict[str, Any]

SOUND: Facts = {
    "headrace": "0.1.0",
    "machine": {
        "cpu": "Turbine 9000",
        "architecture": "x86_64",
        "logical_cpus": 8,
        "affinity_cores": 8,
        "cpu_quota": None,
        "usable_cores": 8,
        "memory_bytes": 16 * checkup.GIB,
        "memory_limit_bytes": None,
        "cpu_flags": ["avx2", "avx512f", "avx_vnni"],
        "system": "Linux 6.1",
        "python": "3.11.7",
    },
    "accelerators": [],
    "limits": {"open_files": 65536, "open_files_hard": 65536, "shared_port": True},
    "cache": {"folder": "/c", "free_bytes": 9 * checkup.GIB, "writable": True},
    "packages": {"numpy": {"version": "2.0", "error": ""}},
    "runtimes": [
        {
            "name": "onnxruntime",
            "installed": True,
            "version": "1.2",
            "formats": ["onnx"],
            "needs": "",
        }
    ],
    "extras": {"text": [], "image": ["pillow"]},
    "tools": {"npm": None},
}


def unsound(*path: str, value: object) -> Facts:
    facts = copy.deepcopy(SOUND)
    place = facts
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return facts


def test_a_sound_machine_gets_no_advice() -> None:
    assert checkup.judge(SOUND) == []
    assert "nothing stands in the way" in list(report(SOUND, []))


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        (unsound("machine", "cpu_quota", value=2.5), "warning", "quota of 2.5 CPUs on 8 cores"),
        (unsound("machine", "cpu_flags", value=["sse2"]), "warning", "no AVX2"),
        (
            unsound("machine", "memory_bytes", value=checkup.GIB // 2),
            "warning",
            "0.5 GiB of memory",
        ),
        (unsound("limits", "open_files", value=1024), "warning", "1,024 open files"),
        (unsound("limits", "shared_port", value=False), "warning", "SO_REUSEPORT"),
        (unsound("cache", "free_bytes", value=1), "warning", "free in the cache folder /c"),
        (unsound("cache", "writable", value=False), "warning", "/c cannot be written"),
        (unsound("cache", value={"error": "port: wrong", "hint": "h"}), "broken", "port: wrong"),
        (unsound("runtimes", value=[]), "broken", "no runtime for ONNX"),
        (
            unsound("packages", "numpy", value={"version": "", "error": "ImportError: gone"}),
            "broken",
            "numpy cannot be imported: ImportError: gone",
        ),
    ],
)
def test_each_defect_is_named_with_what_to_do(facts: Facts, level: str, words: str) -> None:
    (finding,) = checkup.judge(facts)
    assert finding.level == level
    assert words in finding.what
    assert finding.advice
    shown = " ".join(" ".join(report(facts, [finding])).split())
    assert words in shown


@pytest.mark.parametrize(
    "facts",
    [
        unsound("limits", "open_files", value=-1),
        unsound("machine", "cpu_quota", value=8.0),
        unsound("machine", "memory_bytes", value=0),
        unsound("machine", "architecture", value="riscv64"),
    ],
    ids=["unlimited files", "quota of all cores", "unknown memory", "unknown architecture"],
)
def test_what_is_no_defect_is_not_complained_about(facts: Facts) -> None:
    assert checkup.judge(facts) == []
    assert list(report(facts, []))


def test_what_is_broken_comes_first() -> None:
    facts = unsound("limits", "open_files", value=10)
    facts["runtimes"] = []
    assert [finding.level for finding in checkup.judge(facts)] == ["broken", "warning"]


def test_the_report_tells_what_each_missing_extra_needs() -> None:
    shown = "\n".join(report(SOUND, []))
    assert "pip install 'headrace[image]' (missing: pillow)" in shown
    assert "accelerators   none found" in shown
    assert "AVX2, AVX-512, VNNI, no BF16, no AMX" in shown
    assert "8 usable: 8 of 8 by affinity, no quota" in shown


@pytest.fixture
def nvidia(tmp_path: Path) -> Path:
    gpu = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 42\n")
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.12.3  Release Build\n"
    (tmp_path / "proc/driver/nvidia/version").write_text(version)
    return tmp_path


def test_accelerators_are_read_from_what_their_drivers_show(nvidia: Path) -> None:
    found = checkup.accelerators(nvidia)
    assert found == [{"kind": "nvidia", "name": "NVIDIA H200", "driver": "570.12.3"}]
    facts = unsound("accelerators", value=found)
    assert "accelerator    NVIDIA H200, driver 570.12.3" in "\n".join(report(facts, []))


def test_a_machine_without_drivers_has_no_accelerators(tmp_path: Path) -> None:
    assert checkup.accelerators(tmp_path) == []
    (tmp_path / "dev/accel").mkdir(parents=True)
    (tmp_path / "dev/accel/accel0").touch()
    (tmp_path / "dev/kfd").touch()
    assert [found["kind"] for found in checkup.accelerators(tmp_path)] == ["amd", "npu"]


def test_nvidia_smi_is_asked_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.12.3, 143771 MiB'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (found, *_) = [gpu for gpu in checkup.accelerators() if gpu["kind"] == "nvidia"]
    assert found["memory"] == "143771 MiB"
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert all("memory" not in gpu for gpu in checkup.accelerators())


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An environment and a folder without settings, but for those of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda text: (tmp_path / "headrace.toml").write_text(text) and None


def test_this_machine_can_be_examined(at_home: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["machine"]["usable_cores"] >= 1
    assert {"numpy", "onnxruntime", "uvloop"} <= set(facts["packages"])
    extras = {"grpc", "text", "image", "openvino", "redis", "s3", "sklearn", "plot"}
    assert extras == set(facts["extras"])
    assert {"onnxruntime", "python", "null"} <= {found["name"] for found in facts["runtimes"]}
    assert facts["cache"]["folder"].endswith("/cache/headrace")
    assert cli.main(["doctor"]) == 0
    assert "processor" in capsys.readouterr().out


def test_a_configuration_that_would_not_load_is_broken(
    at_home: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    at_home("[server]\nprot = 1\n")
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "broken: headrace.toml:2: there is no setting 'server.prot'" in shown
    assert "did you mean 'server.port'?" in shown
