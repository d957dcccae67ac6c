"""From a source on disk to a model in a runtime: everything that needs no event loop.

So it can begin before there is one. Loading is mostly reading a file and building a session,
in a library that lets other threads run; a server imports the rest of itself meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from headrace.config import COMPILED_CACHE_BYTES
from headrace.engine.compiled import compiled_of
from headrace.engine.ensemble import ensemble_model
from headrace.engine.profiles import ProfileStore, StoredProfile
from headrace.engine.selection import choose_threads, keep_faster
from headrace.errors import ModelLoadError
from headrace.machine import cpu_model, usable_cores
from headrace.repository.base import ModelSource
from headrace.repository.onnx_check import check_onnx
from headrace.repository.prepare import prepare
from headrace.runtimes import registry as runtimes
from headrace.runtimes.base import Artifact, InstanceConfig, LoadedModel

PARALLEL_LOADS = 2
"""Loading is bound by disk and one core each; more at once only makes all of them later."""

_ONE_COPY_EACH = frozenset({"python"})
"""Runtimes whose every concurrent execution needs a copy of the model of its own."""


class Opened(msgspec.Struct, frozen=True):
    """A model in memory, and what was known about it from an earlier start.

    ``spent_ns``: how long opening took. ``stored`` None: it has not been measured here yet.
    """

    source: ModelSource
    runtime: str
    instances: InstanceConfig
    model: LoadedModel
    stored: StoredProfile | None
    store_key: str
    spent_ns: int


class Openings:
    """Models that are being opened, ahead of the engine that will serve them."""

    def __init__(
        self,
        sources: Sequence[ModelSource],
        cache_dir: Path,
        compiled_bytes: int = COMPILED_CACHE_BYTES,
        parallel: int = PARALLEL_LOADS,
    ) -> None:
        pool = ThreadPoolExecutor(parallel, thread_name_prefix="headrace-open")
        self._futures = {
            (source.name, source.version): pool.submit(
                open_model, source, cache_dir, compiled_bytes
            )
            for source in sources
        }
        pool.shutdown(wait=False)  # takes no more; ends when these are done

    def has(self, source: ModelSource) -> bool:
        """Whether it is one of them, and not yet taken."""
        return (source.name, source.version) in self._futures

    async def of(self, source: ModelSource) -> Opened:
        """Waits for one of the sources. Raises as :func:`open_model`."""
        return await asyncio.wrap_future(self._futures.pop((source.name, source.version)))


def open_model(
    source: ModelSource,
    cache_dir: Path,
    compiled_bytes: int = COMPILED_CACHE_BYTES,
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> Opened:
    """Prepares, checks and loads one version. Blocks; any thread.

    Args:
        source: what and where.
        cache_dir: of graphs, compiled models, measurements.
        compiled_bytes: that compiled models may take in the cache; 0 keeps none.
        tell: told of each phase as it begins.

    Raises:
        ModelLoadError, MissingExtra, ConfigError: why it cannot be served.
    """
    started_ns = time.monotonic_ns()
    if source.format == "ensemble":
        return _open_ensemble(source)
    tell("verifying")
    source = prepare(source, cache_dir)
    external: Sequence[str] = ()
    if source.format == "onnx":
        external = tuple(check_onnx(source.path, source.folder).external_files)
    digest, compiled = compiled_of(source, external, cache_dir, max_bytes=compiled_bytes)
    artifact = Artifact(
        name=source.name,
        version=source.version,
        path=source.path,
        folder=source.folder,
        format=source.format,
        digest=digest,
        options=source.config.runtime_options,
        config=source.config,
        compiled=compiled,
    )
    tell("loading")
    key, stored = _remembered(source, ProfileStore(cache_dir / PROFILES))
    runtime, instances, model = _start(source, artifact, stored)
    spent_ns = time.monotonic_ns() - started_ns
    return Opened(source, runtime, instances, model, stored, key, spent_ns)


def _open_ensemble(source: ModelSource) -> Opened:
    """Its steps are models of their own: there is nothing to prepare, load or remember."""
    model = ensemble_model(source.name, source.config)
    return Opened(source, source.format, InstanceConfig(), model, None, "", 0)


PROFILES = "profiles"
"""Folder of the measurements, in the cache."""


def _remembered(source: ModelSource, profiles: ProfileStore) -> tuple[str, StoredProfile | None]:
    config = source.config
    key = profiles.key(
        source.path,
        source.format,
        source.task,
        config.runtime,
        repr(config.runtime_options),
        f"{config.instances}x{config.threads}",
        cpu_model(),
        str(usable_cores()),
        *runtimes.fingerprint(),
    )
    return key, profiles.load(key)


def _start(
    source: ModelSource, artifact: Artifact, stored: StoredProfile | None
) -> tuple[str, InstanceConfig, LoadedModel]:
    """Loads the model in the runtime and with the threads that were said, remembered or won."""
    cores = usable_cores()
    config = source.config

    def load(name: str, instances: InstanceConfig) -> LoadedModel:
        return runtimes.create(name).load(artifact, instances)

    def default(name: str) -> InstanceConfig:
        concurrency = config.instances or (1 if name in _ONE_COPY_EACH else cores)
        return InstanceConfig(config.threads or max(1, cores // concurrency), concurrency)

    if stored is not None:
        return stored.runtime, stored.instances, load(stored.runtime, stored.instances)
    padded = source.task.startswith("text-")
    name = config.runtime
    if name == "auto":
        candidates = runtimes.candidates(source.format)
        if not candidates:
            raise ModelLoadError(
                f"no installed runtime can run model '{source.name}' (format {source.format})",
                hint="headrace doctor lists the runtimes and what each missing one needs",
            )
        name, model = keep_faster(candidates, lambda n: load(n, default(n)), padded=padded)
    else:
        model = load(name, default(name))
    alone = config.instances or config.threads or name in _ONE_COPY_EACH
    if alone or getattr(model, "takes_requests", False):
        return name, default(name), model
    try:
        instances, model = choose_threads(
            model, lambda instances: load(name, instances), cores=cores, padded=padded
        )
    except BaseException:
        model.unload()
        raise
    return name, instances, model
