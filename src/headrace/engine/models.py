"""Loads what the repository found and hands it to the engine; the only place that does.

The start, commands, a look at the repository, and requests for what is not in memory lead here.
What serves goes on serving whatever a new version does; nothing is loaded before there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from headrace.clock import MonotonicClock
from headrace.config import COMPILED_CACHE_BYTES, ModelConfig
from headrace.engine import assembly, endings, memory
from headrace.engine.calibrate import MEASURED_IN_PART
from headrace.engine.catalog import UNLOADED
from headrace.engine.departures import Departures
from headrace.engine.engine import Engine
from headrace.engine.ensemble import Ensembles
from headrace.engine.history import Histories
from headrace.engine.housekeeping import Housekeeping
from headrace.engine.limits import costs_of
from headrace.engine.load_threads import LOAD_TIMEOUTS, LoadTimeouts
from headrace.engine.loads import Loaded, Loader, unchanged
from headrace.engine.lobby import Lobby
from headrace.engine.opening import PARALLEL_LOADS, Openings
from headrace.engine.overview import describe
from headrace.engine.residency import Place, Residency
from headrace.engine.sequences import attach_sequences
from headrace.engine.served import ServedModel
from headrace.engine.standby import Standby, is_watched
from headrace.errors import HeadraceError, InvalidRequest, ModelLoadError
from headrace.lifetimes import ResidencyConfig
from headrace.repository.base import ModelSource
from headrace.telemetry.instruments import Instrument

_LOG = logging.getLogger("headrace.engine")

_EVICT_DRAIN_S = 10.0
"""How long requests of a model that makes room may still wait."""


class ModelManager:
    """Loads and unloads models of one engine.

    Args:
        compiled_bytes: that compiled models may take in the cache.
        workers: processes that share the port, each with an engine.
        shares_answers: whether answers are kept for other servers, which need to know a model by
            its content.
        memory_budget_bytes: for the whole of this process and its children; 0: none.
        parallel_loads: at one time; with a budget it is one, so that each is measured. As many
            more that are tried out first, so that these keep only each other waiting.
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
        memory_budget_bytes: int = 0,
        parallel_loads: int = PARALLEL_LOADS,
        timeouts: LoadTimeouts = LOAD_TIMEOUTS,
    ) -> None:
        self._engine = engine
        self._workers = workers
        self._instrument = instrument
        self._loader = Loader(
            cache_dir,
            compiled_bytes,
            shares_answers=shares_answers,
            memory_budget=memory_budget_bytes,
            timeouts=timeouts,
        )
        self._ensembles = Ensembles(engine, MonotonicClock.now_ns, instrument)
        self.histories = Histories(engine.catalog, engine.now_ns)
        self._residency = Residency(memory_budget_bytes, engine.now_ns)
        self.lobby = Lobby(self.bring, self._terms, self._expected_ns)
        engine.lobby = self.lobby
        self.on_breach: Callable[[str, str], None] = self._roll_back_here
        self._absent: dict[tuple[str, str], ModelSource] = {}
        self._bringing: dict[tuple[str, str], asyncio.Lock] = {}
        self._load_ns: dict[tuple[str, str], int] = {}
        self._sizes: dict[tuple[str, str], int] = {}
        self._standbys: dict[str, Standby] = {}
        self._finishing: dict[ServedModel, asyncio.Task[None]] = {}
        self._departures = Departures(
            engine,
            self.histories,
            self._residency,
            instrument,
            learnt=self._keep_costs,
            left=self._left,
        )
        places = 1 if memory_budget_bytes else parallel_loads
        self._parallel, self._trying = asyncio.Semaphore(places), asyncio.Semaphore(places)
        self._house = Housekeeping(
            self._residency, self.evict, lambda: not self._parallel.locked(), self._may_leave
        )

    # -- loading -----------------------------------------------------------------------------

    async def load_all(
        self, sources: Sequence[ModelSource], openings: Openings | None = None
    ) -> list[HeadraceError]:
        """Loads all that are to be in memory; those that fail are shown as UNAVAILABLE.

        Lazy ones, and those that no memory is left for, are loaded when they are asked for.

        Args:
            openings: where they are being opened already.

        Returns:
            Why some could not be loaded.
        """
        errors: list[HeadraceError] = []
        if self._residency.budget_bytes:
            await asyncio.to_thread(self._residency.warn)

        def circular(source: ModelSource, error: HeadraceError) -> None:
            name, version = source.name, source.version
            self._engine.catalog.set_status(name, version, "UNAVAILABLE", error.message)
            errors.append(error)

        outcomes: list[ServedModel | BaseException | None] = []
        for wave in assembly.in_waves(sources, circular):
            loads = [self._load_at_start(source, openings) for source in wave]
            outcomes += await asyncio.gather(*loads, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, HeadraceError):
                errors.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
        self._house.keep(sources)
        return errors

    async def _load_at_start(
        self, source: ModelSource, openings: Openings | None
    ) -> ServedModel | None:
        if self._is_lazy(source):
            self.leave_absent(source)
            return None
        try:
            return await self.load(source, openings, evict=False)
        except ModelLoadError as error:
            if error.code != "no_memory":
                raise
            self.leave_absent(source)
            return None

    async def load(
        self, source: ModelSource, openings: Openings | None = None, *, evict: bool = True
    ) -> ServedModel:
        """Loads one version and publishes it.

        Args:
            source: which.
            openings: where it is being opened already.
            evict: whether others may leave to make room.

        Raises:
            ModelLoadError, MissingExtra, ConfigError: why it cannot be served; the index
                then shows the same reason.
        """
        loaded, copy = await self._open(source, openings, evict=evict)
        return self._publish(loaded, copy)

    async def replace(
        self, sources: Sequence[ModelSource], *, drain_s: float
    ) -> list[asyncio.Task[None]]:
        """Serves ``sources``, versions of one model, instead of what is served of it now.

        Versions whose files and configuration are as they were stay. All others are in memory
        before one is published, and the old ones leave after that, or stand by while the new ones
        are watched. Requests that were admitted finish on their version, within ``drain_s``.

        Returns:
            What is still to be waited for until the old ones are gone.

        Raises:
            HeadraceError: one of them cannot be served; then nothing has changed.
        """
        name = sources[0].name
        there = self._serving(name)
        known = [self._residency.places[each].loaded for each in there if self._copy_of(each)]
        kept = await asyncio.to_thread(unchanged, sources, known)
        sources = [source for source in sources if source.version not in kept]
        asked = max(there, key=lambda each: each.health.answered, default=None)
        like = None if asked is None else self._residency.places[asked].loaded
        outcomes = await asyncio.gather(
            *(self._open(source, before=like) for source in sources), return_exceptions=True
        )
        opened = [each for each in outcomes if not isinstance(each, BaseException)]
        for error in [each for each in outcomes if isinstance(each, BaseException)]:
            for loaded, copy in opened:
                await asyncio.to_thread(loaded.served.loaded.unload)
                self.histories.failed(copy, "another version could not be loaded")
            raise error
        self.forget_absent(name)
        leaving = self._end_standby(name, drain_s)
        # What serves may have changed while they were loaded.
        before = [each for each in self._serving(name) if each.version not in kept]
        newcomers = [self._publish(loaded, copy) for loaded, copy in opened]
        if is_watched(newcomers, before):
            self._stand_by(name, before, newcomers, drain_s)
            return leaving
        return leaving + [self.retire(served, drain_s=drain_s) for served in before]

    def _serving(self, name: str) -> list[ServedModel]:
        return [each for each in self._engine.catalog.served() if each.name == name]

    async def _open(
        self,
        source: ModelSource,
        openings: Openings | None = None,
        *,
        evict: bool = True,
        before: Loaded | None = None,
    ) -> tuple[Loaded, int]:
        copy = self.histories.begin(source.name, source.version)
        later = asyncio.get_running_loop().call_soon_threadsafe

        def tell(phase: str) -> None:
            later(self.histories.step, copy, phase)

        try:
            assembly.check_workers(source, self._workers)
            async with self._trying if source.try_first else self._parallel:
                if self._residency.budget_bytes and not source.config.ensemble:
                    self.histories.step(copy, "placing")
                    await self._make_room(source, evict=evict)
                loaded = await self._loader.load(source, openings, tell=tell, before=before)
                if self._residency.budget_bytes:  # what building it took on top
                    await asyncio.to_thread(memory.give_back)
            if loaded.served.steps:
                assembly.attach_ensemble(loaded.served, self._engine.catalog, self._ensembles)
        except HeadraceError as error:
            self.histories.failed(copy, error.message)
            raise
        except BaseException as error:
            self.histories.failed(copy, f"{type(error).__name__}: {error}")
            raise
        self._load_ns[source.name, source.version] = loaded.took_ns
        self._sizes[source.name, source.version] = loaded.served.size_bytes
        return loaded, copy

    def _publish(self, loaded: Loaded, copy: int) -> ServedModel:
        served = loaded.served
        attach_sequences(self._engine, served)
        self._residency.places[served] = Place(loaded, copy, self._engine.now_ns())
        self._absent.pop((served.name, served.version), None)
        self._set_first_aliases(served.name, served.config)
        self._engine.add_model(served, loaded.profile)
        self.histories.loaded(copy, loaded.how)
        self._listen(served, copy)
        self._instrument.model_loaded(served.name, served.version, loaded.took_ns / 1e9)
        loaded.log()
        endings.warn_of_slo(served, loaded.profile.row_ns)
        task = asyncio.create_task(self._finish(loaded))
        self._finishing[served] = task
        task.add_done_callback(lambda _: self._finishing.pop(served, None))
        return served

    def _listen(self, served: ServedModel, copy: int) -> None:
        """Crashes and restarts of its processes, and what hung, go into its history."""
        served.notice = partial(self.histories.note, copy)
        if hasattr(served.loaded, "on_event"):
            later = asyncio.get_running_loop().call_soon_threadsafe

            def heard(line: str) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    later(self.histories.note, copy, line)

            served.loaded.on_event = heard

    async def _finish(self, loaded: Loaded) -> None:
        """What need not be done before the model serves, one thing after another."""
        served = loaded.served
        if keep := getattr(served.loaded, "keep_compiled", None):
            await asyncio.to_thread(keep)
        if loaded.profile.reason == MEASURED_IN_PART and served.loaded.concurrency > 1:
            profile = await asyncio.to_thread(self._loader.refine, loaded)
            self._engine.set_profile(served, profile)

    # -- leaving -----------------------------------------------------------------------------

    def retire(self, served: ServedModel, *, drain_s: float, why: str = "") -> asyncio.Task[None]:
        """No new request reaches ``served``; it is unloaded when those it has are answered.

        Those that still wait after ``drain_s`` are refused. What runs is waited for.
        """
        return self._departures.begin(served, self._copy_of(served), drain_s, why)

    async def _left(self, served: ServedModel) -> None:
        """The last request of a model that leaves is answered: nothing may run it any more."""
        if served in self._finishing:  # measuring runs the model too
            await asyncio.wait({self._finishing[served]})

    async def _keep_costs(self, served: ServedModel) -> None:
        known = self._residency.places.get(served)
        if known is not None and (loaded := known.loaded) is not None:
            costs = costs_of(served, self._engine.statistics())
            await asyncio.to_thread(self._loader.keep, loaded, costs)

    def _copy_of(self, served: ServedModel) -> int:
        known = self._residency.places.get(served)
        if known is None:  # it was published by somebody else
            copy = self.histories.adopt(served.name, served.version)
            known = self._residency.places[served] = Place(None, copy, self._engine.now_ns())
        return known.copy

    async def close(self) -> None:
        """Unloads every model. The engine must have been drained and closed."""
        self.lobby.close()
        self._house.close()
        standing: list[ServedModel] = []
        for standby in self._standbys.values():
            standby.end()
            standing += standby.before
        finishing = tuple(self._finishing.values())
        for task in finishing:
            task.cancel()
        await asyncio.gather(*finishing, return_exceptions=True)
        for served in tuple(self._residency.places):
            await self._keep_costs(served)
        leaving = self._departures.cancel()
        for served in (*leaving, *standing, *self._engine.catalog.served()):
            if not served.stuck:  # else a thread is in it
                await asyncio.to_thread(served.loaded.unload)
            self._instrument.model_unloaded(served.name, served.version)

    # -- newcomers on probation ----------------------------------------------------------------

    def _stand_by(
        self,
        name: str,
        before: Sequence[ServedModel],
        newcomers: Sequence[ServedModel],
        drain_s: float,
    ) -> None:
        for served in before:
            copy = self._copy_of(served)
            why = f"version {newcomers[0].version} is watched"
            self._engine.catalog.withdraw(served, "UNLOADING", why)
            self.histories.unload(copy, why)
            self.histories.step(copy, "standby")
        self._standbys[name] = Standby(
            before,
            newcomers,
            over=partial(self._end_standby, name, drain_s),
            breached=lambda reason: self.on_breach(name, reason),
        )

    def _end_standby(self, name: str, drain_s: float) -> list[asyncio.Task[None]]:
        standby = self._standbys.pop(name, None)
        if standby is None:
            return []
        standby.end()
        return [self.retire(served, drain_s=drain_s) for served in standby.before]

    def stands_by(self, name: str) -> bool:
        """Whether what a model's newest version replaced is still in memory."""
        return name in self._standbys

    def roll_back(self, name: str, reason: str, *, drain_s: float) -> list[asyncio.Task[None]]:
        """What the newest version replaced answers again, from this moment on.

        Raises:
            InvalidRequest: it is not in memory any more.
        """
        standby = self._standbys.pop(name, None)
        if standby is None:
            raise InvalidRequest(
                f"model '{name}' has no earlier version in memory",
                code="nothing_to_roll_back",
                model=name,
            )
        standby.end()
        _LOG.warning("model %s goes back to the version before: %s", name, reason)
        for served in standby.before:
            self._engine.catalog.publish(served)
            self.histories.recall(self._copy_of(served), reason)
        told = f"taken back: {reason}"
        return [self.retire(served, drain_s=drain_s, why=told) for served in standby.newcomers]

    def _roll_back_here(self, name: str, reason: str) -> None:
        if name in self._standbys:
            self.roll_back(name, reason, drain_s=_EVICT_DRAIN_S)

    # -- in and out of memory --------------------------------------------------------------------

    def leave_absent(self, source: ModelSource) -> None:
        """Known, and loaded when it is asked for."""
        self._set_first_aliases(source.name, source.config)
        self._absent[source.name, source.version] = source
        self._engine.catalog.set_absent(source.name, source.version)

    def _set_first_aliases(self, name: str, config: ModelConfig) -> None:
        """Aliases of the configuration hold until they are changed by command."""
        if config.aliases and not self._engine.catalog.aliases(name):
            self._engine.catalog.set_aliases(name, config.aliases)

    def forget_absent(self, name: str) -> None:
        """A model that is not in memory is not brought back any more."""
        for key in [key for key in self._absent if key[0] == name]:
            del self._absent[key]
        self._engine.catalog.forget_absent(name)

    async def bring(self, name: str, version: str) -> None:
        """Loads a version that is absent, what it is made of first.

        Raises:
            HeadraceError: it cannot be loaded, or there is no room; it stays absent.
        """
        key = name, version
        async with self._bringing.setdefault(key, asyncio.Lock()):
            source = self._absent.get(key)
            if source is None:
                return  # somebody else has brought it
            for step in source.config.ensemble:
                for each in [each for each in self._absent if each[0] == step.model]:
                    await self.bring(*each)
            try:
                loaded, copy = await self._open(source)
            except HeadraceError:
                if key in self._absent:
                    self._engine.catalog.set_absent(name, version)
                raise
            if self._absent.get(key) is source:
                self._publish(loaded, copy)
            else:  # unloaded by command, or replaced
                await asyncio.to_thread(loaded.served.loaded.unload)
                self.histories.failed(copy, UNLOADED)

    async def evict(self, served: ServedModel, why: str) -> None:
        """Out of memory, until it is asked for again."""
        source = self._residency.places[served].source
        gone = self.retire(served, drain_s=_EVICT_DRAIN_S, why=why)
        if source is not None:
            self._absent[served.name, served.version] = source
            self._engine.catalog.set_absent(served.name, served.version)
        await asyncio.wait({gone})
        if (served.name, served.version) in self._absent:
            self._engine.catalog.set_absent(served.name, served.version)

    async def _make_room(self, source: ModelSource, *, evict: bool) -> None:
        """Raises ModelLoadError where there is none to be had."""
        needed = self._sizes.get((source.name, source.version), 0)
        needed = needed or await asyncio.to_thread(self._loader.known_bytes, source)
        residency = self._residency
        used = await asyncio.to_thread(residency.used_bytes)
        plan = residency.plan(needed, used)
        if plan.evict and self._standbys:  # what only stands by goes first
            gone = [t for name in tuple(self._standbys) for t in self._end_standby(name, 1.0)]
            await asyncio.wait(gone)
            used = await asyncio.to_thread(residency.used_bytes)
            plan = residency.plan(needed, used)
        if not plan.fits or (plan.evict and not evict):
            raise residency.refusal(source, needed, used, plan)
        for served in residency.by_label(plan.evict):
            if served not in self._departures:
                await self.evict(served, f"makes room for {source.name}")

    def _is_lazy(self, source: ModelSource) -> bool:
        if source.config.residency.load == "lazy":
            return True
        absent = {name for name, _ in self._absent}
        return any(step.model in absent for step in source.config.ensemble)

    def _terms(self, name: str, version: str) -> ResidencyConfig:
        source = self._absent.get((name, version))
        return ResidencyConfig() if source is None else source.config.residency

    def _expected_ns(self, name: str, version: str) -> int:
        return self._load_ns.get((name, version), 0)

    def pin(self, name: str, *, pinned: bool) -> None:
        """Whether a model may leave memory to make room, or because nobody asks for it."""
        self._residency.pin(name, pinned)

    def _may_leave(self, served: ServedModel) -> bool:
        return served not in self._departures and served in self._engine.catalog.served()

    def note(self, name: str, text: str) -> None:
        """Writes into the history of a model's current versions."""
        for served in self._serving(name):
            self.histories.note(self._copy_of(served), text)

    def describe(self) -> list[dict[str, Any]]:
        """Every version known, as ``headrace models list`` shows it."""
        return describe(self._engine.catalog, self._residency, self.histories, self.lobby)
