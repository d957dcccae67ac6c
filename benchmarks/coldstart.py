"""What a second start is spared: from the command of a server to its first answer.

Three starts in turn: with nothing in the cache; with everything that the first one left; and
with all of that but compiled models (``compiled_cache_bytes = 0``), which is what measured
profiles and built graphs alone are worth. Then two workers, with and without compiled models:
the memory of one, where pages that both map count half each (PSS).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from statistics import fmean

import numpy as np

from benchmarks.minilm import PATH, Minilm, Unavailable, get_minilm
from benchmarks.results import Goal, Result, Spread
from benchmarks.servers import Server, headrace_server
from benchmarks.settings import Settings
from benchmarks.startup import WIDTH, write_large
from headrace.client.processes import cpu_of

NAME = "coldstart"
MIN_RATIO = 3.0
_HEADERS = {"content-type": "application/json"}
_MB = 1e6


class Case:
    """A model, the runtime that serves it, and a request that it answers."""

    def __init__(self, model: str, runtime: str, path: Path, body: bytes) -> None:
        self.name = f"{model}, {runtime}"
        self.runtime = runtime
        self.path = path
        self.body = body

    def flags(self, work: Path, *, compiled: bool) -> tuple[str, ...]:
        """Of a server for it; writes its configuration."""
        config = work / ("with.toml" if compiled else "without.toml")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text("" if compiled else "compiled_cache_bytes = 0\n")
        return ("--config", str(config), "--runtime", self.runtime, "--name", "minilm")


def run(settings: Settings) -> Iterator[Result]:
    """all-MiniLM-L6-v2 as its folder, then 94 MB of dense layers as one ONNX file."""
    work = settings.work / NAME
    large = write_large(work, settings.seed)
    row = np.zeros(WIDTH).tolist()
    dense = v2_body("x", "FP32", [1, WIDTH], row)
    try:
        minilm: Minilm | None = get_minilm(settings, work / "graphs")
    except Unavailable as error:
        minilm = None
        yield Result(benchmark=NAME, case="all-MiniLM-L6-v2", skipped=str(error))
    for runtime in ("auto", "openvino", "onnxruntime"):
        if minilm is not None:
            text = v2_body("text", "BYTES", [1], ["water over the wheel"])
            yield starts(Case("all-MiniLM-L6-v2", runtime, minilm.folder, text), settings)
        yield starts(Case("94 MB of layers", runtime, large, dense), settings)


def starts(case: Case, settings: Settings) -> Result:
    """The three starts of a case, ``rounds`` times, and the memory of two workers."""
    work = settings.work / NAME / case.runtime
    first, second, profile = [], [], []
    for number in range(settings.rounds):
        rmtree(work / "cache", ignore_errors=True)
        first.append(start(case, work, compiled=True, leave_all=True))
        for with_compiled in (True, False) if number % 2 else (False, True):
            spent_s = start(case, work, compiled=with_compiled)
            (second if with_compiled else profile).append(spent_s)
    ratio = Spread.of(a / b for a, b in zip(first, second, strict=True))
    return Result(
        benchmark=NAME,
        case=case.name,
        figures={
            "first ms": Spread.of(each * 1e3 for each in first),
            "second ms": Spread.of(each * 1e3 for each in second),
            "second without compiled ms": Spread.of(each * 1e3 for each in profile),
            "first/second": ratio,
            "compiled MB": _bytes_in(work / "cache" / "compiled") / _MB,
            "worker PSS MB": worker_pss(case, work, compiled=True) / _MB,
            "without compiled PSS MB": worker_pss(case, work, compiled=False) / _MB,
        },
        goals=(Goal(f"first start over second: {case.name}", ratio, MIN_RATIO, at_least=True),),
    )


def start(case: Case, work: Path, *, compiled: bool, leave_all: bool = False) -> float:
    """Seconds until the first answer. ``leave_all``: stops when the compiled model is kept."""
    flags = case.flags(work, compiled=compiled)
    started_s = time.monotonic()
    with headrace_server(case.path, work, *flags) as server:
        ask(server, case)
        spent_s = time.monotonic() - started_s
        if leave_all:
            server.wait_until(
                lambda: any((work / "cache" / "compiled").glob("[!.]*/manifest.json"))
            )
        return spent_s


def worker_pss(case: Case, work: Path, *, compiled: bool) -> float:
    """Bytes of one of two workers, after some requests to each."""
    flags = case.flags(work, compiled=compiled)
    with headrace_server(case.path, work, *flags, "--workers", "2") as server:
        for _ in range(20):
            ask(server, case)
        workers = [pid for pid in cpu_of((server.pid,)).pids if pid != server.pid]
        return fmean(sorted(map(_pss_bytes, workers))[-2:])


def ask(server: Server, case: Case) -> None:
    """One request, which must be answered."""
    status, body = server.post(PATH, case.body, _HEADERS)
    assert status == 200, body.decode(errors="replace")


def _pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def v2_body(name: str, datatype: str, shape: list[int], data: list[object]) -> bytes:
    """A request of one tensor as JSON."""
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return json.dumps({"inputs": [tensor]}).encode()
