"""What goes wrong with a model: who notices, what is told, and that all is well again."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks.faults import FAULTS, Fault, measure, table

MAY_LOSE_REQUESTS = {faults.killed}
"""What was running in a process that is killed cannot be answered but with an error."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_told_and_mended(fault: Fault, tmp_path: Path) -> None:
    result = measure(fault, tmp_path / "work")
    figures = result.figures
    assert all(goal.met for goal in result.goals), figures
    assert isinstance(figures["failed"], int)
    if fault in MAY_LOSE_REQUESTS:
        assert figures["failed"] == 0 or "child process" in str(figures["callers saw"])
    else:
        assert figures["failed"] == 0, figures
    assert figures["told"]
    assert len(list(table([result]))) == 5
