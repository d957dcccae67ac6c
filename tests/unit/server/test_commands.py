"""What a worker that starts later has to catch up with: all that still holds, in order."""

from __future__ import annotations

import msgspec
import pytest

from headrace.server.commands import (
    ChangeLog,
    ChangeTrace,
    Command,
    Journal,
    LoadModel,
    RegisterRegion,
    UnloadModel,
    UnregisterRegion,
    decode,
    encode,
)

A = RegisterRegion("a", "/a", 0, 8, 1000)
B = RegisterRegion("b", "/b", 0, 8, 1000)


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ([LoadModel("m"), LoadModel("n")], [LoadModel("m"), LoadModel("n")]),
        ([LoadModel("m", "{}"), LoadModel("m")], [LoadModel("m")]),
        ([LoadModel("m"), UnloadModel("m")], [UnloadModel("m")]),
        ([LoadModel("m"), LoadModel("n"), UnloadModel("m")], [LoadModel("n"), UnloadModel("m")]),
        ([UnloadModel("m", True), LoadModel("step")], [UnloadModel("m", True), LoadModel("step")]),
        ([A, B, UnregisterRegion("a", 1000)], [B]),
        ([A, B, UnregisterRegion("", 1000)], []),
        ([A, UnregisterRegion("a", 1001), UnregisterRegion("", 1001)], [A]),
        ([ChangeLog({"x": 1}), ChangeLog({"y": 2, "x": None})], [ChangeLog({"x": None, "y": 2})]),
        (
            [ChangeTrace("", {"x": 1}), ChangeTrace("m", {"x": 2}), ChangeTrace("", {"y": 3})],
            [ChangeTrace("m", {"x": 2}), ChangeTrace("", {"x": 1, "y": 3})],
        ),
        ([ChangeTrace("m", {"x": 1}), ChangeTrace("m", {})], [ChangeTrace("m", {})]),
    ],
)
def test_a_journal_keeps_what_still_holds(told: list[Command], left: list[Command]) -> None:
    journal = Journal()
    for command in told:
        journal.record(command)
    assert journal.commands == left


@pytest.mark.parametrize(
    "command",
    [
        LoadModel("m", "{}", {"1/model.onnx": b"\0\xff"}),
        UnloadModel("m", True),
        ChangeTrace("m", {"trace_level": ["OFF"], "trace_rate": None}),
        ChangeLog({"log_info": False}),
        A,
        UnregisterRegion("a", 1000),
    ],
)
def test_commands_travel_as_bytes(command: Command) -> None:
    assert decode.decode(encode(command)) == command
    journal = Journal([command])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(journal), type=Journal) == journal
