"""Schedules: reproducible, ordered, bounded, and with the statistics they claim."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.client.arrivals import make_schedule
from headrace.client.spec import ArrivalSpec
from headrace.errors import ConfigError

DRAWN = ("poisson", "bursty", "on-off", "constant")

specs = st.builds(
    ArrivalSpec,
    process=st.sampled_from(DRAWN),
    rate=st.floats(1, 5000),
    burst_scv=st.floats(0.1, 50),
    on_s=st.floats(0.01, 2),
    off_s=st.floats(0.01, 2),
)


@given(specs, st.integers(1, 3000), st.integers(0, 2**63))
def test_a_schedule_by_count_has_the_count_is_ordered_and_repeats(spec, requests, seed):
    first = make_schedule(spec, duration_s=None, requests=requests, seed=seed)
    again = make_schedule(spec, duration_s=None, requests=requests, seed=seed)
    assert len(first.offsets_ns) == requests
    assert np.array_equal(first.offsets_ns, again.offsets_ns)
    assert np.all(np.diff(first.offsets_ns) >= 0)
    assert first.offsets_ns[0] >= 0
    assert first.offsets_ns[-1] <= first.horizon_ns


@given(specs, st.floats(0.5, 3), st.integers(0, 100))
def test_a_longer_run_begins_with_the_schedule_of_a_shorter_one(spec, duration_s, seed):
    try:
        short = make_schedule(spec, duration_s=duration_s, requests=None, seed=seed)
    except ConfigError:  # nothing falls into it
        assume(False)
    long = make_schedule(spec, duration_s=duration_s * 3, requests=None, seed=seed)
    assert short.horizon_ns == int(duration_s * 1e9)
    assert np.all(short.offsets_ns < short.horizon_ns)
    assert np.array_equal(short.offsets_ns, long.offsets_ns[: len(short.offsets_ns)])
    assert np.all(long.offsets_ns[len(short.offsets_ns) :] >= short.horizon_ns)


@pytest.mark.parametrize("process", ["poisson", "bursty", "on-off"])
def test_another_seed_is_another_schedule(process):
    spec = ArrivalSpec(process=process, rate=100)
    schedules = [make_schedule(spec, duration_s=None, requests=50, seed=s) for s in (1, 2)]
    assert not np.array_equal(schedules[0].offsets_ns, schedules[1].offsets_ns)


@pytest.mark.parametrize("process", DRAWN)
def test_the_mean_rate_is_the_one_asked_for(process):
    spec = ArrivalSpec(process=process, rate=500, on_s=0.05, off_s=0.15)
    schedule = make_schedule(spec, duration_s=200, requests=None, seed=7)
    # 100,000 arrivals; the on-off phases (about 1,000) decide: their spread is a few percent.
    assert len(schedule.offsets_ns) / 200 == pytest.approx(500, rel=0.15)


@pytest.mark.parametrize("scv", [0.25, 1.0, 4.0, 16.0])
def test_bursty_gaps_have_the_squared_coefficient_of_variation_asked_for(scv):
    spec = ArrivalSpec(process="bursty", rate=1000, burst_scv=scv)
    schedule = make_schedule(spec, duration_s=None, requests=200_000, seed=3)
    gaps = np.diff(schedule.offsets_ns)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(scv, rel=0.1)


def test_poisson_gaps_vary_as_much_as_their_mean():
    spec = ArrivalSpec(process="poisson", rate=1000)
    gaps = np.diff(make_schedule(spec, duration_s=None, requests=100_000, seed=3).offsets_ns)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1, rel=0.05)


def test_constant_arrivals_do_not_drift():
    spec = ArrivalSpec(process="constant", rate=3)
    offsets = make_schedule(spec, duration_s=None, requests=100_000, seed=0).offsets_ns
    expected = np.arange(100_000) * 1e9 / 3
    assert np.abs(offsets - expected).max() <= 1


def test_on_off_is_silent_between_its_phases():
    spec = ArrivalSpec(process="on-off", rate=1000, on_s=0.1, off_s=1.0)
    offsets = make_schedule(spec, duration_s=60, requests=None, seed=1).offsets_ns
    gaps_s = np.diff(offsets) / 1e9
    # In a phase gaps are about 0.1 ms (rate 11,000/s); a second of silence stands out.
    assert (gaps_s > 0.1).sum() >= 20
    assert np.median(gaps_s) < 0.001


def test_a_run_without_a_single_request_is_refused():
    spec = ArrivalSpec(process="poisson", rate=0.001)
    with pytest.raises(ConfigError, match="no request"):
        make_schedule(spec, duration_s=0.5, requests=None, seed=0)


def test_more_requests_than_one_run_may_have_are_refused():
    spec = ArrivalSpec(process="constant", rate=1_000_000)
    with pytest.raises(ConfigError, match="more than 5,000,000"):
        make_schedule(spec, duration_s=6, requests=None, seed=0)


# recordings


def recorded(tmp_path: Path, text: str, name: str = "r.csv", **spec: object):
    path = tmp_path / name
    path.write_text(text)
    bounds = {"duration_s": spec.pop("duration_s", None), "requests": spec.pop("requests", None)}
    arrivals = ArrivalSpec(process="recorded", recording=str(path), **spec)  # type: ignore[arg-type]
    return make_schedule(arrivals, seed=0, **bounds)  # type: ignore[arg-type]


def test_a_recording_keeps_its_gaps(tmp_path):
    schedule = recorded(tmp_path, "10.5\n10.0\n12.0\n")
    assert schedule.offsets_ns.tolist() == [0, 500_000_000, 2_000_000_000]
    assert schedule.lengths is None
    # three arrivals over two gaps of 1 s on average
    assert schedule.horizon_ns == 3_000_000_000


def test_a_rate_rescales_a_recording(tmp_path):
    schedule = recorded(tmp_path, "0\n1\n2\n3\n", rate=8.0)
    assert schedule.offsets_ns.tolist() == [0, 125_000_000, 250_000_000, 375_000_000]
    assert len(schedule.offsets_ns) / (schedule.horizon_ns / 1e9) == pytest.approx(8)


def test_duration_and_count_cut_a_recording_with_its_lengths(tmp_path):
    text = "".join(f"{second},{second + 1}\n" for second in range(10))
    by_time = recorded(tmp_path, text, duration_s=2.5)
    assert by_time.offsets_ns.tolist() == [0, 1_000_000_000, 2_000_000_000]
    assert by_time.horizon_ns == 2_500_000_000
    assert by_time.lengths.tolist() == [1, 2, 3]
    by_count = recorded(tmp_path, text, requests=2)
    assert by_count.lengths.tolist() == [1, 2]
    assert by_count.horizon_ns == 2_000_000_000


DATES = """id,TIMESTAMP,ContextTokens
1,2023-11-16 18:15:46.0000000,5
2,2023-11-16 18:15:47.5000000,6
"""
NANOSECONDS = """{"arrival_ns": 1700000000000000001, "tokens": 5}
{"arrival_ns": 1700000001500000001, "tokens": 6}
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", "timestamp_ms,length\n1000,5\n2500,6\n"),
        ("r.csv", DATES),
        ("r.csv", "time,words\n2023-11-16T18:15:46Z,5\n2023-11-16T18:15:47.5Z,6\n"),
        ("r.jsonl", '{"timestamp": 1, "input_length": 5}\n\n{"time": 2.5, "words": 6}'),
        ("r.jsonl", NANOSECONDS),
    ],
)
def test_forms_of_recordings(tmp_path, name, text):
    schedule = recorded(tmp_path, text, name)
    assert schedule.offsets_ns.tolist() == [0, 1_500_000_000]
    assert schedule.lengths.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", "", "no arrivals"),
        ("r.csv", "1.0\nsoon\n", "line 2: 'soon' is not a timestamp"),
        ("r.csv", "1.0\ninf\n", "line 2: 'inf' is not a timestamp"),
        ("r.csv", "1.0,3\n2.0\n", "line 2: None is not a length"),
        ("r.csv", "1.0,3\n2.0,0\n", "line 2: a length is at least 1"),
        ("r.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("r.jsonl", '{"when": 1}\n', "line 1: no timestamp among when"),
        ("r.jsonl", '{"time": 1}\n{"time": 2, "words": 3}\n', "line 2: some lines have a length"),
    ],
)
def test_unusable_recordings_name_the_line(tmp_path, name, text, message):
    with pytest.raises(ConfigError) as caught:
        recorded(tmp_path, text, name)
    assert message in caught.value.message


def test_a_missing_recording_is_an_error_of_the_operator(tmp_path):
    spec = ArrivalSpec(process="recorded", recording=str(tmp_path / "none.csv"))
    with pytest.raises(ConfigError, match="cannot read"):
        make_schedule(spec, duration_s=None, requests=None, seed=0)


@given(st.lists(st.integers(0, 10**12), min_size=2, max_size=50))
def test_any_recording_is_sorted_from_zero(tmp_path_factory, moments):
    text = "timestamp_ns\n" + "\n".join(map(str, moments))
    schedule = recorded(tmp_path_factory.mktemp("r"), text)
    assert schedule.offsets_ns[0] == 0
    assert all(a <= b for a, b in pairwise(schedule.offsets_ns.tolist()))
    assert schedule.offsets_ns[-1] == max(moments) - min(moments)
