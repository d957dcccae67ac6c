"""What the protocols' extensions may ask of a running server, beside inference.

The REST application and the gRPC service speak to one :class:`Control`; ``server/`` implements
it, because some of it concerns every worker process. Values are those of the V2 protocol's own
JSON; every method may raise HeadraceError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headrace.frontends.peer import Peer
from headrace.types import ModelVersionStatus

Parameter = bool | int | str | bytes


class Control(Protocol):
    """See the module. ``model`` and ``version`` "" stand for all, or for the one served."""

    def index(self, *, ready_only: bool = False) -> Sequence[ModelVersionStatus]:
        """Every version known, and models of the repository that are not loaded."""
        ...

    async def load(self, model: str, parameters: Mapping[str, Parameter]) -> None:
        """(Re)loads a model; ``config`` is JSON text, ``file:<path>`` the bytes of a file."""
        ...

    async def unload(self, model: str, *, dependents: bool = False) -> None:
        """Unloads every version; ``dependents``: of an ensemble's steps as well."""
        ...

    def overview(self) -> Sequence[Mapping[str, Any]]:
        """Every version, with aliases, size, use."""
        ...

    def history(self, model: str) -> Sequence[Mapping[str, Any]]:
        """What became of a model, oldest first."""
        ...

    async def promote(self, model: str, version: str, alias: str = "stable") -> dict[str, str]:
        """``alias`` stands for ``version`` from now on; the aliases after."""
        ...

    async def rollback(self, model: str, alias: str = "stable") -> dict[str, str]:
        """Back to what it stood for before; the aliases after."""
        ...

    async def pin(self, model: str, *, pinned: bool = True) -> None:
        """Whether it may leave memory to make room."""
        ...

    async def statistics(self, model: str = "", version: str = "") -> dict[str, Any]:
        """``{"model_stats": [...]}``; numbers are integers."""
        ...

    async def trace_setting(
        self, model: str = "", update: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Changes what ``update`` names (None: back to the default); all settings after that."""
        ...

    async def log_settings(self, update: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same for the server's log."""
        ...

    def shared_memory(self, peer: Peer, region: str = "") -> list[dict[str, Any]]:
        """``{"name", "key", "offset", "byte_size"}`` of one of its regions, or of all."""
        ...

    async def register_shared_memory(
        self, peer: Peer, region: str, *, key: str, offset: int, byte_size: int
    ) -> None:
        """Maps ``/dev/shm/<key>`` for the client's user."""
        ...

    async def unregister_shared_memory(self, peer: Peer, region: str = "") -> None:
        """One region of the client's user, or all of them."""
        ...
