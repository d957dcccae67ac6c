"""Where a model runs, as a table; and that it does."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from headrace.config import ModelConfig
from headrace.engine import opening
from headrace.engine.isolation import LARGE_MODEL_BYTES, Facts, choose_isolation
from headrace.engine.opening import open_model
from headrace.errors import ModelLoadError
from headrace.repository.base import ModelSource
from headrace.runtimes.isolated import IsolatedModel
from headrace.runtimes.onnx import OnnxModel
from headrace.testing import onnx_models

LARGE = {"model_bytes": LARGE_MODEL_BYTES}
BUDGET = {"memory_budget": 1}
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
SAID, CODE = "as configured", "interpreter lock"

TABLE = [
    # runtime, isolation, runtime_options, facts, where, why
    ("onnxruntime", "auto", {}, {}, "thread", "on the CPU"),
    ("openvino", "auto", {}, {}, "thread", "on the CPU"),
    ("onnxruntime", "process", {}, {}, "process", SAID),
    ("onnxruntime", "thread", {"providers": [CUDA]}, {}, "thread", SAID),
    ("onnxruntime", "auto", {"providers": [CPU]}, {}, "thread", "on the CPU"),
    ("onnxruntime", "auto", {"providers": [[CPU, {"use_arena": 1}]]}, {}, "thread", "on the CPU"),
    ("onnxruntime", "auto", {"providers": [CUDA, CPU]}, {}, "process", CUDA),
    ("onnxruntime", "auto", {"providers": [[CUDA, {"device_id": 0}]]}, {}, "process", CUDA),
    ("onnxruntime", "auto", {"providers": (CPU, CUDA)}, {}, "process", CUDA),
    ("onnxruntime", "auto", {"custom_op_libraries": ["a.so"]}, {}, "process", "custom_op"),
    ("openvino", "auto", {"device": "CPU"}, {}, "thread", "on the CPU"),
    ("openvino", "auto", {"device": "GPU.1"}, {}, "process", "GPU.1"),
    ("openvino", "auto", {"device": "AUTO"}, {}, "process", "AUTO"),
    ("turbine", "auto", {}, {}, "process", "turbine is another package's"),
    ("turbine", "thread", {}, {}, "thread", SAID),
    ("onnxruntime", "auto", {}, LARGE, "thread", "on the CPU"),
    ("onnxruntime", "auto", {}, BUDGET, "thread", "on the CPU"),
    ("onnxruntime", "auto", {}, LARGE | BUDGET, "process", "256 MiB"),
    ("onnxruntime", "thread", {}, LARGE | BUDGET, "thread", SAID),
    ("null", "process", {}, {}, "thread", "no code"),
    ("python", "auto", {}, {}, "process", CODE),
    ("python", "thread", {}, {}, "thread", SAID),
    ("python", "thread", {"isolation": "process"}, {}, "process", SAID),
    ("python", "auto", {"isolation": "thread"}, {}, "thread", SAID),
    ("python", "process", {"isolation": "thread"}, {}, "thread", SAID),
    ("python", "thread", {}, {"triton": True}, "process", "Triton"),
]


@pytest.mark.parametrize(("runtime", "isolation", "options", "facts", "where", "why"), TABLE)
def test_where_and_why(runtime, isolation, options, facts, where, why):
    config = ModelConfig(isolation=isolation, runtime_options=options)
    kind, reason = choose_isolation(config, Facts(runtime=runtime, **facts))
    assert kind == where
    assert why in reason


@pytest.fixture
def source(tmp_path):
    def make(**config) -> ModelSource:
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx_models.mlp())
        return ModelSource("m", "1", "onnx", path, tmp_path, config=ModelConfig(**config))

    return make


@pytest.fixture
def opened(source, tmp_path):
    models = []

    def open_(memory_budget=0, **config):
        made = open_model(source(**config), tmp_path / "cache", memory_budget=memory_budget)
        models.append(made.model)
        return made

    yield open_
    for model in models:
        model.unload()


def test_a_model_in_a_process_has_one_child_with_all_cores(opened, monkeypatch, caplog):
    monkeypatch.setattr(opening, "usable_cores", lambda: 6)
    with caplog.at_level(logging.INFO, "headrace.engine"):
        made = opened(isolation="process", runtime="onnxruntime")
    assert isinstance(made.model, IsolatedModel)
    assert (made.isolation, made.isolation_reason) == ("process", "as configured")
    assert (made.instances.threads, made.instances.concurrency) == (6, 1)
    assert len(made.model.process_ids()) == 1
    assert "model m version 1 runs in 1 child process(es): as configured" in caplog.text


def test_instances_are_children(opened, monkeypatch):
    monkeypatch.setattr(opening, "usable_cores", lambda: 6)
    made = opened(isolation="process", runtime="onnxruntime", instances=2)
    assert (made.instances.threads, made.instances.concurrency) == (3, 2)
    assert len(made.model.process_ids()) == 2


def test_runtimes_are_compared_in_their_processes(opened, monkeypatch):
    """None of them may have been in the server, whose memory it would not give back."""

    def fail(_name):
        raise AssertionError("loaded inside the server")

    monkeypatch.setattr("headrace.runtimes.registry.create", fail)
    made = opened(isolation="process")
    assert isinstance(made.model, IsolatedModel)
    assert made.runtime in {"onnxruntime", "openvino"}
    answer = made.model.execute([np.ones((2, 16), np.float32)])[0]
    np.testing.assert_allclose(
        answer, onnx_models.mlp_reference(np.ones((2, 16), np.float32)), rtol=1e-4
    )


def test_a_large_model_under_a_budget_is_measured_apart_from_one_without(opened, monkeypatch):
    """What was measured inside the server would give the process a thread for each execution."""
    inside = opened(runtime="onnxruntime")
    assert isinstance(inside.model, OnnxModel)
    monkeypatch.setattr("headrace.engine.isolation.LARGE_MODEL_BYTES", 1000)
    apart = opened(runtime="onnxruntime", memory_budget=1)
    assert (apart.isolation, apart.instances.concurrency) == ("process", 1)
    assert apart.store_key != inside.store_key
    assert opened(runtime="onnxruntime", isolation="thread").store_key != inside.store_key


def test_what_the_child_cannot_load_is_told_as_it_would_be_inside(source, tmp_path):
    errors = []
    for isolation in ("process", "thread"):
        options = {"providers": ["NoSuchExecutionProvider"]}
        config = {"isolation": isolation, "runtime": "onnxruntime", "runtime_options": options}
        with pytest.raises(ModelLoadError) as caught:
            open_model(source(**config), tmp_path / "cache")
        errors.append((caught.value.message, caught.value.hint, caught.value.details))
    assert errors[0] == errors[1]


def test_where_there_can_be_no_children_auto_does_without(opened, monkeypatch):
    monkeypatch.setattr(opening, "can_hold_children", lambda: False)
    monkeypatch.setattr("headrace.engine.isolation.LARGE_MODEL_BYTES", 1000)
    made = opened(runtime="onnxruntime", memory_budget=1)
    assert isinstance(made.model, OnnxModel)
    assert made.isolation == "thread"
    assert "cannot hold children" in made.isolation_reason
