"""A newcomer runs what the version before it was given, before anybody asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.config import ModelConfig
from headrace.engine import shadow
from headrace.engine.models import ModelManager
from headrace.engine.served import ServedModel
from headrace.engine.shadow import shadow_warm
from headrace.errors import InferenceFailed, ModelLoadError
from headrace.lifetimes import RolloutConfig
from headrace.repository.base import ModelSource
from headrace.runtimes.base import LoadedModel
from headrace.telemetry.instruments import Instrument
from headrace.testing import onnx_models
from headrace.types import InferenceRequest, ModelMetadata, TensorSpec

from .assembled import tensor
from .conftest import Bench, ScriptedModel
from .house import House, until

X = TensorSpec("x", "FP32", (-1, 2))
MAYBE = TensorSpec("bias", "INT64", (-1,), optional=True)

UNGUARDED = {"rollout": RolloutConfig(guard="")}


def served(model: LoadedModel, version: str = "2") -> ServedModel:
    return ServedModel(
        metadata=ModelMetadata("m", (version,), "test", tuple(model.inputs), tuple(model.outputs)),
        version=version,
        loaded=model,
        task=None,
        runtime="test",
        config=ModelConfig(),
    )


def refusing(*rows: int):
    """Cannot run batches of so many rows."""

    def compute(x: np.ndarray, *_: np.ndarray) -> Sequence[np.ndarray]:
        if len(x) in rows:
            raise InferenceFailed(f"{len(x)} rows are too many")
        return [x]

    return compute


def shapes_run(model: ScriptedModel) -> list[tuple]:
    return [tuple(None if a is None else a.shape for a in batch) for batch in model.batches]


def test_it_runs_every_shape_in_that_order() -> None:
    new = ScriptedModel((X, MAYBE))
    new.compute = lambda x, bias=None: [x]
    shapes = [((4, 2), (3,)), ((1, 2), None), ((8, 2), (1,))]
    assert shadow_warm(served(new), shapes, None, 30) == 3
    assert shapes_run(new) == shapes
    assert [array.dtype for array in new.batches[0]] == [np.float32, np.int64]


@pytest.mark.parametrize(
    "other",
    [((4, 3),), ((4,),), ((4, 2, 1),), ((4, 2), (1,)), (), (None,)],
    ids=["a size", "an axis less", "an axis more", "an input more", "none", "one left out"],
)
def test_what_its_signature_does_not_take_is_left_out(other) -> None:
    new = ScriptedModel()
    assert shadow_warm(served(new), [other, ((1, 2),)], None, 30) == 1
    assert shapes_run(new) == [((1, 2),)]


def test_it_stops_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 4.0, 5.0])
    monkeypatch.setattr(shadow.time, "monotonic", lambda: next(ticks))
    new = ScriptedModel()
    assert shadow_warm(served(new), [((rows, 2),) for rows in (1, 2, 3, 4)], None, 5) == 2


def test_failing_where_the_version_before_it_does_not_is_the_end() -> None:
    old, new = ScriptedModel(), ScriptedModel()
    new.compute = refusing(8)
    with pytest.raises(ModelLoadError, match="failed at a batch of shapes 8x2") as caught:
        shadow_warm(served(new), [((1, 2),), ((8, 2),)], served(old, "1"), 30)
    assert caught.value.code == "warm_up_failed"
    assert "model 'm' version 2" in caught.value.message
    assert "8 rows are too many" in caught.value.message
    assert shapes_run(old) == [((8, 2),)]  # asked only where the newcomer failed


def test_where_both_fail_nothing_is_proved() -> None:
    old, new = ScriptedModel(), ScriptedModel()
    old.compute = new.compute = refusing(8)
    assert shadow_warm(served(new), [((8, 2),), ((1, 2),)], served(old, "1"), 30) == 1
    assert shapes_run(new) == [((8, 2),), ((1, 2),)]


def test_without_a_version_before_it_nothing_is_proved_either() -> None:
    new = ScriptedModel()
    new.compute = refusing(8)
    assert shadow_warm(served(new), [((8, 2),), ((1, 2),)], None, 30) == 1


def test_what_keeps_a_state_is_told_nothing_that_is_not_true() -> None:
    new = ScriptedModel()
    new.takes_requests = True
    assert shadow_warm(served(new), [((1, 2),)], None, 30) == 0
    assert new.batches == []


# -- through the manager -----------------------------------------------------------------------


@pytest.fixture
async def house(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    house = House(bench, tmp_path, monkeypatch)
    yield house
    await house.manager.close()


async def test_a_newcomer_has_run_before_it_is_asked(house: House) -> None:
    await house.manager.load(house.source(**UNGUARDED))
    await house.ask(times=2)
    new = house.models["m", "2"] = ScriptedModel()
    await house.manager.replace([house.source(version="2", **UNGUARDED)], drain_s=30)
    assert shapes_run(new) == [((1, 2),)]
    assert house.served().health.shapes() == [((1, 2),)]
    assert house.served().health.answered == 0  # nobody asked


async def test_shapes_are_handed_down(house: House) -> None:
    await house.manager.load(house.source(**UNGUARDED))
    await house.ask()
    for version in ("2", "3"):
        await house.manager.replace([house.source(version=version, **UNGUARDED)], drain_s=30)
    assert shapes_run(house.models["m", "3"]) == [((1, 2),)]


async def test_one_that_cannot_is_not_published_and_the_old_one_goes_on(house: House) -> None:
    await house.manager.load(house.source(**UNGUARDED))
    await house.ask()
    old = house.models["m", "1"]
    new = house.models["m", "2"] = ScriptedModel()
    new.compute = refusing(1)
    with pytest.raises(ModelLoadError) as caught:
        await house.manager.replace([house.source(version="2", **UNGUARDED)], drain_s=30)
    assert caught.value.code == "warm_up_failed"
    assert new.unloaded
    assert not old.unloaded
    assert (await house.ask()).model_version == "1"
    assert house.state(version="1") == ("READY", "")
    assert house.state(version="2") == ("UNAVAILABLE", caught.value.message)
    assert house.events()[-1] == ("failed", caught.value.message)


async def test_nobody_runs_anything_where_it_is_turned_off(house: House) -> None:
    off = {"rollout": RolloutConfig(guard="", shadow_warm_s=0)}
    await house.manager.load(house.source(**off))
    await house.ask()
    new = house.models["m", "2"] = ScriptedModel()
    await house.manager.replace([house.source(version="2", **off)], drain_s=30)
    assert new.batches == []


# -- and with real models ----------------------------------------------------------------------


def onnx_source(folder: Path, version: str, data: bytes) -> ModelSource:
    folder = folder / version
    folder.mkdir()
    (folder / "model.onnx").write_bytes(data)
    config = ModelConfig(runtime="onnxruntime", instances=1, **UNGUARDED)
    return ModelSource("m", version, "onnx", folder / "model.onnx", folder, config=config)


@pytest.fixture
async def manager(bench: Bench, tmp_path: Path) -> AsyncIterator[ModelManager]:
    manager = ModelManager(bench.engine, cache_dir=tmp_path / "cache", instrument=Instrument())
    yield manager
    await manager.close()


async def load(bench: Bench, manager: ModelManager, source: ModelSource) -> ServedModel:
    """As one that takes longer than a hop to a thread: of others no shapes are noted."""
    model = await manager.load(source)
    bench.engine.set_profile(model, msgspec.structs.replace(model.profile, inline_rows=0))
    return model


async def ask(bench: Bench, rows: int):
    x = np.ones((rows, 4), np.float32)
    return await bench.engine.infer(InferenceRequest("m", [tensor("x", x)]))


async def test_real_models_take_one_anothers_place(
    bench: Bench, manager: ModelManager, tmp_path: Path
) -> None:
    before = await load(bench, manager, onnx_source(tmp_path, "1", onnx_models.identity("FP32")))
    assert (await ask(bench, 3)).model_version == "1"
    two = onnx_source(tmp_path, "2", onnx_models.mlp(widths=(4, 3)))
    await manager.replace([two], drain_s=30)
    assert (await ask(bench, 3)).outputs[0].shape == (3, 3)
    assert ((3, 4),) in bench.engine.catalog.resolve("m").health.shapes()
    await until(lambda: before not in manager._residency.places)


async def test_a_real_model_that_runs_no_batches_of_that_shape_is_not_published(
    bench: Bench, manager: ModelManager, tmp_path: Path
) -> None:
    await load(bench, manager, onnx_source(tmp_path, "1", onnx_models.identity("FP32")))
    await ask(bench, 3)
    two = onnx_source(tmp_path, "2", onnx_models.only_even_rows())
    with pytest.raises(ModelLoadError) as caught:
        await manager.replace([two], drain_s=30)
    assert caught.value.code == "warm_up_failed"
    assert "3x4" in caught.value.message
    assert (await ask(bench, 3)).model_version == "1"
