"""Which clock counts."""

from __future__ import annotations

import pytest

from headrace.engine import stopwatch

from .conftest import ScriptedModel

MS = 1_000_000


@pytest.fixture
def clocks(monkeypatch):
    """The wall clock and this process's processor clock, moved on by an execution."""
    now = {"wall": 0, "cpu": 0}
    monkeypatch.setattr(stopwatch.time, "monotonic_ns", lambda: now["wall"])
    monkeypatch.setattr(stopwatch.time, "process_time_ns", lambda: now["cpu"])

    class Model(ScriptedModel):
        wall_ms, cpu_ms = 30, 10

        def execute(self, inputs):
            now["wall"] += self.wall_ms * MS
            now["cpu"] += self.cpu_ms * MS
            return []

    return Model


def test_a_busy_machine_makes_the_wall_clock_late(clocks):
    assert stopwatch.time_once(clocks(), []) == 10 * MS


def test_an_accelerator_takes_no_processor_time(clocks):
    model = clocks()
    model.cpu_ms = 5

    assert stopwatch.time_once(model, []) == 30 * MS


def test_what_the_server_computes_meanwhile_is_not_the_time_of_a_model_in_a_child(clocks):
    model = clocks()
    model.may_run_inline = False

    assert stopwatch.time_once(model, []) == 30 * MS
