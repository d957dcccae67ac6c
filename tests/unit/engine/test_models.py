"""Sources to served models: what is measured, what is trusted, who waits for whom."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from headrace.config import EnsembleStep, ModelConfig, TensorConfig
from headrace.engine.models import ModelManager
from headrace.errors import ModelLoadError
from headrace.repository.base import ModelSource
from headrace.telemetry.instruments import Instrument
from headrace.testing import onnx_models
from headrace.types import InferenceRequest

from .assembled import tensor, tensor_config


@pytest.fixture
async def manager(bench, tmp_path):
    manager = ModelManager(bench.engine, cache_dir=tmp_path / "cache", instrument=Instrument())
    yield manager
    await manager.close()


def onnx_source(tmp_path, name: str, data: bytes, **config) -> ModelSource:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "model.onnx").write_bytes(data)
    config = ModelConfig(runtime="onnxruntime", instances=1, **config)
    return ModelSource(name, "1", "onnx", folder / "model.onnx", folder, config=config)


def ensemble_source(tmp_path, name: str, *steps: str) -> ModelSource:
    """``x`` through all the steps, one after another."""
    names = ["x", *(f"t{i}" for i in range(len(steps) - 1)), "y"]
    signature = {"datatype": "FP32", "shape": (-1, 4)}
    config = ModelConfig(
        inputs=(TensorConfig(name="x", **signature),),
        outputs=(TensorConfig(name="y", **signature),),
        ensemble=tuple(
            EnsembleStep(model=step, input_map={"x": names[i]}, output_map={"y": names[i + 1]})
            for i, step in enumerate(steps)
        ),
    )
    return ModelSource(name, "1", "ensemble", tmp_path / "config.pbtxt", tmp_path, config=config)


def states(bench) -> dict[str, tuple[str, str]]:
    return {s.name: (s.state, s.reason) for s in bench.engine.catalog.statuses()}


async def test_ensembles_are_loaded_after_their_steps_whatever_the_order(bench, manager, tmp_path):
    sources = [
        ensemble_source(tmp_path, "outer", "inner", "same"),
        ensemble_source(tmp_path, "inner", "same"),
        onnx_source(tmp_path, "same", onnx_models.identity("FP32")),
    ]
    assert await manager.load_all(sources) == []

    request = InferenceRequest("outer", [tensor("x", [[1, 2, 3, 4]])])
    answer = await bench.engine.infer(request)
    assert answer.outputs[0].data.tolist() == [[1, 2, 3, 4]]
    assert bench.engine.catalog.metadata("outer").platform == "ensemble"


async def test_an_ensemble_waits_for_a_model_that_is_not_there_yet(bench, manager, tmp_path):
    whole = ensemble_source(tmp_path, "whole", "late")
    (error,) = await manager.load_all([whole])
    reason = (
        "ensemble 'whole' depends on 'late' which has no loaded version. Model 'late' loading "
        "failed with error: Request for unknown model: 'late' is not found"
    )
    assert error.message == reason
    assert states(bench)["whole"] == ("UNAVAILABLE", reason)

    await manager.load(onnx_source(tmp_path, "late", onnx_models.identity("FP32")))
    await manager.load(whole)
    assert states(bench)["whole"] == ("READY", "")


async def test_ensembles_that_need_one_another_are_refused(bench, manager, tmp_path):
    errors = await manager.load_all(
        [
            ensemble_source(tmp_path, "a", "b"),
            ensemble_source(tmp_path, "b", "a"),
            onnx_source(tmp_path, "same", onnx_models.identity("FP32")),
        ]
    )
    assert [error.message for error in errors] == [
        "ensemble 'a' has a circular dependency: ['a', 'b'] need one another",
        "ensemble 'b' has a circular dependency: ['a', 'b'] need one another",
    ]
    assert {name: state for name, (state, _) in states(bench).items()} == {
        "a": "UNAVAILABLE",
        "b": "UNAVAILABLE",
        "same": "READY",
    }


async def test_batching_is_proved_even_where_it_is_declared(bench, manager, tmp_path):
    declared = {
        "inputs": (tensor_config("x", (-1, 4)),),
        "triton_config": {"max_batch_size": 4},
    }
    source = onnx_source(tmp_path, "same", onnx_models.identity("FP32"), **declared)
    served = await manager.load(source)
    assert served.profile.batchable
    assert served.profile.row_ns > 0

    alone = msgspec.structs.replace(source.config, triton_config={"max_batch_size": 0})
    source = msgspec.structs.replace(source, name="alone", config=alone)
    served = await manager.load(source)
    assert not served.profile.batchable
    assert "do not begin with rows" in served.profile.reason


async def test_a_model_that_its_declaration_does_not_fit_is_shown_with_the_reason(
    bench, manager, tmp_path
):
    inputs = (tensor_config("x", (-1, 4), "INT32"),)
    source = onnx_source(tmp_path, "same", onnx_models.identity("FP32"), inputs=inputs)
    with pytest.raises(ModelLoadError, match="expecting TYPE_FP32"):
        await manager.load(source)
    state, reason = states(bench)["same"]
    assert state == "UNAVAILABLE"
    assert "unexpected datatype TYPE_INT32 for inference input 'x'" in reason


async def test_a_declared_onnx_model_answers_in_its_declared_shape(bench, manager, tmp_path):
    declared = {
        "inputs": (tensor_config("x", (-1, 2, 2), model_shape=(-1, 4)),),
        "outputs": (tensor_config("y", (-1, 4, 1), model_shape=(-1, 4)),),
    }
    await manager.load(onnx_source(tmp_path, "same", onnx_models.identity("FP32"), **declared))
    x = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    answer = await bench.engine.infer(InferenceRequest("same", [tensor("x", x)]))
    assert answer.outputs[0].shape == (2, 4, 1)
    assert answer.outputs[0].data.reshape(-1).tolist() == x.reshape(-1).tolist()
