"""The engine as models see it that call other models (Triton's business logic scripting)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.engine.lobby import Waiting
from headrace.errors import HeadraceError, InferenceFailed, ModelAbsent, ModelNotFound, detached
from headrace.runtimes.host import HostReply, Measurement
from headrace.types import InferenceRequest

if TYPE_CHECKING:
    from headrace.engine.engine import Engine
    from headrace.engine.inflight import Ticket

_LOG = logging.getLogger("headrace.engine")


class EngineHost:
    """A ``runtimes.host.Host``. Such a call is a request like any other.

    Args:
        engine: what answers.
        loop: where it lives.
        measured: told on the loop of what models count themselves.
    """

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        measured: Callable[[str, str, int, Measurement], None],
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._measured = measured

    def submit(self, request: InferenceRequest, reply: HostReply) -> _Called:
        """See ``Host``."""
        called = _Called(self._engine, self._loop)
        _soon(self._loop, called.begin, request, reply)
        return called

    def is_ready(self, model: str, version: str) -> bool:
        """See ``Host``. Reads what only the loop changes, in one look-up each."""
        try:
            return self._engine.catalog.is_ready(model, version)
        except ModelNotFound:
            return False

    def measured(self, model: str, version: str, instance: int, measurement: Measurement) -> None:
        """See ``Host``."""
        _soon(self._loop, self._measured, model, version, instance, measurement)


class _Called:
    """One call, from whatever thread to the event loop."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop
        self._ticket: Ticket | Waiting | None = None

    def begin(self, request: InferenceRequest, reply: HostReply) -> None:
        """On the loop."""
        try:
            self._submit(request, reply)
        except HeadraceError as error:
            reply.fail(detached(error))
        except Exception as error:  # noqa: BLE001 - or the model would wait for ever
            _LOG.exception("a call of a model to %s failed", request.model_name)
            reply.fail(InferenceFailed(f"the call failed: {type(error).__name__}: {error}"))

    def _submit(self, request: InferenceRequest, reply: HostReply) -> None:
        try:
            self._ticket = self._engine.submit(request, reply, nested=True)
        except ModelAbsent as absent:
            self._ticket = Waiting(self._engine, absent, request, reply, nested=True)

    def cancel(self) -> None:
        """See ``HostCalled``."""
        _soon(self._loop, self._end)

    def _end(self) -> None:
        if self._ticket is not None:
            self._ticket.cancel()


def _soon(loop: asyncio.AbstractEventLoop, then: Callable[..., None], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(then, *arguments)
    except RuntimeError:
        pass  # the loop is closed: the server is gone, and its models go with it
