"""Models put together as the engine does it, from a fake that is in memory already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headrace.clock import MonotonicClock
from headrace.config import EnsembleStep, ModelConfig, TensorConfig
from headrace.engine import assembly
from headrace.engine.engine import Engine
from headrace.engine.ensemble import Ensembles, ensemble_model
from headrace.engine.opening import Opened
from headrace.engine.served import Profile, ServedModel
from headrace.repository.base import ModelSource
from headrace.runtimes.base import InstanceConfig
from headrace.telemetry.instruments import Instrument
from headrace.types import DTYPE_OF, InferenceRequest, RequestedOutput, Tensor

ROWS = {"max_batch_size": 8}
"""A Triton configuration that says: the first axis counts rows, at most eight."""


def tensor_config(name: str, shape: tuple[int, ...], datatype: str = "FP32", **fields: Any):
    return TensorConfig(name=name, shape=shape, datatype=datatype, **fields)


def assemble(
    model: Any,
    *,
    name: str = "m",
    folder: Path = Path("nowhere"),
    task_options: dict[str, Any] | None = None,
    **config: Any,
) -> ServedModel:
    """Raises what loading the model would raise."""
    source = ModelSource(
        name,
        "1",
        "fake",
        folder / "model.fake",
        folder,
        task_options=task_options or {},
        config=ModelConfig(**config),
    )
    opened = Opened(source, "fake", InstanceConfig(), model, None, "", 0)
    served = assembly.served_of(opened)
    profile = assembly.trusted_profile(served) or assembly.as_declared(
        served, Profile(max_rows=8, batchable=True)
    )
    assembly.warm(served, source, profile)
    served.profile = profile
    return served


def publish(engine: Engine, served: ServedModel) -> ServedModel:
    engine.add_model(served, served.profile)
    return served


def ensemble(
    engine: Engine,
    steps: list[tuple[str, dict[str, str], dict[str, str]]],
    *,
    inputs: tuple[TensorConfig, ...],
    outputs: tuple[TensorConfig, ...],
    name: str = "e",
    instrument: Instrument | None = None,
    **config: Any,
) -> ServedModel:
    """Loads and publishes an ensemble of ``(model, input_map, output_map)`` steps."""
    whole = ModelConfig(
        inputs=inputs,
        outputs=outputs,
        ensemble=tuple(
            EnsembleStep(model=model, input_map=takes, output_map=gives)
            for model, takes, gives in steps
        ),
        **config,
    )
    source = ModelSource(name, "1", "ensemble", Path("e"), Path(), config=whole)
    model = ensemble_model(name, whole)
    served = assembly.served_of(Opened(source, "ensemble", InstanceConfig(), model, None, "", 0))
    served.profile = assembly.trusted_profile(served) or Profile()
    ensembles = Ensembles(engine, MonotonicClock.now_ns, instrument or Instrument())
    assembly.attach_ensemble(served, engine.catalog, ensembles)
    return publish(engine, served)


def tensor(name: str, values: Any, datatype: str = "FP32") -> Tensor:
    array = np.array(values, dtype=DTYPE_OF[datatype])
    return Tensor(name, datatype, array.shape, array)


def ask(*tensors: Tensor, name: str = "m", outputs: Any = None, **fields: Any) -> InferenceRequest:
    wanted = None if outputs is None else [RequestedOutput(output) for output in outputs]
    return InferenceRequest(name, list(tensors), outputs=wanted, **fields)
