"""A manager of models whose loads, sizes and executions the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.config import EnsembleStep, ModelConfig, TensorConfig
from headrace.engine import loads, models, residency
from headrace.engine.ensemble import ensemble_model
from headrace.engine.models import ModelManager
from headrace.engine.opening import Opened
from headrace.engine.served import Profile, ServedModel
from headrace.engine.standby import Standby
from headrace.errors import HeadraceError, InferenceFailed
from headrace.repository.base import ModelSource
from headrace.runtimes.base import InstanceConfig
from headrace.types import InferenceResponse

from .conftest import Bench, ScriptedModel, request

LOOK_S = 0.002
MIB = 1 << 20


class House:
    """What is loaded is a ``ScriptedModel``: the one in ``models``, or a new one.

    ``sizes`` in MiB; without one a model takes 10. What is used is the sum of what is in memory.
    """

    def __init__(self, bench: Bench, folder: Path, patch: pytest.MonkeyPatch, **manager: Any):
        self.bench = bench
        self.engine = bench.engine
        self.folder = folder
        self.models: dict[tuple[str, str], ScriptedModel] = {}
        self.sizes: dict[str, int] = {}
        self.loads: list[tuple[str, str]] = []
        self.on_load: Callable[[ModelSource], object] = lambda _: None
        patch.setattr(loads, "open_model", self._open)
        patch.setattr(loads, "calibrate", lambda *_, **__: Profile(max_rows=8, batchable=True))
        patch.setattr(loads.Meter, "end", lambda *_: None)  # sizes are those of the files then
        patch.setattr(loads.Loader, "known_bytes", lambda _, source: self._size(source))
        patch.setattr(residency.Place, "load_ns", 1_000_000)  # else a busy machine decides who goes
        patch.setattr(residency, "PEAK", 1.0)
        patch.setattr(residency, "HEADROOM", 0.0)
        patch.setattr(
            residency.Residency, "used_bytes", lambda each: sum(s.size_bytes for s in each.places)
        )
        patch.setattr(models, "Standby", partial(Standby, look_s=LOOK_S))
        self.manager = ModelManager(
            self.engine, cache_dir=folder / "cache", instrument=bench.watcher, **manager
        )

    def source(self, name: str = "m", version: str = "1", **config: Any) -> ModelSource:
        path = self.folder / name / "model.fake"
        return ModelSource(name, version, "fake", path, path.parent, config=ModelConfig(**config))

    def ensemble(self, name: str, *steps: str, **config: Any) -> ModelSource:
        """``x`` through all the steps, one after another."""
        names = ["x", *(f"t{i}" for i in range(len(steps) - 1)), "y"]
        signature = {"datatype": "FP32", "shape": (-1, 2)}
        whole = ModelConfig(
            inputs=(TensorConfig(name="x", **signature),),
            outputs=(TensorConfig(name="y", **signature),),
            ensemble=tuple(
                EnsembleStep(model=step, input_map={"x": names[i]}, output_map={"y": names[i + 1]})
                for i, step in enumerate(steps)
            ),
            **config,
        )
        path = self.folder / "config.pbtxt"
        return ModelSource(name, "1", "ensemble", path, self.folder, config=whole)

    async def ask(self, name: str = "m", version: str = "", times: int = 1) -> InferenceResponse:
        for _ in range(times):
            answer = await self.engine.infer(request([1, 2], name=name, model_version=version))
        return answer

    async def fail(self, name: str = "m", version: str = "") -> HeadraceError:
        with pytest.raises(HeadraceError) as caught:
            await self.ask(name, version)
        return caught.value

    def in_memory(self) -> list[str]:
        return sorted(served.name for served in self.engine.catalog.served())

    def state(self, name: str = "m", version: str = "1") -> tuple[str, str]:
        (found,) = [
            status
            for status in self.engine.catalog.statuses()
            if (status.name, status.version) == (name, version)
        ]
        return found.state, found.reason

    def events(self, name: str = "m") -> list[tuple[str, str]]:
        return [(line["event"], line["reason"]) for line in self.manager.histories.of(name)]

    def served(self, name: str = "m", version: str = "") -> ServedModel:
        return self.engine.catalog.resolve(name, version)

    def _open(self, source: ModelSource, *_: Any, **__: Any) -> Opened:
        self.loads.append((source.name, source.version))
        self.on_load(source)
        if source.config.ensemble:
            model: Any = ensemble_model(source.name, source.config)
        else:
            model = self.models.get((source.name, source.version))
            if model is None or model.unloaded:
                model = self.models[source.name, source.version] = ScriptedModel()
        key, size = source.name, self._size(source)
        return Opened(source, "fake", InstanceConfig(), model, None, key, 0, file_bytes=size)

    def _size(self, source: ModelSource) -> int:
        return self.sizes.get(source.name, 0 if source.config.ensemble else 10) * MIB


def broken(*_: np.ndarray) -> list[np.ndarray]:
    raise InferenceFailed("it is broken")


async def until(holds: Callable[[], object]) -> None:
    """Looks again and again, because threads and timers decide when."""
    for _ in range(30_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never happened")
