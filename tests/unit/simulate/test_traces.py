"""What people record, and what is wrong with it."""

from __future__ import annotations

import pytest

from headrace.cli.main import main
from headrace.core.events import (
    BatchLimits,
    InstanceAdded,
    ModelAdded,
    QueuedRequest,
    RequestsArrived,
)
from headrace.core.scheduler import Scheduler
from headrace.engine.recording import Recorder, read_recording
from headrace.errors import ConfigError
from headrace.simulate.replay import replay
from headrace.simulate.traces import read_trace


def written(path, text):
    path.write_text(text)
    return path


def test_a_csv(tmp_path):
    path = written(
        tmp_path / "day.csv",
        "time_s, tenant, slo_ms, rows\n10.5,a,50,1\n10.25,b,,3\n11,a,20,1\n",
    )

    arrivals = read_trace(path, slo_ns=7)

    assert [a.at_ns for a in arrivals] == [0, 250_000_000, 750_000_000]
    assert [a.slo_ns for a in arrivals] == [7, 50_000_000, 20_000_000]
    assert [a.tenant for a in arrivals] == [2, 1, 1]
    assert [a.rows for a in arrivals] == [3, 1, 1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "time_s"),
        ("when\n1\n", "time_s, and 'when' is none"),
        ("time_s\n", "no request"),
        ("time_s\nsoon\n", ":2: could not convert string to float: 'soon'"),
        ("time_s\n1\n-1\n", ":3: time_s: expected a number from 0"),
        ("time_s,rows\n1,0\n", ":2: rows: expected a number from 1"),
        ("time_s\nnan\n", ":2: time_s"),
    ],
)
def test_a_csv_that_is_wrong(tmp_path, text, problem):
    with pytest.raises(ConfigError) as caught:
        read_trace(written(tmp_path / "day.csv", text))
    assert problem in caught.value.message


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "server.jsonl"
    recorder = Recorder(path, 10**9)
    handle = recorder.around(Scheduler().handle)
    handle(ModelAdded(1, BatchLimits(max_rows=4)), now_ns=5)
    handle(InstanceAdded(0), now_ns=6)
    for number in range(1, 20):
        request = QueuedRequest(number, 1, 1, 0, 0, number * 10, number * 10 + 10**9)
        handle(RequestsArrived([request]), now_ns=number * 10)
    recorder.close()
    return path


def test_a_recording_replays_to_the_same_decisions(recording):
    told = replay(recording)

    assert (told.events, told.differences) == (21, [])
    assert len(list(read_recording(recording))) == 21


def test_a_recording_is_a_trace_too(recording):
    arrivals = read_trace(recording)

    assert [a.at_ns for a in arrivals] == [10 * n for n in range(19)]
    assert {a.timeout_ns for a in arrivals} == {10**9}


def test_a_decision_that_was_another_one_is_shown(recording, capsys):
    text = recording.read_text().replace('"request_ids":[1]', '"request_ids":[2]')
    recording.write_text(text)

    assert main(["replay", str(recording)]) == 1
    out = capsys.readouterr().out
    assert "line 4" in out
    assert "- ExecuteBatch" in out
    assert "+ ExecuteBatch" in out


def test_the_last_line_may_be_cut_short(recording):
    recording.write_bytes(recording.read_bytes()[:-20])

    assert replay(recording).events == 20


def test_what_is_no_recording_is_said(tmp_path, capsys):
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert main(["replay", str(written(tmp_path / "x", "time_s\n1\n"))]) == 2
    bad = written(tmp_path / "y", '{"format":"headrace recording 1"}\n{"t":1,"e":["Gone",{}]}\n')
    assert main(["replay", str(bad)]) == 2
    assert ":2: not an event" in capsys.readouterr().err


def test_a_recording_ends_where_it_is_told_to(tmp_path, caplog):
    recorder = Recorder(tmp_path / "small", 200)
    handle = recorder.around(Scheduler().handle)
    for number in range(50):
        handle(InstanceAdded(number), now_ns=number)
    recorder.close()

    assert (tmp_path / "small").stat().st_size <= 200 + 40
    assert "ends here" in caplog.text


def test_a_file_that_cannot_be_written_is_told_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="cannot write the recording"):
        Recorder(tmp_path / "no" / "where", 100)
