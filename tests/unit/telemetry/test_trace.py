"""Traces: what can be set, which requests are taken, and what is in the file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.config import TraceConfig
from headrace.errors import InvalidRequest, Unsupported
from headrace.telemetry import trace_files
from headrace.telemetry.instruments import Instrument, RequestRecord
from headrace.telemetry.trace import Tracer, Tracing
from headrace.telemetry.trace_files import append
from headrace.types import InferenceRequest, Tensor

OFF = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


class Ticketed(RequestRecord, gc=True):
    """A record with the request it is of, as the engine's tickets are."""

    request: InferenceRequest | None = None


def a_record(model: str = "m", number: int = 0, **more: Any) -> RequestRecord:
    stamps = [10, 20, 30, 40, 50, 70, 80, 90]
    request = InferenceRequest(model, more.pop("inputs", []), id=f"r{number}")
    return Ticketed(model, "3", 1, 0, *stamps, executed_ns=60, request=request)


class Server:
    """Tracing as a server has it: nobody watches unless there is something to trace."""

    def __init__(self, **config: Any) -> None:
        self.instrument: Instrument = Instrument()
        self.tracing = Tracing(TraceConfig(**config), watch=self._watch)

    def _watch(self, tracing: Tracing | None) -> None:
        self.instrument = Instrument() if tracing is None else Tracer(tracing, Instrument())

    @property
    def is_traced(self) -> bool:
        return isinstance(self.instrument, Tracer)

    def serve(self, count: int, model: str = "m") -> None:
        for number in range(count):
            self.instrument.requests_completed([a_record(model, number)], 100)

    def numbers(self, file: Path) -> list[str]:
        """The requests in the file."""
        self.tracing.close()
        return [trace["request_id"] for trace in json.loads(file.read_text())]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


def test_a_server_begins_with_tritons_defaults() -> None:
    server = Server()
    assert server.tracing.body() == server.tracing.body("m") == OFF
    assert not server.is_traced


def test_a_trace_has_every_stamp_of_its_request(file: Path) -> None:
    server = Server(level=("TIMESTAMPS",), rate=1, file=str(file))
    server.instrument.requests_completed([a_record(number=7)], 100)
    server.tracing.close()
    (trace,) = json.loads(file.read_text())
    assert {name: trace[name] for name in ("model_name", "model_version", "request_id")} == {
        "model_name": "m",
        "model_version": 3,
        "request_id": "r7",
    }
    assert [(stamp["name"], stamp["ns"]) for stamp in trace["timestamps"]] == [
        ("REQUEST_START", 10),
        ("QUEUE_START", 30),
        ("COMPUTE_START", 40),
        ("COMPUTE_INPUT_END", 50),
        ("COMPUTE_OUTPUT_START", 60),
        ("COMPUTE_END", 70),
        ("REQUEST_END", 100),
    ]


def test_a_request_that_never_ran_has_no_stamps_of_running(file: Path) -> None:
    server = Server(level=("TIMESTAMPS",), rate=1, file=str(file))
    record = RequestRecord("m", "3", arrived_ns=10, decoded_ns=20, admitted_ns=30)
    server.instrument.request_failed(record, "expire", "deadline_exceeded", 100)
    server.tracing.close()
    (trace,) = json.loads(file.read_text())
    assert [stamp["name"] for stamp in trace["timestamps"]] == [
        "REQUEST_START",
        "QUEUE_START",
        "REQUEST_END",
    ]


def test_one_of_so_many_requests_is_taken(file: Path) -> None:
    server = Server(level=("TIMESTAMPS",), rate=3, file=str(file))
    server.serve(10)
    assert server.numbers(file) == ["r2", "r5", "r8"]


def test_it_ends_after_so_many(file: Path) -> None:
    server = Server(level=("TIMESTAMPS",), rate=2, count=2, file=str(file))
    server.serve(3)
    assert server.tracing.body()["trace_count"] == "1"
    server.serve(7)
    assert server.tracing.body()["trace_count"] == "0"
    assert len(server.numbers(file)) == 2


def test_a_count_that_is_said_again_counts_anew(file: Path) -> None:
    server = Server(level=("TIMESTAMPS",), rate=1, count=1, file=str(file))
    server.serve(2)
    server.tracing.update("", {"trace_count": "1"})
    server.serve(2)
    assert len(server.numbers(file)) == 2


def test_so_many_traces_for_each_file(file: Path) -> None:
    server = Server(level=("TIMESTAMPS",), rate=1, log_frequency=2, file=str(file))
    server.serve(5)
    server.tracing.close()
    numbered = [Path(f"{file}.{number}") for number in range(3)]
    assert [len(json.loads(each.read_text())) for each in numbered] == [2, 2, 1]
    assert not file.exists()
    assert not Path(f"{file}.3").exists()


def test_a_file_is_valid_between_two_traces_and_nothing_is_lost(file: Path) -> None:
    for number in range(3):
        append(file, [{"id": number}])
        assert [each["id"] for each in json.loads(file.read_text())] == list(range(number + 1))


def test_what_is_no_array_is_replaced(file: Path) -> None:
    file.write_text("something else, and long")
    append(file, [{"id": 1}])
    assert json.loads(file.read_text()) == [{"id": 1}]


def test_tensors_are_traced_where_they_are_asked_for(file: Path) -> None:
    server = Server(level=("TENSORS",), rate=1, file=str(file))
    data = np.array([[1.5, 2]], np.float32)
    texts = np.array([b"a"], object)
    inputs = [Tensor("x", "FP32", (1, 2), data), Tensor("t", "BYTES", (1,), texts)]
    server.instrument.requests_completed([a_record(inputs=inputs)], 100)
    server.tracing.close()
    (trace,) = json.loads(file.read_text())
    assert [(t["name"], t["shape"], t["data"]) for t in trace["tensors"]] == [
        ("x", "1,2", "1.5,2.0"),
        ("t", "1", "a"),
    ]


def test_a_model_has_settings_of_its_own_and_the_rest_from_the_server(file: Path) -> None:
    server = Server(file=str(file))
    server.tracing.update("m", {"trace_level": ["TIMESTAMPS"], "trace_rate": "1"})
    server.tracing.update("", {"log_frequency": "4", "trace_rate": "9"})
    assert server.tracing.body("m") == {
        **OFF,
        "trace_level": ["TIMESTAMPS"],
        "trace_rate": "1",
        "log_frequency": "4",
        "trace_file": str(file),
    }
    assert server.tracing.body("other")["trace_rate"] == "9"
    server.serve(2)
    server.serve(2, "other")
    server.tracing.close()
    (only,) = [Path(f"{file}.0")]
    assert {trace["model_name"] for trace in json.loads(only.read_text())} == {"m"}


def test_null_takes_a_setting_back() -> None:
    server = Server(file="f", rate=50)
    server.tracing.update("", {"trace_rate": "7", "log_frequency": 3})
    server.tracing.update("m", {"trace_rate": "2"})
    server.tracing.update("m", {"trace_rate": None})
    assert server.tracing.body("m")["trace_rate"] == "7"
    server.tracing.update("", {"trace_rate": None})
    assert server.tracing.body("m")["trace_rate"] == "50"
    assert server.tracing.body()["log_frequency"] == "3"


def test_of_a_model_nothing_takes_all_back() -> None:
    server = Server(file="f")
    server.tracing.update("m", {"trace_level": ["TIMESTAMPS"], "trace_count": "5"})
    assert server.is_traced
    server.tracing.update("m", {})
    assert server.tracing.body("m") == server.tracing.body()
    assert not server.is_traced


def test_switched_off_nobody_watches(file: Path) -> None:
    server = Server(level=("TIMESTAMPS",), rate=1, file=str(file))
    server.tracing.update("", {"trace_level": ["OFF"]})
    assert not server.is_traced
    server.tracing.update("", {"trace_level": "TIMESTAMPS"})
    assert server.is_traced


def test_without_a_file_nobody_watches() -> None:
    assert not Server(level=("TIMESTAMPS",)).is_traced


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"trace_rate": "many"}, "Unable to parse 'trace_rate', got: many"),
        ({"trace_rate": "-1"}, "out of range [ 0, 4294967295 ], got: -1"),
        ({"trace_rate": "4294967296"}, "out of range"),
        ({"trace_rate": True}, "Unable to parse 'trace_rate'"),
        ({"trace_rate": ["1", "2"]}, "expect only 1 value for 'trace_rate'"),
        ({"trace_count": "-2"}, "Expecting value >= -1, got:-2"),
        ({"log_frequency": "1" * 99}, "out of range"),
        ({"trace_level": ["LOUD"]}, "got: LOUD"),
        ({"trace_level": 3}, "Unable to parse 'trace_level'"),
        ({"trace_level": ["OFF", "TENSORS"]}, "cannot be combined"),
        ({"trace_colour": "red"}, "unknown trace setting 'trace_colour'"),
    ],
)
def test_a_wrong_setting_changes_nothing(update: dict[str, Any], text: str) -> None:
    server = Server()
    with pytest.raises(InvalidRequest) as caught:
        server.tracing.update("", {"log_frequency": "3", **update})
    assert text in caught.value.message
    assert server.tracing.body() == OFF


@pytest.mark.parametrize("update", [{"trace_file": "/etc/passwd"}, {"trace_mode": "opentelemetry"}])
def test_where_traces_go_is_not_for_a_caller_to_say(update: dict[str, Any]) -> None:
    server = Server(file="f")
    with pytest.raises(Unsupported, match="can not be updated through network protocol"):
        server.tracing.update("", update)


def test_what_is_shown_can_be_sent_back() -> None:
    server = Server(file="f")
    server.tracing.update("", server.tracing.body())
    assert server.tracing.body() == {**OFF, "trace_file": "f"}


def test_grpc_sends_lists_of_text() -> None:
    server = Server()
    server.tracing.update("", {"trace_rate": ["5"], "trace_level": ["TENSORS"], "trace_count": []})
    body = server.tracing.body()
    assert (body["trace_rate"], body["trace_level"]) == ("5", ["TENSORS"])


def test_a_file_that_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(level=("TIMESTAMPS",), rate=1, file=str(tmp_path / "nowhere" / "trace.json"))
    server.serve(1)
    assert server.tracing.files.flush(timeout_s=30)
    server.serve(2)
    server.tracing.close()
    assert [record.message for record in caplog.records if "nowhere" in record.message] == [
        caplog.records[0].message
    ]


def test_traces_of_two_processes_have_different_numbers(file: Path) -> None:
    for first in (1, 2):
        tracing = Tracing(
            TraceConfig(level=("TIMESTAMPS",), rate=1, file=str(file)),
            watch=lambda _: None,
            first_id=first,
            step=2,
        )
        Tracer(tracing, Instrument()).requests_completed([a_record(), a_record()], 100)
        tracing.close()
    assert sorted(trace["id"] for trace in json.loads(file.read_text())) == [1, 2, 3, 4]


def test_numbered_files_are_private_and_end_at_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_files, "MAX_FILES", 2)
    umask = os.umask(0)
    try:
        for number in range(2):
            trace_files.write_numbered(str(tmp_path / "t"), [{"id": number}])
        trace_files.append(tmp_path / "all", [{"id": 1}])
    finally:
        os.umask(umask)
    with pytest.raises(OSError, match="move them away"):
        trace_files.write_numbered(str(tmp_path / "t"), [{"id": 3}])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {"t.0": 0o600, "t.1": 0o600, "all": 0o600}
