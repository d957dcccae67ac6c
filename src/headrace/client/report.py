"""Results as text for a person: a block for a run, a table and a chart for a sweep. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from headrace.client.chart import WIDTH, Series, draw
from headrace.client.journal import RunResult
from headrace.client.spec import SCENARIOS, BenchSpec, scenario_of
from headrace.client.summary import Cpu, Summary
from headrace.client.sweep import Sweep, held, rate_of

_LABEL = 12
_MAX_ERRORS = 10

_PROCESSES = {
    "poisson": "Poisson arrivals",
    "bursty": "Gamma arrivals (SCV {scv:g})",
    "on-off": "on-off arrivals ({on:g} s on, {off:g} s off)",
    "constant": "constant arrivals",
    "recorded": "recorded arrivals",
}


def render_run(result: RunResult, *, unicode: bool) -> str:
    """The whole report of one run."""
    summary = result.summary
    lines = [*map(_filled, _heading(result)), ""]
    lines += [*_counts(summary, result.interrupted), *_latency(summary)]
    lines += [*_slo(summary), *_generator(summary, unicode), *_server(summary, unicode)]
    lines += _errors(summary)
    lines += [_wrapped("note", note.text) for note in summary.notes]
    return "\n".join(lines)


def render_sweep(sweep: Sweep, *, unicode: bool) -> str:
    """A table with a line for every rate, the chart, and where it broke."""
    if not sweep.results:
        return "no rate was run to its end"
    lines = [*map(_filled, _heading(sweep.results[0], rates=len(sweep.results))), ""]
    lines += [*_table(sweep.results), "", _chart(sweep.results, unicode), "", *_verdict(sweep)]
    lines += _shared_notes(sweep.results)
    return "\n".join(lines)


def _shared_notes(results: Sequence[RunResult]) -> list[str]:
    """Of each kind the first, and at how many more rates it is true."""
    rates: dict[str, list[float]] = {}
    texts: dict[str, str] = {}
    for result in results:
        for note in result.summary.notes:
            rates.setdefault(note.kind, []).append(rate_of(result))
            texts.setdefault(note.kind, note.text)
    rates.pop("overload", None)  # the table shows it
    lines = []
    for kind, where in rates.items():
        more = f" (and at {len(where) - 1} more)" if len(where) > 1 else ""
        lines.append(_wrapped("note", f"at {where[0]:g}/s{more}: {texts[kind]}"))
    return lines


def render_point(result: RunResult) -> str:
    """One rate of a sweep, while the others still run."""
    summary = result.summary
    p50, _, p99 = _percentiles(summary)
    return (
        f"{rate_of(result):>10g}/s  {summary.answered_rps:,.1f}/s answered  p50 {p50} ms  "
        f"p99 {p99} ms  {summary.failed} failed"
    )


def _percentiles(summary: Summary) -> tuple[str, str, str]:
    """p50, p90 and p99 as they are shown."""
    latency = summary.latency
    if latency is None:
        return "-", "-", "-"
    return _ms(latency.p50_ms), _ms(latency.p90_ms), _ms(latency.p99_ms)


def _line(label: str, text: str) -> str:
    return f"  {label:<{_LABEL}}{text}"


def _filled(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=_line(label, ""),
        subsequent_indent=_line("", ""),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _heading(result: RunResult, rates: int = 0) -> list[str]:
    spec = result.spec
    bodies = f"{result.distinct_bodies} different bodies"
    if result.distinct_bodies == 1:
        bodies = "one body"
    wire = {"json": "V2 JSON", "binary": "V2 binary", "openai": "OpenAI embeddings"}
    return [
        f"{spec.model} at {spec.url}" + (f"  ({result.server})" if result.server else ""),
        f"{spec.scenario}: {_load(spec, rates)}, seed {spec.seed}",
        f"{wire[spec.payload.wire]}, {bodies}, {result.mean_body_bytes:,.0f} bytes on average",
    ]


def _load(spec: BenchSpec, rates: int) -> str:
    scenario = scenario_of(spec)
    if not scenario.open_loop:
        callers = f"{scenario.connections} callers that wait for their answers"
        if scenario.connections == 1:
            callers = "one caller that waits for its answers"
        samples = f", {scenario.samples} samples a query" if scenario.samples > 1 else ""
        return f"closed loop, {callers}{samples}"
    arrivals = spec.arrivals
    process = _PROCESSES[arrivals.process].format(
        scv=arrivals.burst_scv, on=arrivals.on_s, off=arrivals.off_s
    )
    if rates:
        return f"open loop, {process}, {rates} rates"
    return f"open loop, {process}" + (f" at {arrivals.rate:g}/s" if arrivals.rate else "")


def _counts(summary: Summary, interrupted: bool) -> list[str]:
    counts = f"{summary.sent} sent, {summary.ok} ok, {summary.failed} failed"
    if summary.late is not None:
        counts = f"{summary.offered} offered, {counts}"
    if interrupted:
        counts += f", {summary.unfinished} unfinished (interrupted)"
    rate = f"{summary.answered_rps:,.1f}/s answered"
    if summary.late is not None:
        rate = f"{summary.offered_rps:,.1f}/s offered, {rate}"
    if summary.samples_per_s > summary.answered_rps * 1.001:
        rate += f", {summary.samples_per_s:,.1f} samples/s"
    return [
        _line("requests", counts),
        _line("rate", f"{rate}, in {summary.answering_s:.2f} s"),
    ]


def _latency(summary: Summary) -> list[str]:
    latency = summary.latency
    if latency is None:
        return [_line("latency", "nothing was answered well")]
    columns = {
        "mean": latency.mean_ms,
        "p50": latency.p50_ms,
        "p90": latency.p90_ms,
        "p95": latency.p95_ms,
        "p99": latency.p99_ms,
        "p99.9": latency.p999_ms,
        "max": latency.max_ms,
    }
    return [
        _line("latency ms", "".join(f"{name:>9}" for name in columns)),
        _line("", "".join(f"{_ms(value):>9}" for value in columns.values())),
    ]


def _ms(value: float | None) -> str:
    """Three digits that matter: 0.123, 1.23, 12.3, 123."""
    if value is None:
        return "-"
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def _slo(summary: Summary) -> list[str]:
    slo = summary.slo
    if slo is None:
        return []
    return [
        _line(
            "SLO",
            f"p{slo.percentile:g} within {slo.bound_ms:g} ms: {'met' if slo.met else 'MISSED'} "
            f"(p{slo.percentile:g} {_ms(summary.headline_ms)} ms)",
        ),
        _line(
            "goodput",
            f"{slo.goodput_share:.2%} of the offered requests in time, {slo.goodput_rps:,.1f}/s",
        ),
    ]


def _cpu(cpu: Cpu, unicode: bool) -> str:
    text = f"{cpu.cores:.2f} cores"
    if cpu.us_per_request is not None:
        text = f"{cpu.us_per_request:,.0f} {'µs' if unicode else 'us'} CPU a request, {text}"
    return text


def _generator(summary: Summary, unicode: bool) -> list[str]:
    text = _cpu(summary.generator, unicode)
    if summary.late is not None:
        text += f"; late p99 {_ms(summary.late.p99_ms)} ms, max {_ms(summary.late.max_ms)} ms"
    return [_line("generator", text)]


def _server(summary: Summary, unicode: bool) -> list[str]:
    cpu = summary.server
    if cpu is None:
        return []
    shown = ", ".join(map(str, cpu.pids[:4])) + (" ..." if len(cpu.pids) > 4 else "")
    return [_line("server", f"{_cpu(cpu, unicode)} (process {shown})")]


def _errors(summary: Summary) -> list[str]:
    lines = []
    for number, error in enumerate(summary.errors[:_MAX_ERRORS]):
        status = str(error.status) if error.status else "-"
        lines.append(
            _line("" if number else "errors", f"{error.count:>7}  {status:>3}  {error.reason}")
        )
    hidden = sum(error.count for error in summary.errors[_MAX_ERRORS:])
    if hidden:
        lines.append(_line("", f"{hidden:>7}       for other reasons"))
    return lines


_COLUMNS = (10, 12, 8, 9, 9, 9, 10, 9)


def _table(results: Sequence[RunResult]) -> list[str]:
    names = ["offered/s", "answered/s", "failed", "p50 ms", "p90 ms", "p99 ms", "late p99"]
    with_slo = results[0].summary.slo is not None
    rows = [names + (["in time"] if with_slo else [])]
    for result in results:
        summary = result.summary
        row = [f"{summary.offered_rps:,.1f}", f"{summary.answered_rps:,.1f}", str(summary.failed)]
        row += [*_percentiles(summary), _ms(summary.late.p99_ms if summary.late else None)]
        if summary.slo is not None:
            row.append(f"{summary.slo.goodput_share:.1%}")
        rows.append(row)
    return [
        "".join(f"{cell:>{width}}" for cell, width in zip(row, _COLUMNS, strict=False)).rstrip()
        for row in rows
    ]


def _chart(results: Sequence[RunResult], unicode: bool) -> str:
    answered = [(r.summary.offered_rps, r.summary.latency) for r in results if r.summary.latency]
    return draw(
        [
            Series("p50", [(rate, latency.p50_ms) for rate, latency in answered], "●", "o"),
            Series("p99", [(rate, latency.p99_ms) for rate, latency in answered], "▲", "^"),
        ],
        unicode=unicode,
        bound=results[0].spec.slo_ms,
    )


def _verdict(sweep: Sweep) -> list[str]:
    lines = []
    if sweep.capacity_rps is not None:
        lines.append(
            _line("capacity", f"about {sweep.capacity_rps:,.0f}/s (closed loop, 64 callers)")
        )
    spec = sweep.results[0].spec
    wanted = "the server kept up"
    if spec.slo_ms is not None:
        percentile = SCENARIOS[spec.scenario].percentile
        wanted += f" and p{percentile:g} stayed within {spec.slo_ms:g} ms"
    best = sweep.best
    above = sweep.results[sweep.results.index(best) + 1 if best else 0 :]
    if best is None:
        text = f"at no rate, from the lowest up, is it true that {wanted}"
    else:
        text = f"{rate_of(best):g}/s is the highest rate up to which {wanted}"
    if not above:
        text += "; it may do more"
    elif any(held(result) for result in above):
        text += ". A higher one held again, so this machine is noisy: longer runs help (--duration)"
    if above and any(note.kind == "late" for note in above[0].summary.notes):
        text += ". Above it the generator was late itself: a quieter machine may show more"
    return [*lines, _wrapped("held", text)]
