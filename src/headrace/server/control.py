"""Controls a running server: what the protocols' extensions ask for, done in every worker."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from headrace.config import ServerConfig
from headrace.engine.catalog import STABLE, Catalog
from headrace.engine.models import ModelManager
from headrace.errors import Forbidden, InvalidRequest, ModelNotFound, ModelNotReady
from headrace.frontends.control import Parameter
from headrace.frontends.peer import Peer
from headrace.server.commands import (
    ChangeLog,
    ChangeTrace,
    Command,
    LoadModel,
    Pin,
    RegisterRegion,
    RollBack,
    SetAliases,
    UnloadModel,
    UnregisterRegion,
)
from headrace.server.fellows import Alone, Fellows
from headrace.server.link import Seat
from headrace.server.live import LiveRepository, control_refused
from headrace.telemetry.log_settings import LogControl
from headrace.telemetry.snapshot import ModelCounters, merge
from headrace.telemetry.statistics import model_statistics
from headrace.telemetry.trace import Tracing
from headrace.types import ModelVersionStatus

_FILE = "file:"

WATCH_S = 1.0
"""Between two looks at the repository with ``model_control = "watch"``."""

_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")


class Regions(Protocol):
    """Shared memory that clients registered in this process."""

    def find_owner(self, peer: Peer) -> int | None:
        """Whose regions a client may use; None: nobody's."""
        ...

    def owner_of(self, peer: Peer) -> int:
        """The same. Raises Forbidden instead of None."""
        ...

    def register(self, name: str, *, key: str, offset: int, byte_size: int, owner: int) -> None:
        """Maps it."""
        ...

    def unregister(self, name: str = "", *, owner: int) -> None:
        """Forgets one, or all, of the owner's."""
        ...

    def status(self, name: str = "", *, owner: int | None) -> list[dict[str, Any]]:
        """What the owner registered."""
        ...


class ServerControl:
    """``frontends.control.Control`` for one process or one of several.

    Args:
        snapshots: the counters of every worker.
        seat: this worker's place; None: it is alone.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        catalog: Catalog,
        repository: LiveRepository,
        manager: ModelManager,
        tracing: Tracing,
        log: LogControl,
        regions: Regions,
        snapshots: Callable[[], Awaitable[Sequence[bytes]]],
        seat: Seat | None = None,
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._repository = repository
        self._manager = manager
        self._tracing = tracing
        self._log = log
        self._regions = regions
        self._snapshots = snapshots
        self._fellows: Alone | Fellows = (
            Alone(self._carry_out) if seat is None else Fellows(seat, self._carry_out)
        )
        self._poll: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._before: dict[tuple[str, str], list[str]] = {}  # what aliases stood for

    async def start(self) -> None:
        """After loading, before requests: catches up with the other workers."""
        if self._config.model_control != "none":
            await self._repository.remember()
        await self._fellows.join()
        every_s = {"poll": self._config.repository_poll_s, "watch": WATCH_S}
        if self._config.model_control in every_s:
            poll = self._repository.poll(every_s[self._config.model_control])
            self._poll = asyncio.create_task(poll)
        self._manager.on_breach = self._breached

    async def close(self) -> None:
        """Listens no more, and writes the traces that are left."""
        await self._fellows.leave()
        if self._poll is not None:
            self._poll.cancel()
        await self._repository.close()
        await asyncio.to_thread(self._tracing.close)

    # -- model repository --------------------------------------------------------------------

    def index(self, *, ready_only: bool = False) -> Sequence[ModelVersionStatus]:
        """Every version known, and models of the repository that are not loaded."""
        return self._repository.index(ready_only=ready_only)

    async def load(self, model: str, parameters: Mapping[str, Parameter]) -> None:
        """(Re)loads a model; ``config`` is JSON text, ``file:<path>`` the bytes of a file.

        Raises:
            InvalidRequest: no such model, a wrong parameter, or it cannot be loaded.
            Forbidden: it brings files, and ``server.uploads`` is off.
            ModelNotReady: models are not loaded by hand here.
        """
        self._check_allowed(control_refused())
        config: str | None = None
        files: dict[str, bytes] = {}
        for name, value in parameters.items():
            if name == "config":
                if not isinstance(value, str):
                    raise InvalidRequest("parameter 'config' must be a string of JSON")
                config = value
            elif name.startswith(_FILE):
                if not self._config.uploads:
                    raise _uploads_refused(model)
                if not isinstance(value, bytes):
                    raise InvalidRequest(f"parameter '{name}' must be the bytes of a file")
                files[name.removeprefix(_FILE)] = value
            else:
                raise InvalidRequest(
                    f"unrecognized load parameter '{name}'",
                    hint="the parameters are 'config' and 'file:<path>'",
                )
        await self._tell_all(LoadModel(model, config, files))

    async def unload(self, model: str, *, dependents: bool = False) -> None:
        """Unloads every version; ``dependents``: of an ensemble's steps as well.

        A name that nothing is known of is no error, as in Triton.

        Raises:
            ModelNotReady: models are not unloaded by hand here.
        """
        self._check_allowed(control_refused())
        if any(status.name == model for status in self.index()):
            # Every worker that starts repeats what was told: made-up names must not pile up there.
            await self._tell_all(UnloadModel(model, dependents))

    def _check_allowed(self, refusal: ModelNotReady) -> None:
        if self._config.model_control not in ("explicit", "watch"):
            raise refusal

    # -- versions and memory -------------------------------------------------------------------

    def overview(self) -> list[dict[str, Any]]:
        """Every version, with aliases, size, use; of the worker that is asked."""
        return self._manager.describe()

    def history(self, model: str) -> list[dict[str, Any]]:
        """What became of a model, oldest first. Raises ModelNotFound."""
        lines = self._manager.histories.of(model)
        if not lines and all(status.name != model for status in self._catalog.statuses()):
            raise ModelNotFound(f"Request for unknown model: '{model}' is not found", model=model)
        return lines

    async def promote(self, model: str, version: str, alias: str = STABLE) -> dict[str, str]:
        """``alias`` stands for ``version`` from now on ("latest": for none); the aliases after.

        Raises:
            InvalidRequest: there is no such version, or it cannot be loaded.
            ModelNotFound: there is no such model.
            ModelNotReady: versions are not changed by command here.
        """
        self._check_allowed(change_refused("promote a version"))
        self._check_known(model)
        check_alias(alias)
        aliases = self._catalog.aliases(model)
        before = aliases.pop(alias, "")
        if version != "latest":
            aliases[alias] = aliases.get(version, version)
        await self._tell_all(SetAliases(model, aliases, f"promote {version}"))
        self._before.setdefault((model, alias), []).append(before)
        return self._catalog.aliases(model)

    async def rollback(self, model: str, alias: str = STABLE) -> dict[str, str]:
        """Back to what answered before: in memory still, or by its number; the aliases after.

        Raises:
            InvalidRequest: there is nothing to go back to.
            ModelNotFound: there is no such model.
            ModelNotReady: versions are not changed by command here.
        """
        self._check_allowed(change_refused("roll back"))
        self._check_known(model)
        if alias == STABLE and self._manager.stands_by(model):
            await self._tell_all(RollBack(model, "rolled back by hand"))
            return self._catalog.aliases(model)
        kept = self._before.get((model, alias), [])
        aliases = self._catalog.aliases(model)
        if kept:
            version = kept[-1]
        elif alias == STABLE:
            version = await asyncio.to_thread(self._repository.earlier, model)
        else:
            version = ""
        if not (kept or version):
            raise InvalidRequest(
                f"model '{model}' has nothing to go back to",
                code="nothing_to_roll_back",
                hint="name a version: headrace models promote NAME VERSION",
                model=model,
            )
        aliases.pop(alias, None)
        if version:
            aliases[alias] = version
        await self._tell_all(SetAliases(model, aliases, "rollback"))
        if kept:
            kept.pop()
        return self._catalog.aliases(model)

    async def pin(self, model: str, *, pinned: bool = True) -> None:
        """Whether it may leave memory to make room. Raises ModelNotFound, ModelNotReady."""
        self._check_allowed(change_refused("pin a model"))
        self._check_known(model)
        await self._tell_all(Pin(model, pinned))

    def _check_known(self, model: str) -> None:
        if all(status.name != model for status in self._catalog.statuses()):
            raise ModelNotFound(f"Request for unknown model: '{model}' is not found", model=model)

    def _breached(self, model: str, reason: str) -> None:
        """A newcomer is worse than what it replaced: no worker keeps it."""
        task = asyncio.create_task(self._tell_all(RollBack(model, reason)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- statistics --------------------------------------------------------------------------

    async def statistics(self, model: str = "", version: str = "") -> dict[str, Any]:
        """``{"model_stats": [...]}`` of what is served now, all workers added up.

        Raises:
            ModelNotFound, ModelNotReady: one was named that does not serve.
        """
        if model:
            self._catalog.resolve(model, version)
        counted = {
            (each.model, each.version): each for each in merge(await self._snapshots()).models
        }
        served = [
            each
            for each in self._catalog.served()
            if model in ("", each.name) and version in ("", each.version)
        ]
        served.sort(key=lambda each: (each.name, len(each.version), each.version))
        return {
            "model_stats": [
                model_statistics(
                    counted.get((each.name, each.version)) or ModelCounters(each.name, each.version)
                )
                for each in served
            ]
        }

    # -- settings ----------------------------------------------------------------------------

    async def trace_setting(
        self, model: str = "", update: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Changes what ``update`` names (None: back to the default); all settings after that.

        Raises:
            ModelNotFound: there is no such model.
            InvalidRequest, Unsupported: a setting that is not known, or cannot be.
            ModelNotReady: settings are not changed by command here.
        """
        if model and all(status.name != model for status in self._catalog.statuses()):
            raise ModelNotFound(f"Request for unknown model : {model}", model=model)
        if update:
            self._check_allowed(change_refused("change trace settings"))
            await self._tell_all(ChangeTrace(model, dict(update)))
        return self._tracing.body(model)

    async def log_settings(self, update: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same for the server's log. Raises InvalidRequest, ModelNotReady, Unsupported."""
        if update:
            self._check_allowed(change_refused("change log settings"))
            await self._tell_all(ChangeLog(dict(update)))
        return self._log.body()

    # -- shared memory -----------------------------------------------------------------------

    def shared_memory(self, peer: Peer, region: str = "") -> list[dict[str, Any]]:
        """``{"name", "key", "offset", "byte_size"}`` of one of the client's regions, or of all."""
        return self._regions.status(region, owner=self._regions.find_owner(peer))

    async def register_shared_memory(
        self, peer: Peer, region: str, *, key: str, offset: int, byte_size: int
    ) -> None:
        """Maps ``/dev/shm/<key>`` in every worker.

        Raises:
            Forbidden: the client may use no shared memory.
            InvalidRequest: the region cannot be registered.
        """
        owner = self._regions.owner_of(peer)
        await self._tell_all(RegisterRegion(region, key, offset, byte_size, owner))

    async def unregister_shared_memory(self, peer: Peer, region: str = "") -> None:
        """One of the client's regions, or all of them. A client that can have none has lost none.

        Raises:
            InvalidRequest: one is used by a request. Other workers may have forgotten it.
        """
        owner = self._regions.find_owner(peer)
        if owner is not None:
            await self._tell_all(UnregisterRegion(region, owner))

    # -- carried out here, for whichever worker was asked ---------------------------------------

    async def _tell_all(self, command: Command) -> None:
        # Shielded: a client that leaves must not leave half of the workers told.
        task = asyncio.ensure_future(self._fellows.tell_all(command))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(task)
        finally:
            # The task has the error, and the error this frame, which has the files of an upload.
            del task

    async def _carry_out(self, command: Command) -> None:
        match command:
            case LoadModel(model, config, files):
                await self._repository.load(model, config, files)
            case UnloadModel(model, dependents):
                await self._repository.unload(model, dependents=dependents)
            case SetAliases(model, aliases, why):
                await self._repository.set_aliases(model, aliases, why)
            case RollBack(model, reason):
                self._repository.roll_back(model, reason)
            case Pin(model, pinned):
                self._manager.pin(model, pinned=pinned)
            case ChangeTrace(model, update):
                self._tracing.update(model, update)
            case ChangeLog(update):
                self._log.update(update)
            case RegisterRegion(region, key, offset, byte_size, owner):
                self._regions.register(
                    region, key=key, offset=offset, byte_size=byte_size, owner=owner
                )
            case UnregisterRegion(region, owner):
                self._regions.unregister(region, owner=owner)
            case _:
                raise InvalidRequest(f"unknown command {msgspec.to_builtins(command)}")


def _uploads_refused(model: str) -> Forbidden:
    return Forbidden(
        f"failed to load '{model}', this server takes no files with a load request",
        code="uploads_refused",
        hint="put the model into the repository; or start the server with server.uploads = true",
        model=model,
    )


def change_refused(what: str) -> ModelNotReady:
    """With ``model_control`` none or poll, for what Triton has no sentence for."""
    return ModelNotReady(
        f"cannot {what}: this server takes no changes over its API",
        code="model_control",
        hint="start the server with --watch, or with --model-control-mode=explicit",
    )


def check_alias(alias: str) -> None:
    """Raises InvalidRequest where it could be taken for a version, or is no name."""
    if not _ALIAS.fullmatch(alias) or alias == "latest":
        raise InvalidRequest(
            f"{alias!r} cannot be an alias",
            code="wrong_alias",
            hint="a letter, then letters, digits, '.', '_' or '-'; not 'latest'",
        )
