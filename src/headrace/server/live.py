"""The model repository while the server runs: load, unload, and looking again.

What a model's folder says now replaces what is served of it, all of it or nothing: a version
that cannot be loaded leaves the ones before it where they are. Commands for one model come one
after another, those for different models side by side.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from headrace.config import Config
from headrace.engine.catalog import Catalog
from headrace.engine.models import ModelManager
from headrace.errors import (
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    OperatorError,
)
from headrace.repository.base import ScanResult
from headrace.repository.control import discard, list_models, scan_model
from headrace.repository.folders import check_name, mark_of
from headrace.repository.versions import is_version_folder
from headrace.types import ModelVersionStatus

_LOG = logging.getLogger("headrace.server")

_UNLOAD_WAIT_S = 1.0
"""An answer to ``unload`` waits so long for the last requests; the rest is done behind it, as
no request that comes after it reaches the model in any case."""

_SETTLE_S = 1.0
"""A folder that has changed is loaded when it looks the same after so long: what is half copied
is not served, and not reported as broken either."""

_WATCHED_MAX = 100_000
"""Files of one model whose times are compared; more are not looked at."""

Override = tuple[str | None, Mapping[str, bytes]]
"""Configuration as JSON text, and contents of files, that were sent with ``load``."""


class LiveRepository:
    """The models behind ``paths``.

    Args:
        paths: files, model folders and repositories, as the server was started with them.
        drain_s: how long requests of a model that leaves may still wait.
        given_name: what the server was told to call its one model.
        fetch: brings what stores hold to ``paths``; blocks. None: there are no stores.
    """

    def __init__(
        self,
        manager: ModelManager,
        catalog: Catalog,
        *,
        paths: Sequence[Path],
        config: Config,
        drain_s: float,
        given_name: str = "",
        fetch: Callable[[], None] | None = None,
    ) -> None:
        self._fetch = fetch
        self._fetched_s = time.monotonic()
        self._manager = manager
        self._catalog = catalog
        self._paths = tuple(paths)
        self._config = config
        self._drain_s = drain_s
        # Of names that somebody is busy with, so that made-up ones do not pile up.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._given_name = given_name
        self._marks: dict[str, tuple[object, Override]] = {}
        self._sent: dict[str, list[ScanResult]] = {}  # models whose files came with commands
        self._discarding: set[asyncio.Task[None]] = set()
        self._listed: set[str] = set()
        self._aliases: dict[str, dict[str, str]] = {}  # said while the server runs
        self._stopped: dict[str, object] = {}  # unloaded by hand, as it was on disk then
        self._seen: dict[str, object] = {}  # changed at the last look
        self._bare: set[str] = set()  # folders in which nothing is left

    def index(self, *, ready_only: bool) -> list[ModelVersionStatus]:
        """Every version that is or was served, and the models that were never loaded."""
        statuses = self._catalog.statuses()
        if ready_only:
            return [status for status in statuses if status.state == "READY"]
        known = {status.name for status in statuses}
        try:
            names = [name for name in list_models(self._paths) if name not in known]
        except (OperatorError, OSError) as error:
            _LOG.warning("the repository cannot be listed: %s", error)
            names = []
        never = [ModelVersionStatus(name, "", "UNAVAILABLE") for name in names]
        return sorted([*statuses, *never], key=lambda status: status.name)

    async def load(
        self, name: str, config: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Loads what the repository has under ``name``, or loads it again.

        An ensemble's steps are loaded before it. What is served already, and is on disk as it
        was, is left alone.

        Raises:
            InvalidRequest: there is no such model, or it cannot be loaded.
        """
        _check_name(name)
        await self._bring_up_to_date(0.0)
        await self._load(name, (config, files or {}), ())

    async def _bring_up_to_date(self, every_s: float) -> None:
        """What stores hold, if that was not fetched within ``every_s``; failures are logged."""
        if self._fetch is not None and time.monotonic() - self._fetched_s >= every_s:
            await asyncio.to_thread(self._fetch)
            self._fetched_s = time.monotonic()

    async def _load(self, name: str, override: Override, above: tuple[str, ...]) -> None:
        async with self._lock(name):
            mark = await asyncio.to_thread(_marks_of, self._paths, name)
            if self._is_current(name, (mark, override)):
                return
            found = await self._scan(name, override)
            try:
                leaving = await self._replace(name, found, above)
            except BaseException:
                await asyncio.to_thread(discard, found)
                raise
            self._catalog.forget_failures(name)
            for problem in found.problems:
                self._note(problem.name, problem.version, problem.reason)
            aliases = self._aliases.get(name, found.models[0].config.aliases)
            self._catalog.set_aliases(name, aliases)
            self._marks[name] = mark, override
            self._stopped.pop(name, None)
            self._discard_after(name, leaving)
            if found.uploaded_to is not None:
                self._sent[name] = [found]

    async def _replace(
        self, name: str, found: ScanResult, above: tuple[str, ...]
    ) -> list[asyncio.Task[None]]:
        """Serves what was found instead of what is served; the tasks of what leaves."""
        for note in found.notes:
            _LOG.warning("%s", note)
        for step in {s.model for source in found.models for s in source.config.ensemble}:
            if step in above or step == name:
                continue
            if not any(served.name == step for served in self._catalog.served()):
                _check_name(step)
                await self._load(step, (None, {}), (*above, name))
        try:
            return await self._manager.replace(found.models, drain_s=self._drain_s)
        except HeadraceError as error:
            versions = ",".join(sorted({source.version for source in found.models}))
            raise _refused(name, versions, error) from error

    def _discard_after(self, name: str, leaving: Sequence[asyncio.Task[None]]) -> None:
        """The files that came with a model go when it is gone."""
        sent = self._sent.pop(name, [])
        if not sent:
            return

        async def discard_them() -> None:
            if leaving:
                await asyncio.wait(leaving)
            for found in sent:
                await asyncio.to_thread(discard, found)

        task = asyncio.create_task(discard_them())
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)

    async def close(self) -> None:
        """Deletes the files that came with commands; what is in memory of them stays so."""
        for name in tuple(self._sent):
            self._discard_after(name, ())
        if self._discarding:
            await asyncio.wait(self._discarding)

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    async def _scan(self, name: str, override: Override) -> ScanResult:
        config, files = override
        try:
            found = await asyncio.to_thread(
                scan_model,
                self._paths,
                name,
                config=self._config_for(name),
                override=config,
                files=files,
                given_name=self._given_name,
            )
        except ModelNotFound as error:
            raise _unknown(name) from error
        except OperatorError as error:
            self._note(name, "", error.message)
            raise _refused(name, "", error) from error
        if not found.models:
            await asyncio.to_thread(discard, found)
            if found.problems:
                problem = found.problems[0]
                self._note(name, problem.version, problem.reason)
                raise _refused(name, problem.version, problem.error)
            raise _unknown(name)
        return found

    def _config_for(self, name: str) -> Config:
        """The server's configuration, with the aliases said since."""
        config = self._config
        if name in self._aliases:
            model = config.models.get(name, config.defaults)
            model = msgspec.structs.replace(model, aliases=self._aliases[name])
            config = msgspec.structs.replace(config, models={**config.models, name: model})
        return config

    async def set_aliases(self, name: str, aliases: dict[str, str], why: str = "") -> None:
        """These names stand for these versions from now on; what is not in memory is loaded first.

        Raises:
            InvalidRequest: there is no such version, or it cannot be loaded: then nothing changes.
        """
        async with self._lock(name):
            before = self._aliases.get(name)
            self._aliases[name] = dict(aliases)
            try:
                found = await self._scan_again(name, set(aliases.values()))
            except HeadraceError:
                if before is None:
                    del self._aliases[name]
                else:
                    self._aliases[name] = before
                raise
            self._catalog.set_aliases(name, aliases)
            told = ", ".join(f"{alias} = {version}" for alias, version in sorted(aliases.items()))
            self._manager.note(name, f"{why or 'aliases'}: {told or 'the highest version answers'}")
            wanted = {source.version for source in found.models}
            for served in self._catalog.served():
                if served.name == name and served.version not in wanted:
                    self._manager.retire(served, drain_s=self._drain_s)

    async def _scan_again(self, name: str, wanted: set[str]) -> ScanResult:
        """Looks at what was loaded again, and loads the versions wanted that are not there."""
        found = await self._scan(name, self._marks.get(name, (None, (None, {})))[1])
        there = self._versions(name)
        try:
            await self._load_named(name, wanted - there, found)
        finally:
            if found.uploaded_to is not None and self._versions(name) != there:
                self._sent.setdefault(name, []).append(found)
            else:
                await asyncio.to_thread(discard, found)
        return found

    def _versions(self, name: str) -> set[str]:
        """Those that serve, and those that will when they are asked for."""
        served = {each.version for each in self._catalog.served() if each.name == name}
        return served | {version for absent, version in self._catalog.absent() if absent == name}

    async def _load_named(self, name: str, wanted: set[str], found: ScanResult) -> None:
        sources = {source.version: source for source in found.models}
        for version in sorted(wanted):
            if version not in sources:
                reasons = [p.reason for p in found.problems if p.version in ("", version)]
                raise InvalidRequest(
                    f"model '{name}' has no version {version} that could be served"
                    + (f": {reasons[0]}" if reasons else ""),
                    code="no_such_version",
                    hint=f"the versions here are {sorted(sources)}",
                    model=name,
                )
            try:
                await self._manager.load(sources[version])
            except HeadraceError as error:
                raise _refused(name, version, error) from error

    def earlier(self, name: str) -> str:
        """The highest version on disk below the one that answers; "": there is none."""
        default = self._catalog.default(name)
        numbers = [
            int(entry.name)
            for path in self._paths
            for folder in (path / name, path)
            if folder.name == name and folder.is_dir()
            for entry in folder.iterdir()
            if is_version_folder(entry)
        ]
        below = [n for n in numbers if default.isdigit() and n < int(default)]
        return str(max(below)) if below else ""

    def roll_back(self, name: str, reason: str) -> None:
        """What still stands by answers again; nothing where nothing does."""
        if self._manager.stands_by(name):
            self._manager.roll_back(name, reason, drain_s=self._drain_s)

    def _is_current(self, name: str, mark: tuple[object, Override]) -> bool:
        served = any(each.name == name for each in self._catalog.served())
        return served and self._marks.get(name) == mark

    def _note(self, name: str, version: str, reason: str) -> None:
        """What the index says of a version that is not served."""
        serves = any(each.name == name for each in self._catalog.served())
        if not (self._catalog.is_routed(name, version) if version else serves):
            self._catalog.set_status(name, version, "UNAVAILABLE", reason)

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        """Unloads every version; ``dependents``: of an ensemble's steps as well.

        A model that is not served is left as it is, as Triton does.
        """
        names = {name}
        async with self._lock(name):  # what is being loaded is loaded first
            if dependents:
                for served in self._catalog.served():
                    if served.name == name:
                        names.update(step.model for step in served.config.ensemble)
            leaving = [
                self._manager.retire(served, drain_s=self._drain_s)
                for served in self._catalog.served()
                if served.name in names
            ]
            for each in names:
                known = self._marks.pop(each, None)
                if known is not None:
                    self._stopped[each] = known[0]
                self._manager.forget_absent(each)
                self._discard_after(each, leaving)
        if leaving:
            await asyncio.wait(leaving, timeout=_UNLOAD_WAIT_S)

    async def remember(self) -> None:
        """Takes the repository as it is for what is served, as it is after the start."""
        self._listed = set(await asyncio.to_thread(list_models, self._paths))
        for name in {served.name for served in self._catalog.served()} | self._listed:
            mark = await asyncio.to_thread(_marks_of, self._paths, name)
            self._marks.setdefault(name, (mark, (None, {})))

    async def poll(self, every_s: float) -> None:
        """Keeps what is served like what is there; until cancelled."""
        failed: dict[str, object] = {}
        while True:
            # What has changed is looked at again soon: it is loaded once it has come to rest.
            await asyncio.sleep(min(every_s, _SETTLE_S) if self._seen else every_s)
            try:
                await self._bring_up_to_date(self._config.server.repository_poll_s)
                await self._look(failed)
            except (HeadraceError, OSError) as error:
                _LOG.warning("looking at the repository failed: %s", error)

    async def _look(self, failed: dict[str, object]) -> None:
        names = await asyncio.to_thread(list_models, self._paths)
        for name in names:
            mark = await asyncio.to_thread(_marks_of, self._paths, name)
            known, override = self._marks.get(name, (None, (None, {})))
            if mark in (known, failed.get(name), self._stopped.get(name)):
                self._seen.pop(name, None)
                continue
            if self._seen.get(name) != mark:
                self._seen[name] = mark  # somebody may still be copying
                continue
            del self._seen[name]
            try:
                await self._load(name, override, ())
                failed.pop(name, None)
            except HeadraceError as error:
                failed[name] = mark  # told once, and tried again when it has changed
                _LOG.error("%s", error.message)
        bare: set[str] = set()
        for name in self._listed - set(names):  # a file that was given by itself never is in it
            if any((path / name).is_dir() for path in self._paths):
                bare.add(name)
                continue
            _LOG.info("model %s is gone from the repository", name)
            await self.unload(name)
        for name in bare - self._bare:
            _LOG.error("model %s has no version left on disk; what is in memory stays", name)
        self._bare = bare
        self._listed = set(names) | bare


def _check_name(name: str) -> None:
    """Raises InvalidRequest for a name that no model can have, which may be a path."""
    try:
        check_name(name, Path(name))
    except OperatorError as error:
        raise _unknown(name) from error


def _unknown(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"failed to load '{name}', failed to poll from model repository",
        code="model_not_found",
        model=name,
    )


def _refused(name: str, versions: str, error: HeadraceError) -> InvalidRequest:
    reason = f"{error.message} ({error.hint})" if error.hint else error.message
    version = f"version {versions} is at UNAVAILABLE state: " if versions else ""
    return InvalidRequest(
        f"load failed for model '{name}': {version}{reason}",
        code="load_failed",
        model=name,
        reason_code=error.code,
    )


def control_refused() -> ModelNotReady:
    """With ``model_control`` none or poll."""
    return ModelNotReady(
        "explicit model load / unload is not allowed if polling is enabled",
        code="model_control",
        hint="start the server with --watch, or with --model-control-mode=explicit",
    )


def _marks_of(paths: Sequence[Path], name: str) -> tuple[object, ...]:
    """Something that changes when a file of the model does: times and sizes, not contents."""
    marks: list[object] = []
    for path in paths:
        folder = path / name
        marks += mark_of(folder if folder.is_dir() else path, _WATCHED_MAX - len(marks))
        if len(marks) >= _WATCHED_MAX:
            break
        if path.is_file():
            status = path.stat()
            marks.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(marks)
