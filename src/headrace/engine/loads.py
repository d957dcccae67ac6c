"""One version on its way into memory: opened, measured, warmed; everything before it is published.

Most of it happens in a loading thread. Nobody can ask for the model yet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from headrace.core.events import LearntCost
from headrace.engine import assembly
from headrace.engine.calibrate import calibrate
from headrace.engine.health import Shapes
from headrace.engine.instances import measure_hop_ns
from headrace.engine.load_threads import LOAD_TIMEOUTS, LoadThreads, LoadTimeouts
from headrace.engine.memory import Meter, processes_bytes
from headrace.engine.opening import PROFILES, Opened, Openings, model_bytes, open_model
from headrace.engine.profiles import ProfileStore, StoredProfile
from headrace.engine.served import Profile, ServedModel
from headrace.engine.shadow import shadow_warm
from headrace.engine.trials import Trials
from headrace.errors import ModelLoadError
from headrace.repository.base import ModelSource
from headrace.repository.folders import Mark, mark_of
from headrace.runtimes.ending import was_ended

_LOG = logging.getLogger("headrace.engine")

_CALIBRATION_MIN_NS = 60_000_000
_CALIBRATION_SHARE = 0.15
"""Before a model is ready, at most this share of its loading time goes into measuring."""

_REFINE_NS = 3_000_000_000
"""What was not measured before the model was ready is measured in the background."""

_RECORDED_S = 0.1
"""A start replays recorded shapes for so long at most: who waits for it waits for this too."""

_MARKED_MAX = 10_000
"""Files of one version that are looked at."""

Tell = Callable[[str], None]
"""Told of each phase (``core.lifecycle.LOADING_PHASES``) as it begins; any thread."""


def _nobody(phase: str) -> None:
    del phase


class Loaded(msgspec.Struct, eq=False):
    """What loading gave. ``took_ns``: from its turn to here; ``stored``: what was measured.

    ``source`` is what was asked for; what it was prepared to be is not seen from outside.
    """

    served: ServedModel
    source: ModelSource
    stored: StoredProfile
    store_key: str
    isolation: str = ""
    file_bytes: int = 0
    mark: Mark = ()
    took_ns: int = 0

    @property
    def profile(self) -> Profile:
        """What was measured."""
        return self.stored.profile

    @property
    def how(self) -> str:
        """The runtime and how large batches may be, in words."""
        profile = self.profile
        batches = (
            f"batches up to {profile.batch_tokens} tokens"
            if profile.batch_tokens
            else f"batches up to {profile.max_rows} rows"
            if profile.batchable
            else f"one request at a time ({profile.reason or 'as declared'})"
        )
        return f"{self.served.runtime}{self.isolation}, {batches}"

    def log(self) -> None:
        """Says that it is ready, after how long, and how it runs."""
        name, version = self.served.name, self.served.version
        seconds = self.took_ns / 1e9
        _LOG.info("model %s version %s ready in %.2f s: %s", name, version, seconds, self.how)


class Loader:
    """Loads versions; publishes nothing.

    Args:
        shares_answers: whether answers are kept for other servers, which need to know a model by
            its content.
    """

    def __init__(
        self,
        cache_dir: Path,
        compiled_bytes: int,
        *,
        shares_answers: bool,
        memory_budget: int = 0,
        timeouts: LoadTimeouts = LOAD_TIMEOUTS,
    ) -> None:
        self._memory_budget = memory_budget
        self._cache_dir = cache_dir
        self._compiled_bytes = compiled_bytes
        self._shares_answers = shares_answers
        self._profiles = ProfileStore(cache_dir / PROFILES)
        self._meter = Meter()
        self._hop_ns = 0
        self._threads = LoadThreads(timeouts.load_s)
        self._trials = Trials(timeouts.trial_s)

    async def load(
        self,
        source: ModelSource,
        openings: Openings | None = None,
        *,
        tell: Tell = _nobody,
        before: Loaded | None = None,
    ) -> Loaded:
        """One version into memory.

        Args:
            source: which.
            openings: where it is being opened already, perhaps.
            tell: told of phases.
            before: what it is to replace: it runs as that does, and its shapes first.

        Raises:
            ModelLoadError, MissingExtra, ConfigError: why it cannot be served.
        """
        if not self._hop_ns:
            self._hop_ns = await measure_hop_ns(asyncio.get_running_loop())
        started_ns = time.monotonic_ns()
        if openings is not None and openings.has(source):
            tell("loading")
            opening = partial(openings.of, source)
            try:
                loaded = await self._in_thread(
                    source, lambda: self._finish(opening(), tell, before)
                )
            except ModelLoadError as error:
                if error.code == "load_timeout":
                    openings.give_up()
                raise
        else:
            loaded = await self._in_thread(source, lambda: self._load(source, tell, before))
        loaded.took_ns = time.monotonic_ns() - started_ns
        loaded.source = source
        if not loaded.served.size_bytes:  # several were opened at one time
            await asyncio.to_thread(_weigh, loaded, None)
        loaded.mark = loaded.mark or await asyncio.to_thread(_mark_of, source)
        return loaded

    async def _in_thread(self, source: ModelSource, work: Callable[[], Loaded]) -> Loaded:
        return await self._threads.run(source.name, work, lambda late: late.served.loaded.unload())

    def known_bytes(self, source: ModelSource) -> int:
        """Of the files it is loaded from, where it never was. Blocks.

        Raises:
            ModelLoadError: they are not what they claim to be.
        """
        return model_bytes(source)[0]

    def keep(self, loaded: Loaded, costs: dict[int, LearntCost]) -> None:
        """Writes down what was learnt of its batches: a restart is not a cold start. Blocks."""
        if loaded.store_key:
            self._profiles.save_learnt(loaded.store_key, costs, loaded.served.health.shapes())

    def refine(self, loaded: Loaded) -> Profile:
        """Measures what there was no time for. Blocks for seconds."""
        served = loaded.served
        profile = calibrate(
            served.loaded, served.padding, hop_ns=self._hop_ns, budget_ns=_REFINE_NS
        )
        stored = StoredProfile(served.runtime, loaded.stored.instances, profile)
        self._profiles.save(loaded.store_key, stored)
        return profile

    # -- in a loading thread -----------------------------------------------------------------

    def _load(self, source: ModelSource, tell: Tell, before: Loaded | None) -> Loaded:
        mark = _mark_of(source)  # before anything is read of it
        reading = self._meter.begin()
        try:
            opened = open_model(
                source,
                self._cache_dir,
                self._compiled_bytes,
                memory_budget=self._memory_budget,
                like=_same_settings(source, before),
                tell=tell,
                try_out=self._trials.run,
            )
            loaded = self._finish(opened, tell, before)
        finally:
            took = self._meter.end(reading)
        loaded.mark = mark
        _weigh(loaded, took)
        return loaded

    def _finish(self, opened: Opened, tell: Tell, before: Loaded | None) -> Loaded:
        """What is still to be known before an opened model can be served."""
        model = opened.model
        try:
            served = assembly.served_of(opened)
            stored = self._profile(served, opened, tell)
            tell("warming")
            assembly.warm(served, opened.source, stored.profile)
            self._shadow(served, opened, None if before is None else before.served)
            if self._shares_answers and served.config.response_cache:
                served.fingerprint = assembly.fingerprint_of(opened.source)
        except BaseException:
            model.unload()
            raise
        where, size = _where(opened), opened.file_bytes
        return Loaded(served, opened.source, stored, opened.store_key, where, size)

    def _shadow(self, served: ServedModel, opened: Opened, before: ServedModel | None) -> None:
        shapes: Sequence[Shapes]
        if before is not None:
            shapes, seconds = before.health.shapes(), served.config.rollout.shadow_warm_s
        else:
            shapes = opened.stored.shapes if opened.stored is not None else ()
            seconds = min(_RECORDED_S, served.config.rollout.shadow_warm_s)
        served.health.remember(shapes)
        if shapes and seconds:
            shadow_warm(served, shapes, before, seconds)

    def _profile(self, served: ServedModel, opened: Opened, tell: Tell) -> StoredProfile:
        """What is known of its batches: trusted, remembered or measured now."""
        trusted = assembly.trusted_profile(served)
        if trusted is not None:
            return StoredProfile(opened.runtime, opened.instances, trusted)
        stored = opened.stored
        if stored is None:
            tell("measuring")
            budget_ns = max(_CALIBRATION_MIN_NS, int(opened.spent_ns * _CALIBRATION_SHARE))
            profile = calibrate(
                served.loaded, served.padding, hop_ns=self._hop_ns, budget_ns=budget_ns
            )
            if was_ended():  # measuring takes a run that was ended for an answer
                raise ModelLoadError(f"loading model '{served.name}' was given up")
            stored = StoredProfile(opened.runtime, opened.instances, profile)
            self._profiles.save(opened.store_key, stored)
        profile = assembly.as_declared(served, stored.profile)
        return msgspec.structs.replace(stored, profile=profile)


def _weigh(loaded: Loaded, took: int | None) -> None:
    """What it takes: of its processes, as it was measured (``took``), or as its files are."""
    served = loaded.served
    pids: Callable[[], tuple[int, ...]] | None = getattr(served.loaded, "process_ids", None)
    if pids is not None:
        served.size_bytes = processes_bytes(pids())
    elif not served.steps:
        served.size_bytes = loaded.file_bytes if took is None else max(took, 1)


def _mark_of(source: ModelSource) -> Mark:
    """Of the files of a version as they are now; () for an ensemble, which has none. Blocks."""
    return () if source.config.ensemble else mark_of(source.folder, _MARKED_MAX)


def unchanged(sources: Sequence[ModelSource], there: Sequence[Loaded | None]) -> set[str]:
    """The versions that are as they were loaded, files and configuration. Blocks."""
    return {
        source.version
        for source in sources
        for loaded in there
        if loaded is not None and loaded.source == source
        if loaded.mark and loaded.mark == _mark_of(source)
    }


def _same_settings(source: ModelSource, before: Loaded | None) -> StoredProfile | None:
    """How the predecessor runs, if nothing says that this one should run otherwise."""
    if before is None or before.source.format != source.format:
        return None
    old, new = before.source.config, source.config
    same = (old.runtime, old.instances, old.threads, old.isolation, old.runtime_options) == (
        new.runtime,
        new.instances,
        new.threads,
        new.isolation,
        new.runtime_options,
    )
    return before.stored if same else None


def _where(opened: Opened) -> str:
    """Where it runs and why, if that is not the server itself."""
    return (
        f" in a process of its own ({opened.isolation_reason})"
        if opened.isolation == "process"
        else ""
    )
