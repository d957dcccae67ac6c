"""A server that can be told anything, for tests of what tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.frontends.control import Parameter
from headrace.frontends.peer import Peer
from headrace.types import ModelVersionStatus

SETTINGS = {"a": "1"}
"""What :class:`FakeControl` answers for all settings."""


class FakeControl:
    """A :class:`headrace.frontends.control.Control` that writes down what it is asked for.

    ``error``, where it is set, is raised instead.
    """

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.peers: list[Peer] = []  # who asked about shared memory
        self.error: Exception | None = None

    def _ask(self, *what: Any) -> None:
        if self.error is not None:
            raise self.error
        self.asked.append(what)

    def index(self, *, ready_only: bool = False) -> Sequence[ModelVersionStatus]:
        """Two models, one of them ready."""
        self._ask("index", ready_only)
        return [ModelVersionStatus("m", "1", "READY"), ModelVersionStatus("n", "", "UNAVAILABLE")]

    async def load(self, model: str, parameters: Mapping[str, Parameter]) -> None:
        """Writes it down."""
        self._ask("load", model, dict(parameters))

    async def unload(self, model: str, *, dependents: bool = False) -> None:
        """Writes it down."""
        self._ask("unload", model, dependents)

    def overview(self) -> Sequence[Mapping[str, Any]]:
        """One version."""
        self._ask("overview")
        return [{"name": "m", "version": "1", "state": "READY", "aliases": [], "size_bytes": 1}]

    def history(self, model: str) -> Sequence[Mapping[str, Any]]:
        """Nothing happened."""
        self._ask("history", model)
        return []

    async def promote(self, model: str, version: str, alias: str = "stable") -> dict[str, str]:
        """Writes it down."""
        self._ask("promote", model, version, alias)
        return {alias: version}

    async def rollback(self, model: str, alias: str = "stable") -> dict[str, str]:
        """Writes it down."""
        self._ask("rollback", model, alias)
        return {}

    async def pin(self, model: str, *, pinned: bool = True) -> None:
        """Writes it down."""
        self._ask("pin", model, pinned)

    async def statistics(self, model: str = "", version: str = "") -> dict[str, Any]:
        """Of nothing."""
        self._ask("statistics", model, version)
        return {"model_stats": []}

    async def trace_setting(
        self, model: str = "", update: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Always the same."""
        self._ask("trace", model, update)
        return SETTINGS

    async def log_settings(self, update: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Always the same."""
        self._ask("log", update)
        return SETTINGS

    def shared_memory(self, peer: Peer, region: str = "") -> list[dict[str, Any]]:
        """There is none."""
        self.peers.append(peer)
        self._ask("shared_memory", region)
        return []

    async def register_shared_memory(
        self, peer: Peer, region: str, *, key: str, offset: int, byte_size: int
    ) -> None:
        """Writes it down."""
        self.peers.append(peer)
        self._ask("register", region, key, offset, byte_size)

    async def unregister_shared_memory(self, peer: Peer, region: str = "") -> None:
        """Writes it down."""
        self.peers.append(peer)
        self._ask("unregister", region)
