from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import InferenceFailed, ModelLoadError
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.testing import FakeModel, FakeRuntime

ONES = np.ones((2, 4), np.float32)
ARTIFACT = Artifact("m", "1", Path("model.fake"), Path(), "fake")


def test_it_remembers_what_it_was_given_at_the_time():
    model = FakeModel()
    x = ONES.copy()
    model.execute([x])
    x.fill(9)
    assert model.calls[0][0].tolist() == ONES.tolist()


def test_it_fails_as_often_as_it_was_told():
    model = FakeModel()
    model.fail_next(times=2)
    model.fail_next(ZeroDivisionError())
    for kind in (InferenceFailed, InferenceFailed, ZeroDivisionError):
        with pytest.raises(kind):
            model.execute([ONES])
    assert model.execute([ONES])[0].tolist() == (ONES * 2).tolist()


def test_it_fails_on_what_it_was_told():
    model = FakeModel()
    model.fail_on(lambda inputs: bool(np.isnan(inputs[0]).any()))
    with pytest.raises(InferenceFailed):
        model.execute([ONES * np.nan])
    model.execute([ONES])


def test_it_can_be_held_back_and_counts_who_runs():
    model = FakeModel(concurrency=3)
    with ThreadPoolExecutor(3) as threads:
        with model.gate.closed():
            running = [threads.submit(model.execute, [ONES]) for _ in range(3)]
            model.gate.wait_for(3)
            assert not any(one.done() for one in running)
        for one in running:
            one.result()
    assert model.most_running == 3
    assert not model.violations


@pytest.mark.parametrize("misuse", ["crowd", "unload under way", "use after", "twice", "inputs"])
def test_breaking_the_contract_is_noticed_and_kept(misuse):
    model = FakeModel()
    if misuse in {"crowd", "unload under way"}:
        with ThreadPoolExecutor(1) as threads, model.gate.closed():
            threads.submit(model.execute, [ONES])
            model.gate.wait_for(1)
            with pytest.raises(AssertionError):
                model.execute([ONES]) if misuse == "crowd" else model.unload()
    elif misuse == "inputs":
        with pytest.raises(AssertionError):
            model.execute([ONES, ONES])
    else:
        model.unload()
        with pytest.raises(AssertionError):
            model.unload() if misuse == "twice" else model.execute([ONES])
    assert len(model.violations) == 1


def test_a_runtime_remembers_its_loads_and_gives_the_models_it_was_made_with():
    known = FakeModel()
    runtime = FakeRuntime({"m": known})
    assert runtime.load(ARTIFACT, InstanceConfig()) is known
    runtime.fail_next()
    with pytest.raises(ModelLoadError):
        runtime.load(ARTIFACT, InstanceConfig())
    other = Artifact("n", "1", Path("model.fake"), Path(), "fake")
    assert runtime.load(other, InstanceConfig(concurrency=5)).concurrency == 5
    assert [artifact.name for artifact, _ in runtime.loads] == ["m", "m", "n"]


def test_loads_can_be_held_back():
    runtime = FakeRuntime()
    with ThreadPoolExecutor(1) as threads:
        with runtime.gate.closed():
            loading = threads.submit(runtime.load, ARTIFACT, InstanceConfig())
            runtime.gate.wait_for(1)
            assert not loading.done()
        assert not loading.result().unloaded
