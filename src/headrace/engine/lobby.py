"""Where requests wait for a model that is not in memory yet: bounded in number and in time.

A guest is not a request yet, only somebody to call again: what it asks is decoded when there is a
model that says how. Whoever comes to a full room, or to a model that could not be loaded a moment
ago, is told when to come back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from headrace.errors import (
    HeadraceError,
    ModelAbsent,
    ModelLoadError,
    ModelNotReady,
    Overloaded,
    detached,
)
from headrace.lifetimes import ResidencyConfig
from headrace.types import InferenceRequest

if TYPE_CHECKING:
    from headrace.engine.inflight import Reply, Ticket

_LOG = logging.getLogger("headrace.engine")

_FAILED_S = 5.0
"""A model that could not be loaded is not tried again for so long: each try costs what a
successful one does, and takes it from those that serve."""

_RETRY_MIN_NS = 1_000_000_000

Refuse = Callable[[HeadraceError], None]


class _Guest:
    """Somebody who waits. ``timer`` ends it."""

    __slots__ = ("again", "gone", "refuse", "timer")

    def __init__(self, again: Callable[[], None], refuse: Refuse) -> None:
        self.again = again
        self.refuse = refuse
        self.gone = False
        self.timer: asyncio.TimerHandle | None = None


class Lobby:
    """The waiting rooms of one engine. On the event loop.

    Args:
        bring: loads a version; raises HeadraceError.
        terms: of a model.
        expected_ns: how long loading it will take; 0: nobody knows.
    """

    def __init__(
        self,
        bring: Callable[[str, str], Awaitable[None]],
        terms: Callable[[str, str], ResidencyConfig],
        expected_ns: Callable[[str, str], int],
    ) -> None:
        self._bring = bring
        self._terms = terms
        self._expected_ns = expected_ns
        self._rooms: dict[tuple[str, str], dict[_Guest, None]] = {}  # in order of arrival
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._failed: dict[tuple[str, str], tuple[float, HeadraceError]] = {}

    def waiting(self, name: str) -> int:
        """How many wait for any version of a model."""
        return sum(len(room) for key, room in self._rooms.items() if key[0] == name)

    def wait(
        self, absent: ModelAbsent, again: Callable[[], None], refuse: Refuse
    ) -> Callable[[], None]:
        """Waits for the model of ``absent``: then ``again`` or ``refuse`` is called, once.

        Returns:
            What ends the waiting without calling either.

        Raises:
            Overloaded: the room is full. ModelNotReady: it could not be loaded a moment ago.
        """
        key = absent.details["model"], absent.details["version"]
        terms = self._terms(*key)
        failed = self._failed.get(key)
        if failed is not None:
            left_s = failed[0] - time.monotonic()
            if left_s > 0:
                raise _could_not(key, failed[1], int(left_s * 1e9))
            del self._failed[key]
        room = self._rooms.setdefault(key, {})
        self._begin(key)
        if len(room) >= terms.max_waiting:
            raise self._full(key, len(room))
        guest = _Guest(again, refuse)
        guest.timer = asyncio.get_running_loop().call_later(
            terms.max_wait_s, self._too_long, key, guest, terms
        )
        room[guest] = None
        return partial(self._leave, key, guest)

    def close(self) -> None:
        """Nobody is let in any more."""
        for task in self._tasks.values():
            task.cancel()
        for room in self._rooms.values():
            for guest in room:
                _end(guest)
        self._rooms.clear()

    def _begin(self, key: tuple[str, str]) -> None:
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._fetch(key))

    async def _fetch(self, key: tuple[str, str]) -> None:
        error: HeadraceError | None = None
        try:
            await self._bring(*key)
        except Exception as caught:  # noqa: BLE001 - or they would wait until their time is over
            error = _told(caught)
            self._failed[key] = time.monotonic() + _FAILED_S, error
            _LOG.error("model %s version %s was asked for: %s", *key, error.message)
        finally:
            self._tasks.pop(key, None)  # a guest may find it gone again, and wait for another load
        for guest in self._rooms.pop(key, ()):
            if not _end(guest):
                continue
            if error is None:
                guest.again()
            else:
                guest.refuse(_could_not(key, error, int(_FAILED_S * 1e9)))

    def _too_long(self, key: tuple[str, str], guest: _Guest, terms: ResidencyConfig) -> None:
        self._leave(key, guest)
        guest.refuse(
            ModelNotReady(
                f"model '{key[0]}' version {key[1]} was not loaded within {terms.max_wait_s:g} s",
                code="load_wait",
                hint="retry later, or raise residency.max_wait_s",
                retry_after_ns=self._retry_ns(key),
                model=key[0],
                limit="max_wait_s",
            )
        )

    def _leave(self, key: tuple[str, str], guest: _Guest) -> None:
        if _end(guest):
            room = self._rooms.get(key)
            if room is not None:
                room.pop(guest, None)

    def _full(self, key: tuple[str, str], waiting: int) -> Overloaded:
        return Overloaded(
            f"model '{key[0]}' is being loaded, and {waiting} requests wait for it already",
            code="load_queue_full",
            hint="retry later, or raise residency.max_waiting",
            retry_after_ns=self._retry_ns(key),
            model=key[0],
            limit="max_waiting",
        )

    def _retry_ns(self, key: tuple[str, str]) -> int:
        return max(_RETRY_MIN_NS, self._expected_ns(*key))


def _end(guest: _Guest) -> bool:
    """Whether it was still waiting."""
    if guest.gone:
        return False
    guest.gone = True
    if guest.timer is not None:
        guest.timer.cancel()
    return True


def _told(error: Exception) -> HeadraceError:
    if isinstance(error, HeadraceError):
        return detached(error)
    return ModelLoadError(f"{type(error).__name__}: {error}")


def _could_not(key: tuple[str, str], error: HeadraceError, retry_after_ns: int) -> ModelNotReady:
    return ModelNotReady(
        f"model '{key[0]}' version {key[1]} could not be loaded: {error.message}",
        code=error.code,
        hint=error.hint,
        retry_after_ns=retry_after_ns,
        model=key[0],
        version=key[1],
    )


class Submitter(Protocol):
    """What a request needs of the engine."""

    lobby: Lobby | None

    def submit(self, request: InferenceRequest, reply: Reply, *, nested: bool = False) -> Ticket:
        """See ``Engine.submit``."""
        ...


class Waiting:
    """A request that is submitted as soon as its model is there; stands for its ticket.

    Args:
        engine: where it goes.
        absent: why it has to wait.
        request: decoded already.
        reply: answered in any case.
        nested: as in ``Engine.submit``.
        then: told of the ticket, once there is one.

    Raises:
        CapacityError: it may not wait.
    """

    def __init__(
        self,
        engine: Submitter,
        absent: ModelAbsent,
        request: InferenceRequest,
        reply: Reply,
        *,
        nested: bool = False,
        then: Callable[[Ticket], None] = lambda _: None,
    ) -> None:
        self._engine = engine
        self._request = request
        self._reply = reply
        self._nested = nested
        self._then = then
        self._ticket: Ticket | None = None
        self._leave = self._wait(absent)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        if self._ticket is not None:
            self._ticket.cancel()
        else:
            self._leave()

    def _wait(self, absent: ModelAbsent) -> Callable[[], None]:
        if self._engine.lobby is None:
            raise absent
        return self._engine.lobby.wait(absent, self._again, self._reply.fail)

    def _again(self) -> None:
        try:
            self._ticket = self._engine.submit(self._request, self._reply, nested=self._nested)
        except ModelAbsent as absent:  # it had to leave again in the meantime
            try:
                self._leave = self._wait(absent)
            except HeadraceError as error:
                self._reply.fail(error)
        except HeadraceError as error:
            self._reply.fail(error)
        else:
            self._then(self._ticket)
