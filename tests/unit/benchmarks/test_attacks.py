"""Every attack of the benchmark is held; what it costs is measured by the benchmark alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks import attacks, mutated
from benchmarks.attack_cases import ATTACKS, Attack
from benchmarks.settings import Settings


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server without and one with the control switch; each is started when it is first used."""
    with ExitStack() as servers:

        def start(watch: bool) -> Any:
            work = tmp_path_factory.mktemp("attacked")
            return servers.enter_context(attacks.attacked(work, 1, watch=watch))

        yield cache(start)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.send.__name__)
def test_an_attack_is_held(attack: Attack, target: Any) -> None:
    attacked = target(attack.watch)
    answer = attack.send(attacked)
    assert re.fullmatch(attack.held, answer)
    assert attacked.server.get("/v2/health/ready")[0] == 200


@pytest.mark.slow
def test_mutated_requests_break_nothing(tmp_path: Path) -> None:
    settings = Settings(scale=0.01, work=tmp_path / "work", out=tmp_path / "out")
    (result,) = mutated.run(settings)
    goals = {goal.what: goal for goal in result.goals}
    assert goals["answers 500, grpc-status 2 or 13"].met, result.figures
