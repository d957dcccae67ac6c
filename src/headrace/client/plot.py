"""Latency and goodput over offered load as a PNG, through matplotlib (the extra ``plot``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.client.journal import RunResult
from headrace.errors import ConfigError, MissingExtra


def require_matplotlib() -> None:
    """Called before the first request is sent: a sweep should not end in an import error.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise MissingExtra("--plot", extra="plot", package="matplotlib") from error
    assert matplotlib.figure


def plot_sweep(results: Sequence[RunResult], path: Path) -> None:
    """Two panels over the offered rate: p50 and p99 (logarithmic), and answered or good /s.

    Raises:
        MissingExtra: matplotlib is not installed.
        ConfigError: the file cannot be written, or its ending is of no image format.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # never pyplot: no window, no global state

    figure = Figure(figsize=(7, 7), dpi=150, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _latencies(top, results)
    _rates(bottom, results)
    first = results[0]
    top.set_title(f"{first.spec.model}, {first.spec.arrivals.process} arrivals", loc="left")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {path}: {error}", hint="--plot out.png") from error


def _latencies(axes: Any, results: Sequence[RunResult]) -> None:
    answered = [(r.summary.offered_rps, r.summary.latency) for r in results if r.summary.latency]
    rates = [rate for rate, _ in answered]
    axes.plot(rates, [latency.p50_ms for _, latency in answered], marker="o", label="p50")
    axes.plot(rates, [latency.p99_ms for _, latency in answered], marker="^", label="p99")
    slo_ms = results[0].spec.slo_ms
    if slo_ms is not None:
        axes.axhline(slo_ms, linestyle="--", color="grey", label=f"SLO {slo_ms:g} ms")
    axes.set_yscale("log")
    axes.set_ylabel("latency, ms")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()


def _rates(axes: Any, results: Sequence[RunResult]) -> None:
    offered = [result.summary.offered_rps for result in results]
    axes.plot(offered, offered, linestyle=":", color="grey", label="offered")
    answered = [result.summary.answered_rps for result in results]
    axes.plot(offered, answered, marker="o", label="answered")
    good = [result.summary.slo.goodput_rps for result in results if result.summary.slo]
    if len(good) == len(offered):
        axes.plot(offered, good, marker="s", label="answered within the SLO")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("offered requests/s")
    axes.set_ylabel("requests/s")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
