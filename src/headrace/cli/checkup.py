"""What ``headrace doctor`` finds out, and what it makes of that.

``examine`` looks and never judges; ``judge`` is pure and never looks, so that every piece of
advice can be tested without the machine that deserves it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

import headrace
from headrace import machine
from headrace.errors import HeadraceError
from headrace.limits import HttpLimits
from headrace.loading import cache_folder, config_file, load_config
from headrace.runtimes import registry
from headrace.server.sockets import listening_socket, reserve_port

GIB = 1024**3

INSTRUCTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "AVX2": ("avx2",),
        "AVX-512": ("avx512f",),
        "VNNI": ("avx512_vnni", "avx_vnni"),
        "BF16": ("avx512_bf16", "amx_bf16"),
        "AMX": ("amx_tile",),
    },
    "aarch64": {
        "NEON": ("asimd",),
        "dot product": ("asimddp",),
        "int8 matrix": ("i8mm",),
        "BF16": ("bf16",),
        "SVE": ("sve",),
    },
}
"""Architecture -> what matters to inference -> the kernel's flags, any of which provides it."""

NOT_FOR_USERS = {"all", "dev"}
"""Extras that only bundle others, or are for working on headrace itself."""

_SPARE_FILES = 1000
"""Open files of a process besides its connections: models, libraries, pipes."""

_QUERY_TIMEOUT_S = 10.0


class Finding(msgspec.Struct, frozen=True):
    """``broken`` stops headrace from serving; ``warning`` costs performance or a feature."""

    level: Literal["broken", "warning"]
    what: str
    advice: str


def examine(root: Path = machine.SLASH, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The facts, JSON-serialisable. Takes a second: it imports what it reports on."""
    env = os.environ if env is None else env
    return {
        "headrace": headrace.__version__,
        "machine": machine.describe(root),
        "accelerators": accelerators(root),
        "limits": _limits(),
        "cache": _cache(env),
        "packages": _packages(),
        "runtimes": msgspec.to_builtins(registry.explain()),
        "extras": _extras(),
        "tools": {name: shutil.which(name) for name in ("npm", "nvidia-smi")},
    }


def judge(facts: Mapping[str, Any]) -> list[Finding]:
    """What deserves a word, the worst first."""
    findings = [*_judge_software(facts), *_judge_machine(facts["machine"]), *_judge_host(facts)]
    return sorted(findings, key=lambda finding: finding.level)


def instructions(facts: Mapping[str, Any]) -> dict[str, bool]:
    """Of :data:`INSTRUCTIONS`, which this processor has; empty for other architectures."""
    flags = set(facts["cpu_flags"])
    wanted = INSTRUCTIONS.get(facts["architecture"], {})
    return {name: not flags.isdisjoint(any_of) for name, any_of in wanted.items()}


# --- looking


def accelerators(root: Path = machine.SLASH) -> list[dict[str, str]]:
    """What the drivers show: ``kind``, ``name``, ``driver``; ``memory`` where it is told."""
    found = [
        {"kind": "nvidia", "name": _field(information, "Model") or "NVIDIA GPU"}
        for information in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    ]
    if smi := shutil.which("nvidia-smi") if root == machine.SLASH else None:
        found = _ask_nvidia_smi(smi) or found
    driver = re.search(r"Module\s+([\d.]+)", _text(root / "proc/driver/nvidia/version"))
    for gpu in found:
        gpu.setdefault("driver", driver[1] if driver else "")
    found += [{"kind": "amd", "name": "AMD GPU"} for _ in (root / "dev").glob("kfd")]
    found += [{"kind": "npu", "name": path.name} for path in (root / "dev/accel").glob("accel*")]
    return found


def _ask_nvidia_smi(smi: str) -> list[dict[str, str]]:
    query = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(  # noqa: S603 - the tool that is on the user's own PATH
            query, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []  # no driver behind it
    rows = [line.split(", ") for line in answer.stdout.splitlines()]
    return [
        {"kind": "nvidia", "name": name, "driver": driver, "memory": memory}
        for name, driver, memory in (row for row in rows if len(row) == 3)
    ]


def _limits() -> dict[str, Any]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"open_files": soft, "open_files_hard": hard, "shared_port": _can_share_a_port()}


def _can_share_a_port() -> bool:
    try:
        with (
            reserve_port("127.0.0.1", 0) as reservation,
            listening_socket("127.0.0.1", reservation.getsockname()[1], shared=True),
        ):
            return True
    except (HeadraceError, OSError, AttributeError):  # no SO_REUSEPORT on this system
        return False


def _cache(env: Mapping[str, str]) -> dict[str, Any]:
    try:
        loaded = load_config(config_file(None, env, Path()), env, {})
    except HeadraceError as error:
        return {"error": error.message, "hint": error.hint}
    folder = cache_folder(loaded.config, env)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {
        "folder": str(folder),
        "free_bytes": shutil.disk_usage(existing).free,
        "writable": existing.is_dir() and os.access(existing, os.W_OK),
    }


def _requirements() -> list[tuple[str, str]]:
    """(package, extra or "") of everything headrace names as a dependency."""
    try:
        lines = importlib.metadata.requires("headrace") or []
    except importlib.metadata.PackageNotFoundError:
        return []  # run from a source tree that was never installed
    found = []
    for line in lines:
        package = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if package and "sys_platform == 'win32'" not in line:
            found.append((package[0], extra[1] if extra else ""))
    return found


_MODULES = {"protobuf": "google.protobuf"}
"""Packages of the base install whose module is not called as they are."""


def _packages() -> dict[str, dict[str, str]]:
    """The base install: version of each package, and the error where it cannot be imported."""
    found: dict[str, dict[str, str]] = {}
    for package, extra in _requirements():
        if not extra:
            found[package] = {"version": _version(package), "error": ""}
            try:
                importlib.import_module(_MODULES.get(package, package))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the diagnosis
                found[package]["error"] = f"{type(error).__name__}: {error}"
    return found


def _extras() -> dict[str, list[str]]:
    """Extra -> the packages it lacks."""
    missing: dict[str, list[str]] = {}
    for package, extra in _requirements():
        if extra and extra not in NOT_FOR_USERS:
            lacking = missing.setdefault(extra, [])
            if not _version(package):
                lacking.append(package)
    return missing


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _field(path: Path, key: str) -> str:
    found = re.search(rf"^{key}:\s*(.+)$", _text(path), re.MULTILINE)
    return found[1].strip() if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# --- judging


def _judge_software(facts: Mapping[str, Any]) -> list[Finding]:
    findings = [
        Finding(
            "broken",
            f"{package} cannot be imported: {found['error']}",
            "pip install --force-reinstall headrace",
        )
        for package, found in facts["packages"].items()
        if found["error"]
    ]
    if "error" in facts["cache"]:
        findings.append(Finding("broken", facts["cache"]["error"], facts["cache"]["hint"]))
    if not any(found["installed"] and "onnx" in found["formats"] for found in facts["runtimes"]):
        findings.append(
            Finding("broken", "no runtime for ONNX models is installed", "pip install onnxruntime")
        )
    return findings


def _judge_machine(facts: Mapping[str, Any]) -> list[Finding]:
    findings = []
    quota, cores = facts["cpu_quota"], facts["affinity_cores"]
    if quota is not None and quota < cores:
        findings.append(
            Finding(
                "warning",
                f"a quota of {quota:g} CPUs on {cores} cores: more threads than that are throttled",
                f"headrace uses {facts['usable_cores']}; give a whole number of CPUs, and set "
                "OMP_NUM_THREADS for libraries that count the cores themselves",
            )
        )
    if instructions(facts).get("AVX2") is False:
        findings.append(
            Finding(
                "warning",
                "the processor (or the virtual machine's CPU type) has no AVX2",
                "models run several times slower; let the hypervisor pass the host's CPU through",
            )
        )
    if 0 < facts["memory_bytes"] < GIB:
        findings.append(
            Finding(
                "warning",
                f"{facts['memory_bytes'] / GIB:.1f} GiB of memory",
                "a small transformer with its runtime takes about 0.5 GiB",
            )
        )
    return findings


def _judge_host(facts: Mapping[str, Any]) -> list[Finding]:
    findings = []
    limits, cache = facts["limits"], facts["cache"]
    wanted = HttpLimits().max_connections + _SPARE_FILES
    if 0 <= limits["open_files"] < wanted:  # -1: unlimited
        findings.append(
            Finding(
                "warning",
                f"at most {limits['open_files']:,} open files, and each connection is one",
                f"ulimit -n {wanted} (or LimitNOFILE= in systemd) before starting, or lower "
                "server.limits.max_connections",
            )
        )
    if not limits["shared_port"]:
        findings.append(
            Finding("warning", "ports cannot be shared here (SO_REUSEPORT)", "use --workers 1")
        )
    if cache.get("writable") is False:
        findings.append(
            Finding(
                "warning",
                f"the cache folder {cache['folder']} cannot be written",
                "set cache_dir or XDG_CACHE_HOME, or graphs are built again at every start",
            )
        )
    elif cache.get("free_bytes", GIB) < GIB:
        findings.append(
            Finding(
                "warning",
                f"{cache['free_bytes'] / GIB:.1f} GiB free in the cache folder {cache['folder']}",
                "built graphs are as large as their models",
            )
        )
    return findings
