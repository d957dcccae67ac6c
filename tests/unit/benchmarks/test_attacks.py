"""Every attack of the benchmark is held; what it costs is measured by the benchmark alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import attacks, mutated
from benchmarks.attack_cases import ATTACKS, Attack
from benchmarks.settings import Settings


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.send.__name__)
def test_an_attack_is_held(attack: Attack, tmp_path: Path) -> None:
    result = attacks.measure(attack, Settings(seconds=1), tmp_path)
    assert result.figures["held"] == "yes", result.figures
    assert result.figures["honest beside, share"] != 0.0, result.figures


@pytest.mark.slow
def test_mutated_requests_break_nothing(tmp_path: Path) -> None:
    settings = Settings(scale=0.02, work=tmp_path / "work", out=tmp_path / "out")
    (result,) = mutated.run(settings)
    goals = {goal.what: goal for goal in result.goals}
    assert goals["answers 500, grpc-status 2 or 13"].met, result.figures
