"""Loads what the repository found and hands it to the engine; the only place that does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.clock import MonotonicClock
from headrace.config import COMPILED_CACHE_BYTES
from headrace.engine import assembly, endings
from headrace.engine.calibrate import MEASURED_IN_PART, calibrate
from headrace.engine.catalog import UNLOADED
from headrace.engine.engine import Engine
from headrace.engine.ensemble import Ensembles
from headrace.engine.instances import measure_hop_ns
from headrace.engine.limits import costs_of
from headrace.engine.opening import PARALLEL_LOADS, PROFILES, Opened, Openings, open_model
from headrace.engine.profiles import ProfileStore, StoredProfile
from headrace.engine.sequences import attach_sequences
from headrace.engine.served import Profile, ServedModel
from headrace.errors import HeadraceError
from headrace.repository.base import ModelSource
from headrace.telemetry.instruments import Instrument

_LOG = logging.getLogger("headrace.engine")

_CALIBRATION_MIN_NS = 60_000_000
_CALIBRATION_SHARE = 0.15
"""Before a model is ready, at most this share of its loading time goes into measuring."""

_REFINE_NS = 3_000_000_000
"""What was not measured before the model was ready is measured in the background."""


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
    """Loads and unloads models of one engine.

    Args:
        compiled_bytes: that compiled models may take in the cache.
        workers: processes that share the port, each with an engine.
        shares_answers: whether answers are kept for other servers, which need to know a model by
            its content.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        cache_dir: Path,
        compiled_bytes: int = COMPILED_CACHE_BYTES,
        instrument: Instrument,
        workers: int = 1,
        shares_answers: bool = False,
    ) -> None:
        self._engine = engine
        self._workers = workers
        self._shares_answers = shares_answers
        self._cache_dir = cache_dir
        self._compiled_bytes = compiled_bytes
        self._instrument = instrument
        self._profiles = ProfileStore(cache_dir / PROFILES)
        self._hop_ns = 0
        self._ensembles = Ensembles(engine, MonotonicClock.now_ns, instrument)
        self._keys: dict[ServedModel, str] = {}  # where what is learnt of them is kept
        self._finishing: dict[ServedModel, asyncio.Task[None]] = {}
        self._retiring: dict[ServedModel, asyncio.Task[None]] = {}
        self._parallel = asyncio.Semaphore(PARALLEL_LOADS)

    async def load_all(
        self, sources: Sequence[ModelSource], openings: Openings | None = None
    ) -> list[HeadraceError]:
        """Loads all; those that fail are shown as UNAVAILABLE and returned as errors.

        ``openings``: where they are being opened already.
        """
        errors: list[HeadraceError] = []

        def circular(source: ModelSource, error: HeadraceError) -> None:
            self._show(source, "UNAVAILABLE", error.message)
            errors.append(error)

        outcomes: list[ServedModel | BaseException] = []
        for wave in assembly.in_waves(sources, circular):
            loads = [self.load(source, openings) for source in wave]
            outcomes += await asyncio.gather(*loads, return_exceptions=True)
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
        started_s = time.monotonic()
        loaded = await self._open(source, openings)
        return self._publish(loaded, time.monotonic() - started_s)

    async def replace(
        self, sources: Sequence[ModelSource], *, drain_s: float
    ) -> list[asyncio.Task[None]]:
        """Serves ``sources``, versions of one model, instead of what is served of it now.

        All are in memory before one is published, and the old ones leave after that. Requests
        that were admitted finish on their version, within ``drain_s``.

        Returns:
            What is still to be waited for until the old ones are gone.

        Raises:
            HeadraceError: one of them cannot be served; then nothing has changed.
        """
        started_s = time.monotonic()
        outcomes = await asyncio.gather(
            *(self._open(source) for source in sources), return_exceptions=True
        )
        loaded = [each for each in outcomes if isinstance(each, _Loaded)]
        for error in [each for each in outcomes if isinstance(each, BaseException)]:
            for each in loaded:
                await asyncio.to_thread(each.served.loaded.unload)
                self._show(each.served, "UNAVAILABLE", "another version could not be loaded")
            raise error
        before = [each for each in self._engine.catalog.served() if each.name == sources[0].name]
        for each in loaded:
            self._publish(each, time.monotonic() - started_s)
        return [self.retire(served, drain_s=drain_s) for served in before]

    def retire(self, served: ServedModel, *, drain_s: float) -> asyncio.Task[None]:
        """No new request reaches ``served``; it is unloaded when those it has are answered.

        Those that still wait after ``drain_s`` are refused. What runs is waited for.
        """
        self._engine.catalog.withdraw(served, "UNLOADING", "")
        task = asyncio.create_task(self._retire(served, drain_s))
        self._retiring[served] = task
        task.add_done_callback(lambda _: self._retiring.pop(served, None))
        return task

    async def _retire(self, served: ServedModel, drain_s: float) -> None:
        if not await _idle(served, drain_s):
            _LOG.warning(
                "model %s version %s is unloaded with requests waiting for more than %g s",
                served.name,
                served.version,
                drain_s,
            )
        await self._keep_costs(served)
        self._engine.remove_model(served)
        await _idle(served, None)
        if served in self._finishing:  # measuring runs the model too
            await asyncio.wait({self._finishing[served]})
        del self._retiring[served]
        await asyncio.to_thread(served.loaded.unload)
        catalog = self._engine.catalog
        if not catalog.is_routed(served.name, served.version):
            catalog.set_status(served.name, served.version, "UNAVAILABLE", UNLOADED)
            self._instrument.model_unloaded(served.name, served.version)
        _LOG.info("model %s version %s unloaded", served.name, served.version)

    def _show(self, source: ModelSource | ServedModel, state: str, reason: str = "") -> None:
        """What the index says, unless another copy of the version is serving."""
        catalog = self._engine.catalog
        if not catalog.is_routed(source.name, source.version):
            catalog.set_status(source.name, source.version, state, reason)

    async def _open(self, source: ModelSource, openings: Openings | None = None) -> _Loaded:
        self._show(source, "LOADING")
        try:
            assembly.check_workers(source, self._workers)
            if not self._hop_ns:
                self._hop_ns = await measure_hop_ns(asyncio.get_running_loop())
            async with self._parallel:
                if openings is None:
                    loaded = await asyncio.to_thread(self._load, source)
                else:
                    opened = await openings.of(source)
                    loaded = await asyncio.to_thread(self._measure, opened)
            if loaded.served.steps:
                assembly.attach_ensemble(loaded.served, self._engine.catalog, self._ensembles)
        except HeadraceError as error:
            self._show(source, "UNAVAILABLE", error.message)
            raise
        return loaded

    def _publish(self, loaded: _Loaded, seconds: float) -> ServedModel:
        served = loaded.served
        attach_sequences(self._engine, served)
        self._engine.add_model(served, loaded.profile)
        self._instrument.model_loaded(served.name, served.version, seconds)
        _log_loaded(loaded, seconds)
        endings.warn_of_slo(served, loaded.profile.row_ns)
        self._keys[served] = loaded.store_key
        task = asyncio.create_task(self._finish(loaded))
        self._finishing[served] = task
        task.add_done_callback(lambda _: self._finishing.pop(served, None))
        return served

    async def _finish(self, loaded: _Loaded) -> None:
        """What need not be done before the model serves, one thing after another."""
        keep: Callable[[], None] | None = getattr(loaded.served.loaded, "keep_compiled", None)
        if keep is not None:
            await asyncio.to_thread(keep)
        if loaded.profile.reason == MEASURED_IN_PART and loaded.served.loaded.concurrency > 1:
            await self._refine(loaded)

    async def close(self) -> None:
        """Unloads every model. The engine must have been drained and closed."""
        finishing = tuple(self._finishing.values())
        for task in finishing:
            task.cancel()
        await asyncio.gather(*finishing, return_exceptions=True)
        for served in tuple(self._keys):
            await self._keep_costs(served)
        leaving = tuple(self._retiring)
        for retiring in tuple(self._retiring.values()):
            retiring.cancel()
        for served in (*leaving, *self._engine.catalog.served()):
            await asyncio.to_thread(served.loaded.unload)
            self._instrument.model_unloaded(served.name, served.version)

    # -- in a loading thread -----------------------------------------------------------------

    def _load(self, source: ModelSource) -> _Loaded:
        return self._measure(open_model(source, self._cache_dir, self._compiled_bytes))

    def _measure(self, opened: Opened) -> _Loaded:
        """What is still to be known before an opened model can be served."""
        model = opened.model
        try:
            served = assembly.served_of(opened)
            stored = self._profile(served, opened)
            assembly.warm(served, opened.source, stored.profile)
            if self._shares_answers and served.config.response_cache:
                served.fingerprint = assembly.fingerprint_of(opened.source)
        except BaseException:
            model.unload()
            raise
        return _Loaded(served, stored, opened.store_key)

    def _profile(self, served: ServedModel, opened: Opened) -> StoredProfile:
        """What is known of its batches: trusted, remembered or measured now."""
        trusted = assembly.trusted_profile(served)
        if trusted is not None:
            return StoredProfile(opened.runtime, opened.instances, trusted)
        stored = opened.stored
        if stored is None:
            budget_ns = max(_CALIBRATION_MIN_NS, int(opened.spent_ns * _CALIBRATION_SHARE))
            profile = calibrate(
                served.loaded, served.padding, hop_ns=self._hop_ns, budget_ns=budget_ns
            )
            stored = StoredProfile(opened.runtime, opened.instances, profile)
            self._profiles.save(opened.store_key, stored)
        profile = assembly.as_declared(served, stored.profile)
        return StoredProfile(stored.runtime, stored.instances, profile)

    async def _keep_costs(self, served: ServedModel) -> None:
        """Writes down what was learnt of its batches: a restart is not a cold start."""
        key = self._keys.pop(served, "")
        costs = costs_of(served, self._engine.statistics())
        if key and costs:
            await asyncio.to_thread(self._profiles.save_costs, key, costs)

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


async def _idle(served: ServedModel, timeout_s: float | None) -> bool:
    """Waits until no request and no batch of the model is under way; False: it took too long."""
    idle = asyncio.Event()
    served.on_idle = idle.set
    try:
        async with asyncio.timeout(timeout_s):
            while served.busy:
                idle.clear()
                await idle.wait()
    except TimeoutError:
        return False
    finally:
        served.on_idle = None
    return True


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
        else f"one request at a time ({profile.reason or 'as declared'})",
    )
