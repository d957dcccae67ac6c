"""Loads what the repository found and hands it to the engine; the only place that does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from headrace.engine.calibrate import MEASURED_IN_PART, calibrate
from headrace.engine.engine import Engine
from headrace.engine.opening import PARALLEL_LOADS, PROFILES, Opened, Openings, open_model
from headrace.engine.profiles import ProfileStore, StoredProfile
from headrace.engine.served import Profile, ServedModel
from headrace.errors import HeadraceError
from headrace.repository.base import ModelSource
from headrace.tasks import registry as tasks
from headrace.tasks.base import Task
from headrace.telemetry.instruments import Instrument
from headrace.types import ModelMetadata

_LOG = logging.getLogger("headrace.engine")

_CALIBRATION_MIN_NS = 60_000_000
_CALIBRATION_SHARE = 0.15
"""Before a model is ready, at most this share of its loading time goes into measuring."""

_REFINE_NS = 3_000_000_000
"""What was not measured before the model was ready is measured in the background."""

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx"}
"""What V2 metadata calls a runtime, where it is not its own name."""


class _Loaded:
    """What loading gave, on its way from the loading thread to the event loop."""

    def __init__(self, served: ServedModel, stored: StoredProfile, store_key: str) -> None:
        self.served = served
        self.stored = stored
        self.store_key = store_key

    @property
    def profile(self) -> Profile:
        """What was measured."""
        return self.stored.profile


class ModelManager:
    """Loads and unloads models of one engine."""

    def __init__(self, engine: Engine, *, cache_dir: Path, instrument: Instrument) -> None:
        self._engine = engine
        self._cache_dir = cache_dir
        self._instrument = instrument
        self._profiles = ProfileStore(cache_dir / PROFILES)
        self._hop_ns = 0
        self._refining: set[asyncio.Task[None]] = set()
        self._parallel = asyncio.Semaphore(PARALLEL_LOADS)

    async def load_all(
        self, sources: Sequence[ModelSource], openings: Openings | None = None
    ) -> list[HeadraceError]:
        """Loads all; those that fail are shown as UNAVAILABLE and returned as errors.

        ``openings``: where they are being opened already.
        """
        outcomes = await asyncio.gather(
            *(self.load(source, openings) for source in sources), return_exceptions=True
        )
        errors: list[HeadraceError] = []
        for outcome in outcomes:
            if isinstance(outcome, HeadraceError):
                errors.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
        return errors

    async def load(self, source: ModelSource, openings: Openings | None = None) -> ServedModel:
        """Loads one version and publishes it.

        Raises:
            ModelLoadError, MissingExtra, ConfigError: why it cannot be served; the index
                then shows the same reason.
        """
        catalog = self._engine.catalog
        catalog.set_status(source.name, source.version, "LOADING")
        started_s = time.monotonic()
        try:
            if not self._hop_ns:
                self._hop_ns = await self._engine.measure_hop_ns()
            async with self._parallel:
                if openings is None:
                    loaded = await asyncio.to_thread(self._load, source)
                else:
                    opened = await openings.of(source)
                    loaded = await asyncio.to_thread(self._measure, opened)
        except HeadraceError as error:
            catalog.set_status(source.name, source.version, "UNAVAILABLE", error.message)
            raise
        self._engine.add_model(loaded.served, loaded.profile)
        seconds = time.monotonic() - started_s
        self._instrument.model_loaded(source.name, source.version, seconds)
        _log_loaded(loaded, seconds)
        if loaded.profile.reason == MEASURED_IN_PART and loaded.served.loaded.concurrency > 1:
            task = asyncio.create_task(self._refine(loaded))
            self._refining.add(task)
            task.add_done_callback(self._refining.discard)
        return loaded.served

    async def close(self) -> None:
        """Unloads every model. The engine must have been drained and closed."""
        for task in tuple(self._refining):
            task.cancel()
        await asyncio.gather(*self._refining, return_exceptions=True)
        for served in self._engine.catalog.served():
            await asyncio.to_thread(served.loaded.unload)
            self._instrument.model_unloaded(served.name, served.version)

    # -- in a loading thread -----------------------------------------------------------------

    def _load(self, source: ModelSource) -> _Loaded:
        return self._measure(open_model(source, self._cache_dir))

    def _measure(self, opened: Opened) -> _Loaded:
        """What is still to be known before an opened model can be served."""
        model = opened.model
        try:
            served = _served(opened)
            if opened.stored is not None:
                return _Loaded(served, opened.stored, opened.store_key)
            budget_ns = max(_CALIBRATION_MIN_NS, int(opened.spent_ns * _CALIBRATION_SHARE))
            profile = calibrate(model, served.padding, hop_ns=self._hop_ns, budget_ns=budget_ns)
        except BaseException:
            model.unload()
            raise
        stored = StoredProfile(opened.runtime, opened.instances, profile)
        self._profiles.save(opened.store_key, stored)
        return _Loaded(served, stored, opened.store_key)

    async def _refine(self, loaded: _Loaded) -> None:
        served = loaded.served
        profile = await asyncio.to_thread(
            calibrate,
            served.loaded,
            served.padding,
            hop_ns=self._hop_ns,
            budget_ns=_REFINE_NS,
        )
        self._engine.set_profile(served, profile)
        stored = StoredProfile(served.runtime, loaded.stored.instances, profile)
        await asyncio.to_thread(self._profiles.save, loaded.store_key, stored)


def _served(opened: Opened) -> ServedModel:
    source, model, runtime = opened.source, opened.model, opened.runtime
    options = {**source.task_options, **source.config.task_options}
    task: Task | None = tasks.create(source.task, model.inputs, model.outputs, options)
    metadata = ModelMetadata(
        name=source.name,
        versions=(source.version,),
        platform=_PLATFORMS.get(runtime, runtime),
        inputs=model.inputs if task is None else task.inputs,
        outputs=model.outputs if task is None else task.outputs,
    )
    return ServedModel(
        metadata=metadata,
        version=source.version,
        loaded=model,
        task=task,
        runtime=runtime,
        config=source.config,
    )


def _log_loaded(loaded: _Loaded, seconds: float) -> None:
    served, profile = loaded.served, loaded.profile
    _LOG.info(
        "model %s version %s ready in %.2f s: %s, %s",
        served.name,
        served.version,
        seconds,
        served.runtime,
        f"batches up to {profile.batch_tokens} tokens"
        if profile.batch_tokens
        else f"batches up to {profile.max_rows} rows"
        if profile.batchable
        else f"one request at a time ({profile.reason})",
    )
