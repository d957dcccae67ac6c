"""What a person and a machine are shown."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client import journal
from headrace.client.chart import HEIGHT, Series, draw
from headrace.client.journal import RunResult
from headrace.client.processes import Meter
from headrace.client.progress import Progress
from headrace.client.report import render_point, render_run, render_sweep
from headrace.client.samples import Reason, Samples
from headrace.client.spec import ArrivalSpec, BenchSpec, PayloadSpec
from headrace.client.summary import Context, summarise
from headrace.client.sweep import Sweep
from headrace.errors import ConfigError

MS = 1_000_000


def result_of(
    latency_ms: float = 5.0,
    *,
    rate: float = 100.0,
    failed: int = 0,
    slo_ms: float | None = 50.0,
    interrupted: bool = False,
    **spec: Any,
) -> RunResult:
    """One second of requests, all equally slow; the first ``failed`` were refused."""
    samples = Samples()
    for number in range(int(rate)):
        due = int(number * 1e9 / rate)
        index = samples.take(due, due)
        samples.sent += 1
        if number < failed:
            samples.fail(index, due + 1, Reason(503, "queue is full"))
        else:
            samples.succeed(index, due + int(latency_ms * MS))
    samples.ended_ns = 1_000_000_000
    meter = Meter((41, 42))
    meter.own_s, meter.server_s, meter.wall_s = 0.01, 0.02, 1.0
    given = {"url": "http://127.0.0.1:8000", "model": "m", "scenario": "server", **spec}
    if given["scenario"] == "server":
        given["arrivals"] = ArrivalSpec(rate=rate)
    bench = BenchSpec(slo_ms=slo_ms, **given)
    context = Context(
        percentile=99.0,
        slo_ms=slo_ms,
        horizon_ns=1_000_000_000 if given["scenario"] == "server" else None,
        rows=np.full(len(samples), bench.payload.samples or 1),
        interrupted=interrupted,
        meter=meter,
    )
    return RunResult(
        spec=bench,
        summary=summarise(samples, context),
        server="headrace 0.1.0",
        distinct_bodies=256,
        mean_body_bytes=1234.5,
        started_at="2026-01-02T03:04:05+00:00",
        interrupted=interrupted,
    )


# one run


def test_the_report_of_an_open_loop_says_everything():
    text = render_run(result_of(failed=10), unicode=True)
    for part in (
        "m at http://127.0.0.1:8000  (headrace 0.1.0)",
        "server: open loop, Poisson arrivals at 100/s, seed 0",
        "100 offered, 100 sent, 90 ok, 10 failed",
        "100.0/s offered, 90.0/s answered",
        "p99 within 50 ms: MISSED (p99 5.00 ms)",
        "90.00% of the offered requests in time, 90.0/s",
        "100 µs CPU a request, 0.01 cores; late p99 0.000 ms",
        "200 µs CPU a request, 0.02 cores (process 41, 42)",
        "10  503  queue is full",
    ):
        assert part in text


def test_the_report_of_a_closed_loop_says_that_its_callers_wait():
    text = render_run(
        result_of(scenario="multi-stream", slo_ms=None, payload=PayloadSpec(samples=8)),
        unicode=True,
    )
    heading = " ".join(text.split())
    assert "closed loop, one caller that waits for its answers, 8 samples a query" in heading
    assert "samples/s" in text
    assert "offered" not in text
    assert "SLO" not in text


def test_an_interrupted_run_says_so():
    assert "0 unfinished (interrupted)" in render_run(result_of(interrupted=True), unicode=True)


def test_reports_are_ascii_where_they_must_be_and_narrow_everywhere():
    sweep = Sweep((result_of(rate=50), result_of(80.0, rate=100)), capacity_rps=120.0)
    for text in (
        render_run(result_of(failed=3), unicode=False),
        render_sweep(sweep, unicode=False),
    ):
        assert text.isascii()
    unicode = render_sweep(sweep, unicode=True)
    assert max(map(len, unicode.splitlines())) <= 80
    assert max(map(len, render_run(result_of(failed=3), unicode=True).splitlines())) <= 80


# sweeps


def test_a_sweep_names_the_highest_rate_that_held():
    sweep = Sweep((result_of(rate=50), result_of(rate=100), result_of(80.0, rate=200)))
    text = render_sweep(sweep, unicode=True)
    assert "100/s is the highest rate up to which" in " ".join(text.split())
    assert "it may do more" not in text


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ((result_of(rate=50),), "it may do more"),
        ((result_of(80.0, rate=50),), "at no rate"),
        ((result_of(80.0, rate=50), result_of(rate=100)), "this machine is noisy"),
    ],
)
def test_a_sweep_does_not_claim_more_than_it_saw(results, expected):
    assert expected in " ".join(render_sweep(Sweep(results), unicode=True).split())


def test_a_sweep_without_results_is_a_sentence():
    assert render_sweep(Sweep(()), unicode=True) == "no rate was run to its end"


def test_one_point_is_one_line():
    line = render_point(result_of(failed=100))
    assert "p50 - ms" in line
    assert "100 failed" in line


# the chart


points = st.lists(st.tuples(st.floats(0, 1e6), st.floats(1e-3, 1e6)), min_size=1, max_size=40).map(
    sorted
)


@given(points, st.booleans(), st.none() | st.floats(1e-3, 1e6), st.integers(40, 120))
def test_every_chart_fits_its_width(points, unicode, bound, width):
    series = [Series("p50", points, "●", "o")]
    text = draw(series, unicode=unicode, bound=bound, width=width)
    lines = text.splitlines()
    assert len(lines) == HEIGHT + 3
    assert max(len(line) for line in lines[1:]) <= width
    assert unicode or text.isascii()
    assert ("●" if unicode else "o") in "".join(lines[1:-2])


def test_slower_is_higher_and_more_load_is_further_right():
    text = draw([Series("p50", [(10, 1.0), (100, 100.0)], "●", "o")], unicode=False)
    lines = text.splitlines()[1:-2]
    marks = [(row, line.index("o")) for row, line in enumerate(lines) if "o" in line]
    assert len(marks) == 2
    (high_row, high_column), (low_row, low_column) = marks
    assert high_row < low_row
    assert high_column > low_column


def test_no_points_no_chart():
    assert draw([Series("p50", [], "●", "o")], unicode=True) == ""


# the JSON line


def test_a_record_is_json_with_all_that_is_needed_to_repeat_it():
    record = json.loads(msgspec.json.encode(journal.record(result_of(), ["headrace", "bench"])))
    assert record["scenario"] == "server"
    assert record["seed"] == 0
    assert record["time_utc"] == "2026-01-02T03:04:05+00:00"
    assert record["parameters"]["arrivals"]["rate"] == 100
    assert record["results"]["latency"]["p99_ms"] == 5
    assert record["results"]["slo"]["met"] is True
    assert set(record["versions"]) == {"headrace", "python", "numpy"}
    assert {"cpu", "usable_cores", "memory_bytes", "system", "load_average"} <= set(
        record["machine"]
    )
    assert record["command"] == "headrace bench"
    assert "commit" in record


def test_a_record_keeps_no_secret():
    command = ["headrace", "bench", "-H", "Authorization: Bearer s3cret", "--header=X: s3cret",
               "-HY: s3cret", "--header", "Z: s3cret"]  # fmt: skip
    result = result_of(headers=(("Authorization", "Bearer s3cret"),))
    text = msgspec.json.encode(journal.record(result, command)).decode()
    assert "s3cret" not in text
    assert "Authorization" in text


def test_lines_are_appended(tmp_path):
    path = tmp_path / "runs.jsonl"
    journal.append(path, [{"a": 1}])
    journal.append(path, [{"a": 2}, {"a": 3}])
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 2, 3]
    with pytest.raises(ConfigError, match="cannot write"):
        journal.append(tmp_path / "no" / "runs.jsonl", [])


# progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def running(seconds_ago: float, sent: int = 10) -> Samples:
    import time

    samples = Samples()
    samples.started_ns = time.monotonic_ns() - int(seconds_ago * 1e9)
    for _ in range(sent):
        samples.take(0, 0)
    samples.sent = sent
    return samples


def test_a_terminal_gets_a_bar_that_is_wiped():
    stream = Terminal()
    progress = Progress(stream, label="200/s", requests=20)
    progress(running(0.1))
    assert "█" in stream.getvalue()
    assert " 50%" in stream.getvalue()
    progress.close()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_file_gets_a_plain_line_now_and_then():
    stream = io.StringIO()
    progress = Progress(stream, duration_s=100)
    progress(running(1))
    assert stream.getvalue() == ""
    progress(running(6))
    progress(running(7))
    progress.close()
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


# PNG


def test_a_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    from headrace.client.plot import plot_sweep

    path = tmp_path / "out.png"
    plot_sweep([result_of(rate=50), result_of(80.0, rate=100, failed=100)], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="cannot write"):
        plot_sweep([result_of()], tmp_path / "out.nonsense")


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch):
    from headrace.client.plot import require_matplotlib
    from headrace.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra) as caught:
        require_matplotlib()
    assert "headrace[plot]" in caught.value.hint
