"""Latency over offered load, the picture of a server: ``headrace bench --sweep`` on MiniLM.

Open loop, Poisson arrivals, texts of uneven length. The sweep finds by itself where the
server saturates; the picture is ``load_curve.svg`` (and ``.png``) beside the JSON lines.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.minilm import Unavailable, get_minilm
from benchmarks.results import Result
from benchmarks.servers import Server, headrace_server
from benchmarks.settings import Settings
from headrace.client.journal import RunResult
from headrace.client.plot import plot_sweep
from headrace.client.spec import BenchSpec
from headrace.client.summary import Summary
from headrace.errors import MissingExtra

NAME = "load_curve"
SLO_MS = 100.0
SECONDS = 8
"""Of every rate: long enough for the p99 of the lower ones to mean something."""

WORDS = "15,0.85,110"
"""Median, sigma and most words of a text: about the lengths of the embedding benchmark."""


def run(settings: Settings) -> Iterator[Result]:
    """One result for every rate that was offered."""
    work = settings.work / NAME
    try:
        minilm = get_minilm(settings, work / "cache")
    except Unavailable as error:
        yield Result(benchmark=NAME, case="all", skipped=str(error))
        return
    flags = ("--runtime", settings.runtime, "--name", "minilm")
    with headrace_server(minilm.folder, work, *flags) as server:
        runs = sweep(server, settings, work)
    _plot(runs, settings.out)
    for each in runs:
        yield _result(each)


def sweep(server: Server, settings: Settings, work: Path) -> list[RunResult]:
    """Runs the command and reads what it wrote, lowest rate first.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    report = work / "sweep.jsonl"
    report.unlink(missing_ok=True)
    subprocess.run(
        [
            sys.executable, "-m", "headrace", "bench", server.url, "--model", "minilm",
            "--sweep", "auto", "--slo-ms", str(SLO_MS), "--text-lengths", WORDS,
            "--duration", str(settings.scaled(SECONDS)), "--seed", str(settings.seed),
            "--distinct", "1000", "--json", str(report), "--quiet",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    runs = [_run(msgspec.json.decode(line)) for line in report.read_bytes().splitlines()]
    return sorted(runs, key=lambda each: each.summary.offered_rps)


def _run(line: dict[str, Any]) -> RunResult:
    """A line of the journal as the value it was made from."""
    parameters = line["parameters"] | {"headers": []}
    return RunResult(
        spec=msgspec.convert(parameters, BenchSpec),
        summary=msgspec.convert(line["results"], Summary),
        server=line["server"],
        distinct_bodies=line["bodies"]["distinct"],
        mean_body_bytes=line["bodies"]["mean_bytes"],
        started_at=line["time_utc"],
    )


def _plot(runs: Sequence[RunResult], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for ending in ("svg", "png"):
            plot_sweep(runs, folder / f"{NAME}.{ending}")
    except MissingExtra as error:
        print(f"no picture: {error.message} ({error.hint})", file=sys.stderr)


def _result(each: RunResult) -> Result:
    summary, latency, slo = each.summary, each.summary.latency, each.summary.slo
    return Result(
        benchmark=NAME,
        case=f"{each.spec.arrivals.rate:g}/s offered",
        figures={
            "answered/s": summary.answered_rps,
            "p50 ms": latency.p50_ms if latency else "",
            "p99 ms": latency.p99_ms if latency else "",
            f"within {SLO_MS:g} ms": slo.goodput_share if slo else "",
            "server cores": summary.server.cores if summary.server else "",
            "failed": summary.failed,
        },
    )
