"""Newcomers on probation, room for models, absence: the manager with real ONNX models."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.config import EnsembleStep, ModelConfig, TensorConfig
from headrace.engine import residency as residency_module
from headrace.engine import standby as standby_module
from headrace.engine.catalog import ABSENT
from headrace.engine.models import ModelManager
from headrace.engine.residency import Residency
from headrace.errors import InferenceFailed, InvalidRequest, ModelAbsent, ModelLoadError
from headrace.lifetimes import ResidencyConfig, RolloutConfig
from headrace.repository.base import ModelSource
from headrace.telemetry.instruments import Instrument
from headrace.testing import onnx_models
from headrace.types import InferenceRequest

from .assembled import tensor
from .house import until

MB = 1 << 20
X = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture
async def make(bench, tmp_path):
    made = []

    def make(**arguments) -> ModelManager:
        manager = ModelManager(
            bench.engine, cache_dir=tmp_path / "cache", instrument=Instrument(), **arguments
        )
        made.append(manager)
        return manager

    yield make
    for manager in made:
        await manager.close()


def source(tmp_path, name="m", version="1", *, seed=0, data=None, **config) -> ModelSource:
    folder = tmp_path / name / version
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(onnx_models.mlp(seed, widths=(4, 4, 2)) if data is None else data)
    config = ModelConfig(runtime="onnxruntime", instances=1, **config)
    return ModelSource(name, version, "onnx", path, folder, config=config)


def state(bench, version="1", name="m"):
    (found,) = [
        s for s in bench.engine.catalog.statuses() if (s.name, s.version) == (name, version)
    ]
    return found.state, found.reason


async def ask(bench, name="m", version="", rows=X):
    request = InferenceRequest(name, [tensor("x", rows)], version)
    return (await bench.engine.infer(request)).outputs[0].data


def reference(seed: int):
    return onnx_models.mlp_reference(np.array(X, np.float32), seed, widths=(4, 4, 2))


# -- newcomers -----------------------------------------------------------------------------------


async def well_known(bench, manager, tmp_path, **config):
    """Version 1, with enough answers to be a measure."""
    await manager.load(source(tmp_path, **config))
    for _ in range(60):
        await ask(bench)


GUARD = RolloutConfig(guard="10m", min_requests=50)


async def test_what_a_newcomer_replaced_stands_by_and_comes_back(bench, make, tmp_path):
    manager = make()
    await well_known(bench, manager, tmp_path, rollout=GUARD)
    assert (
        await manager.replace([source(tmp_path, "m", "2", seed=5, rollout=GUARD)], drain_s=5) == []
    )
    assert np.allclose(await ask(bench), reference(5), atol=1e-5)
    assert manager.stands_by("m")
    assert state(bench)[0] == "UNLOADING"

    (leaving,) = manager.roll_back("m", "by hand", drain_s=5)

    assert np.allclose(await ask(bench), reference(0), atol=1e-5)
    await leaving
    assert state(bench) == ("READY", "")
    assert state(bench, "2") == ("UNAVAILABLE", "taken back: by hand")
    with pytest.raises(InvalidRequest, match="no earlier version"):
        manager.roll_back("m", "again", drain_s=5)


async def test_the_same_version_loaded_again_is_taken_back_too(bench, make, tmp_path):
    manager = make()
    await well_known(bench, manager, tmp_path, rollout=GUARD)
    await manager.replace([source(tmp_path, seed=5, rollout=GUARD)], drain_s=5)
    assert np.allclose(await ask(bench), reference(5), atol=1e-5)
    for leaving in manager.roll_back("m", "by hand", drain_s=5):
        await leaving
    assert np.allclose(await ask(bench), reference(0), atol=1e-5)
    assert state(bench) == ("READY", "")


async def test_a_newcomer_that_fails_is_taken_back_by_itself(bench, make, tmp_path, monkeypatch):
    monkeypatch.setattr(standby_module.Standby.__init__, "__defaults__", (0.01,))
    manager = make()
    await well_known(bench, manager, tmp_path, rollout=GUARD)
    await manager.replace([source(tmp_path, "m", "2", seed=5, rollout=GUARD)], drain_s=5)
    newcomer = bench.engine.catalog.resolve("m")

    def broken(inputs):
        raise InferenceFailed("no")

    newcomer.loaded.execute = broken
    for _ in range(60):
        try:
            await ask(bench)
        except InferenceFailed:
            pass
    await until(lambda: state(bench, "2")[0] == "UNAVAILABLE")
    assert "of its first" in state(bench, "2")[1]
    assert np.allclose(await ask(bench), reference(0), atol=1e-5)


async def test_a_good_newcomer_stays_and_the_old_one_leaves(bench, make, tmp_path, monkeypatch):
    monkeypatch.setattr(standby_module.Standby.__init__, "__defaults__", (0.01,))
    short = RolloutConfig(guard="50ms", min_requests=50)
    manager = make()
    await well_known(bench, manager, tmp_path, rollout=short)
    await manager.replace([source(tmp_path, "m", "2", seed=5, rollout=short)], drain_s=5)
    await until(lambda: state(bench) == ("UNAVAILABLE", "unloaded"))
    assert np.allclose(await ask(bench), reference(5), atol=1e-5)
    assert not manager.stands_by("m")


async def test_without_a_measure_nothing_stands_by(bench, make, tmp_path):
    manager = make()
    await manager.load(source(tmp_path, rollout=GUARD))
    (leaving,) = await manager.replace([source(tmp_path, "m", "2", rollout=GUARD)], drain_s=5)
    await leaving
    assert state(bench) == ("UNAVAILABLE", "unloaded")


async def test_a_newcomer_that_cannot_run_what_came_lately_is_not_published(bench, make, tmp_path):
    manager = make()
    await manager.load(source(tmp_path, data=onnx_models.identity("FP32")))
    served = bench.engine.catalog.resolve("m")
    served.health.ran([np.zeros((3, 4), np.float32)])
    bad = source(tmp_path, "m", "2", data=onnx_models.identity("FP32"))
    with pytest.MonkeyPatch.context() as patch:
        from headrace.runtimes.onnx import OnnxModel

        execute = OnnxModel.execute

        def three_rows_fail(self, inputs):
            if len(inputs[0]) == 3 and self is not served.loaded:
                raise InferenceFailed("three rows")
            return execute(self, inputs)

        patch.setattr(OnnxModel, "execute", three_rows_fail)
        with pytest.raises(ModelLoadError, match="that the version before it runs: three rows"):
            await manager.replace([bad], drain_s=5)
    assert state(bench) == ("READY", "")
    assert state(bench, "2")[0] == "UNAVAILABLE"
    assert len(await ask(bench)) == 1


async def test_versions_that_did_not_change_are_not_loaded_again(bench, make, tmp_path):
    manager = make()
    one = source(tmp_path)
    kept = await manager.load(one)
    await manager.replace([one, source(tmp_path, "m", "2", seed=5)], drain_s=5)
    assert bench.engine.catalog.resolve("m", "1") is kept
    assert bench.engine.catalog.resolve("m").version == "2"


async def test_history_tells_every_phase(bench, make, tmp_path):
    manager = make()
    await manager.load(source(tmp_path))
    lines = manager.histories.of("m")
    assert lines[0]["event"] == "begin"
    assert [line["phase"] for line in lines if line["phase"]] == [
        "verifying",
        "loading",
        "measuring",
        "warming",
    ]
    assert lines[-1]["state"] == "READY"
    assert "onnxruntime" in lines[-1]["reason"]


# -- memory --------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """What is in use is what the models say they take, and loading takes no more than that."""
    monkeypatch.setattr(residency_module, "PEAK", 1.0)
    monkeypatch.setattr(
        Residency, "used_bytes", lambda self: sum(each.size_bytes for each in self.places)
    )
    from headrace.engine.loads import Loader

    monkeypatch.setattr(Loader, "known_bytes", lambda self, source: 10 * MB)
    load = Loader.load

    async def sized(self, *arguments, **keywords):
        loaded = await load(self, *arguments, **keywords)
        loaded.served.size_bytes = 10 * MB
        return loaded

    monkeypatch.setattr(Loader, "load", sized)


async def test_what_is_worth_least_leaves_and_comes_back(bench, make, tmp_path, counted):
    manager = make(memory_budget_bytes=25 * MB)
    for name in ("a", "b"):
        await manager.load(source(tmp_path, name))
    for _ in range(5):
        await ask(bench, "a")
    await manager.load(source(tmp_path, "c"))
    assert state(bench, name="b") == ("UNAVAILABLE", ABSENT)
    with pytest.raises(ModelAbsent):
        await ask(bench, "b")
    await ask(bench, "c")
    await manager.bring("b", "1")
    assert len(await ask(bench, "b")) == 1
    assert sorted(served.name for served in bench.engine.catalog.served()) == ["a", "b"]


async def test_pinned_models_stay_and_the_refusal_names_them(bench, make, tmp_path, counted):
    manager = make(memory_budget_bytes=15 * MB)
    await manager.load(source(tmp_path, "a", residency=ResidencyConfig(pinned=True)))
    with pytest.raises(ModelLoadError, match="does not fit") as caught:
        await manager.load(source(tmp_path, "b"))
    assert caught.value.code == "no_memory"
    assert caught.value.details["held"] == ["a version 1"]
    assert "a version 1 (10 MiB, pinned)" in caught.value.hint
    assert state(bench, name="b")[0] == "UNAVAILABLE"
    manager.pin("a", pinned=False)
    await manager.load(source(tmp_path, "b"))
    assert state(bench, name="a") == ("UNAVAILABLE", ABSENT)


async def test_at_the_start_nobody_is_thrown_out_for_the_next(bench, make, tmp_path, counted):
    manager = make(memory_budget_bytes=25 * MB)
    assert await manager.load_all([source(tmp_path, name) for name in "abc"]) == []
    states = [state(bench, name=name)[0] for name in "abc"]
    assert sorted(states) == ["READY", "READY", "UNAVAILABLE"]


async def test_lazy_models_and_what_is_made_of_them_are_loaded_when_asked_for(
    bench, make, tmp_path
):
    lazy = ResidencyConfig(load="lazy")
    same = source(tmp_path, "same", data=onnx_models.identity("FP32"), residency=lazy)
    signature = {"datatype": "FP32", "shape": (-1, 4)}
    whole = ModelConfig(
        inputs=(TensorConfig(name="x", **signature),),
        outputs=(TensorConfig(name="y", **signature),),
        ensemble=(EnsembleStep(model="same", input_map={"x": "x"}, output_map={"y": "y"}),),
    )
    ensemble = ModelSource("e", "1", "ensemble", tmp_path / "config.pbtxt", tmp_path, config=whole)
    manager = make()
    assert await manager.load_all([same, ensemble]) == []
    assert [state(bench, name=name) for name in ("same", "e")] == [("UNAVAILABLE", ABSENT)] * 2
    await manager.bring("e", "1")
    assert (await ask(bench, "e")).tolist() == X


async def test_what_nobody_asks_for_leaves(bench, make, tmp_path):
    manager = make()
    idle = ResidencyConfig(idle_unload="50ms")
    assert await manager.load_all([source(tmp_path, residency=idle), source(tmp_path, "n")]) == []
    await ask(bench)
    await until(lambda: state(bench) == ("UNAVAILABLE", ABSENT))
    await until(lambda: manager.histories.of("m")[-1]["event"] == "gone")
    assert state(bench, name="n") == ("READY", "")
    assert any(line["reason"] == "nobody asked for it" for line in manager.histories.of("m"))
    await manager.bring("m", "1")
    assert len(await ask(bench)) == 1


async def test_one_line_for_each_version(bench, make, tmp_path):
    manager = make()
    await manager.load(source(tmp_path, aliases={"stable": "1"}))
    manager.leave_absent(source(tmp_path, "lazy"))
    lazy, loaded = sorted(manager.describe(), key=lambda line: line["name"])
    assert (loaded["aliases"], loaded["default"], loaded["absent"]) == (["stable"], True, False)
    assert loaded["runtime"] == "onnxruntime"
    assert loaded["size_bytes"] > 0
    assert (lazy["absent"], lazy["state"]) == (True, "UNAVAILABLE")
