"""From a source on disk to a model in a runtime: everything that needs no event loop.

So it can begin before there is one. Loading is mostly reading a file and building a session,
in a library that lets other threads run; a server imports the rest of itself meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from headrace.config import COMPILED_CACHE_BYTES
from headrace.engine.compiled import compiled_of
from headrace.engine.ensemble import ensemble_model
from headrace.engine.isolation import Facts, Isolation, choose_isolation
from headrace.engine.profiles import ProfileStore, StoredProfile
from headrace.engine.selection import choose_threads, keep_faster
from headrace.errors import ModelLoadError
from headrace.machine import can_hold_children, cpu_model, usable_cores
from headrace.repository.base import ModelSource
from headrace.repository.onnx_check import check_onnx
from headrace.repository.prepare import prepare
from headrace.repository.weights import weight_files
from headrace.runtimes import registry as runtimes
from headrace.runtimes.base import Artifact, CompiledCache, InstanceConfig, LoadedModel

_LOG = logging.getLogger("headrace.engine")

PARALLEL_LOADS = 2
"""Loading is bound by disk and one core each; more at once only makes all of them later."""

_ONE_COPY_EACH = frozenset({"python"})
"""Runtimes whose every concurrent execution needs a copy of the model of its own. So it is with
all others in child processes."""

Choose = Callable[[str], Isolation]
"""Where this model would run with the runtime of that name."""


TryOut = Callable[[ModelSource, str, Artifact, InstanceConfig, int], None]
"""See ``trials.Trials.run``."""


class Opened(msgspec.Struct, frozen=True):
    """A model in memory, and what was known about it from an earlier start.

    ``spent_ns``: how long opening took. ``stored`` None: it has not been measured here yet.
    ``isolation``: "process" or "thread", and ``isolation_reason`` why.
    """

    source: ModelSource
    runtime: str
    instances: InstanceConfig
    model: LoadedModel
    stored: StoredProfile | None
    store_key: str
    spent_ns: int
    isolation: str = "thread"
    isolation_reason: str = ""
    file_bytes: int = 0
    """Of the files it was loaded from."""


class Openings:
    """Models that are being opened, ahead of the engine that will serve them.

    Not for servers with a memory budget: there each waits for its room.
    """

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
            if not source.try_first
        }
        pool.shutdown(wait=False)  # takes no more; ends when these are done

    def give_up(self) -> None:
        """Those that have not begun are opened by who wants them: what runs may not end."""
        for key, future in tuple(self._futures.items()):
            if future.cancel():
                del self._futures[key]

    def has(self, source: ModelSource) -> bool:
        """Whether it is one of them, and not yet taken."""
        return (source.name, source.version) in self._futures

    def of(self, source: ModelSource) -> Opened:
        """Waits for one of the sources. Blocks. Raises as :func:`open_model`."""
        return self._futures.pop((source.name, source.version)).result()


def open_model(
    source: ModelSource,
    cache_dir: Path,
    compiled_bytes: int = COMPILED_CACHE_BYTES,
    *,
    memory_budget: int = 0,
    like: StoredProfile | None = None,
    tell: Callable[[str], None] = lambda _: None,
    try_out: TryOut | None = None,
) -> Opened:
    """Prepares, checks and loads one version. Blocks; any thread.

    Args:
        source: what was found on disk.
        cache_dir: for graphs, compiled models, measurements.
        compiled_bytes: that compiled models may take in the cache; 0 keeps none.
        memory_budget: bytes that models are to keep within, by unloading; 0: none.
        like: how an earlier version of the model runs: with the same runtime, if that is the
            reference of its format or the only one allowed, and as many threads, so that a swap
            does not take from who serves what comparing costs.
        tell: told of each phase as it begins.
        try_out: tries a ``try_first`` model out in a child process, before any runtime opens it
            here.

    Raises:
        ModelLoadError, MissingExtra, ConfigError: why it cannot be served.
    """
    started_ns = time.monotonic_ns()
    if source.format == "ensemble":
        return _open_ensemble(source)
    tell("verifying")
    source = prepare(source, cache_dir)
    size, external = model_bytes(source)
    digest, compiled = compiled_of(source, external, cache_dir, max_bytes=compiled_bytes)
    artifact = _artifact_of(source, digest, compiled)

    def choose(runtime: str, *, triton: bool = False) -> Isolation:
        facts = Facts(
            runtime=runtime,
            model_bytes=size,
            memory_budget=memory_budget,
            triton=triton,
        )
        chosen = choose_isolation(source.config, facts)
        if chosen.kind == "thread" or source.config.isolation != "auto" or can_hold_children():
            return chosen
        return Isolation("thread", f"this system cannot hold children, though {chosen.reason}")

    tell("loading")
    large = Facts(runtime="", model_bytes=size, memory_budget=memory_budget)
    key, stored = _remembered(
        source, ProfileStore(cache_dir / PROFILES), str(large.must_return_memory)
    )
    known = stored or (like if like is not None and _may_run_like(source, like) else None)
    tried: set[str] = set()

    def check(name: str, instances: InstanceConfig) -> None:
        if try_out is not None and source.try_first and name not in tried:
            try_out(source, name, artifact, instances, size)
            tried.add(name)

    runtime, instances, model = _start(source, artifact, known, choose, check)
    spent_ns = time.monotonic_ns() - started_ns
    triton = runtime == "python" and getattr(model, "takes_requests", False)
    kind, reason = choose(runtime, triton=triton)
    _LOG.info(
        "model %s version %s runs in %s: %s",
        source.name,
        source.version,
        f"{instances.concurrency} child process(es)" if kind == "process" else "the server",
        reason,
    )
    return Opened(source, runtime, instances, model, stored, key, spent_ns, kind, reason, size)


def _artifact_of(source: ModelSource, digest: str, compiled: CompiledCache | None) -> Artifact:
    return Artifact(
        name=source.name,
        version=source.version,
        path=source.path,
        folder=source.folder,
        format=source.format,
        digest=digest,
        options=source.config.runtime_options,
        config=source.config,
        compiled=compiled,
        may_run_code=source.may_run_code,
    )


def _may_run_like(source: ModelSource, like: StoredProfile) -> bool:
    """Another runtime than the reference has to prove anew that its answers agree."""
    wanted = source.config.runtime
    if wanted != "auto":
        return like.runtime == wanted
    reference = runtimes.candidates(source.format, may_run_code=source.may_run_code)[:1]
    return (like.runtime,) == reference


def model_bytes(source: ModelSource) -> tuple[int, tuple[str, ...]]:
    """Bytes of the files it is loaded from, and those that an ONNX file refers to.

    Checks ONNX files on the way.

    Raises:
        ModelLoadError: an ONNX file that would hurt a runtime.
    """
    if source.format == "onnx":
        summary = check_onnx(source.path, source.folder)
        external = summary.external_files
        return summary.file_bytes + sum(external.values()), tuple(external)
    if source.format == "safetensors":
        return sum(file.stat().st_size for file in weight_files(source.path)), ()
    # OpenVINO's graph has its weights beside it; other formats are one file.
    files = {source.path, source.path.with_suffix(".bin")}
    return sum(file.stat().st_size for file in files if file.is_file()), ()


def _open_ensemble(source: ModelSource) -> Opened:
    """Its steps are models of their own: there is nothing to prepare, load or remember."""
    model = ensemble_model(source.name, source.config)
    return Opened(source, source.format, InstanceConfig(), model, None, "", 0)


PROFILES = "profiles"
"""Folder of the measurements, in the cache."""


def _remembered(
    source: ModelSource, profiles: ProfileStore, *facts: str
) -> tuple[str, StoredProfile | None]:
    config = source.config
    key = profiles.key(
        source.path,
        source.format,
        source.task,
        config.runtime,
        repr(config.runtime_options),
        str(source.may_run_code),
        f"{config.instances}x{config.threads} {config.isolation}",
        *facts,
        cpu_model(),
        str(usable_cores()),
        *runtimes.fingerprint(),
    )
    return key, profiles.load(key)


def _start(
    source: ModelSource,
    artifact: Artifact,
    stored: StoredProfile | None,
    choose: Choose,
    check: Callable[[str, InstanceConfig], None],
) -> tuple[str, InstanceConfig, LoadedModel]:
    """Loads the model in the runtime and with the threads that were said, remembered or won."""
    cores = usable_cores()
    config = source.config

    def one_copy_each(name: str) -> bool:
        return name in _ONE_COPY_EACH or choose(name).kind == "process"

    def load(name: str, instances: InstanceConfig) -> LoadedModel:
        # Never in the server first: what a library keeps of it would stay.
        check(name, instances)
        isolated = name not in _ONE_COPY_EACH and choose(name).kind == "process"
        return runtimes.load(name, artifact, instances, isolated=isolated)

    def default(name: str) -> InstanceConfig:
        concurrency = config.instances or (1 if one_copy_each(name) else cores)
        return InstanceConfig(config.threads or max(1, cores // concurrency), concurrency)

    if stored is not None:
        return stored.runtime, stored.instances, load(stored.runtime, stored.instances)
    padded = source.task.startswith("text-")
    name = config.runtime
    if name == "auto":
        candidates = runtimes.candidates(source.format, may_run_code=source.may_run_code)
        if not candidates:
            raise ModelLoadError(
                f"no installed runtime can run model '{source.name}' (format {source.format})",
                hint="headrace doctor lists the runtimes and what each missing one needs",
            )
        name, model = keep_faster(candidates, lambda n: load(n, default(n)), padded=padded)
    else:
        model = load(name, default(name))
    alone = config.instances or config.threads or one_copy_each(name)
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
