"""Metrics that models make themselves, from what an instance tells to the page."""

from __future__ import annotations

import msgspec
import pytest

from headrace.config import TraceConfig
from headrace.telemetry import snapshot
from headrace.telemetry.instruments import SeriesRecord
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.model_metrics import MAX_SERIES
from headrace.telemetry.prometheus import RenderOptions, render
from headrace.telemetry.trace import Tracer, Tracing

SEEN = SeriesRecord("seen_total", "counter", "What was seen.", {"model": "m"}, 2.0)


def page(*workers: Metrics | bytes) -> list[str]:
    """The models' own part."""
    snapshots = [each if isinstance(each, bytes) else each.snapshot() for each in workers]
    lines = render(snapshots, RenderOptions(triton=None)).decode().splitlines()
    names = ("seen", "level", "size", "bad")
    return [line for line in lines if line.removeprefix("# HELP ").removeprefix("# TYPE ")
            .startswith(names)]  # fmt: skip


def with_value(record: SeriesRecord, value: float, **fields) -> SeriesRecord:
    return msgspec.structs.replace(record, value=value, **fields)


def test_instances_and_workers_add_up():
    one, other = Metrics(), Metrics()
    one.model_measured("m", "1", 0, SEEN)
    one.model_measured("m", "1", 1, with_value(SEEN, 5.0))
    one.model_measured("m", "1", 0, with_value(SEEN, 3.0))  # instead of its 2
    other.model_measured("m", "1", 0, with_value(SEEN, 0.5))
    other.model_measured("m", "1", 0, with_value(SEEN, 0.5, labels={"model": 'a"b\n'}))
    assert page(one, other) == [
        "# HELP seen_total What was seen.",
        "# TYPE seen_total counter",
        r'seen_total{model="a\"b\n"} 0.5',
        'seen_total{model="m"} 8.5',
    ]


def test_a_histogram_has_its_buckets():
    record = SeriesRecord("size", "histogram", "Sizes.", {}, 7.5, (0.5, 2.0), (1, 2, 3))
    metrics = Metrics()
    metrics.model_measured("m", "1", 0, record)
    metrics.model_measured("m", "1", 1, record)
    assert page(metrics)[2:] == [
        'size_bucket{le="0.5"} 2',
        'size_bucket{le="2"} 6',
        'size_bucket{le="+Inf"} 12',
        "size_sum 15.0",
        "size_count 12",
    ]


def test_they_go_with_their_version():
    metrics = Metrics()
    for version in ("1", "2"):
        metrics.model_loaded("m", version, 0.1)
        metrics.model_measured("m", version, 0, SEEN)
    metrics.model_unloaded("m", "1")
    assert page(metrics)[-1] == 'seen_total{model="m"} 2.0'
    metrics.model_unloaded("m", "2")
    assert page(metrics) == []


def test_of_a_worker_that_is_gone_counters_stay_and_gauges_do_not():
    metrics = Metrics()
    metrics.model_measured("m", "1", 0, SEEN)
    metrics.model_measured("m", "1", 0, SeriesRecord("level", "gauge", "Now.", {}, 3.0))
    assert page(metrics)[-1] == 'seen_total{model="m"} 2.0'
    assert "level 3.0" in page(metrics)
    gone = snapshot.counters_only([metrics.snapshot()])
    assert page(gone) == page(metrics)[-3:]


@pytest.mark.parametrize(
    "change",
    [
        {"family": "bad name"},
        {"family": "nv_inference_count"},
        {"family": "headrace_rows_total"},
        {"labels": {"a-b": "x"}},
        {"labels": {"__name__": "x"}},
        {"kind": "histogram", "labels": {"le": "1"}, "bounds": (1.0,), "counts": (0, 0)},
    ],
)
def test_names_that_would_break_the_page_are_left_out(change):
    before = render([Metrics().snapshot()], RenderOptions(triton=None)).splitlines()
    metrics = Metrics()
    metrics.model_measured("m", "1", 0, msgspec.structs.replace(SEEN, **change))
    assert len(render([metrics.snapshot()], RenderOptions(triton=None)).splitlines()) == len(before)


def test_a_family_is_of_one_kind():
    metrics = Metrics()
    metrics.model_measured("m", "1", 0, SEEN)
    metrics.model_measured("n", "1", 0, with_value(SEEN, 1.0, kind="gauge", labels={}))
    assert [line for line in page(metrics) if line.startswith("# TYPE")] == [
        "# TYPE seen_total counter"
    ]
    assert page(metrics)[-1] == 'seen_total{model="m"} 2.0'


def test_there_is_an_end_to_them():
    metrics = Metrics()
    for number in range(MAX_SERIES + 10):
        metrics.model_measured("m", "1", 0, with_value(SEEN, 1.0, labels={"n": str(number)}))
    assert len(page(metrics)) == MAX_SERIES + 2
    metrics.model_measured("m", "1", 0, with_value(SEEN, 9.0, labels={"n": "0"}))
    assert 'seen_total{n="0"} 9.0' in page(metrics)  # those that are there go on


def test_a_tracer_passes_them_on():
    metrics = Metrics()
    tracing = Tracing(TraceConfig(), watch=lambda _: None)
    Tracer(tracing, metrics).model_measured("m", "1", 0, SEEN)
    assert page(metrics)[-1] == 'seen_total{model="m"} 2.0'
