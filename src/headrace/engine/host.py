"""The engine as models see it that call other models (Triton's business logic scripting)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.errors import HeadraceError, ModelNotFound
from headrace.runtimes.host import HostReply
from headrace.types import InferenceRequest

if TYPE_CHECKING:
    from headrace.engine.engine import Engine


class EngineHost:
    """A ``runtimes.host.Host``. Such a call is a request like any other."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop

    def submit(self, request: InferenceRequest, reply: HostReply) -> None:
        """See ``Host``."""
        self._loop.call_soon_threadsafe(self._submit, request, reply)

    def is_ready(self, model: str, version: str) -> bool:
        """See ``Host``. Reads what only the loop changes, in one look-up each."""
        try:
            return self._engine.catalog.is_ready(model, version)
        except ModelNotFound:
            return False

    def _submit(self, request: InferenceRequest, reply: HostReply) -> None:
        try:
            self._engine.submit(request, reply)
        except HeadraceError as error:
            reply.fail(error)
