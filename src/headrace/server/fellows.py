"""Commands that concern every worker: carried out by all of them, in one order.

The worker that is asked takes a lock that all share, carries the command out itself, which is
where most mistakes show, and has its siblings do the same. What all of them did is recorded in
a file. A place without a worker is passed over: whoever comes to sit there takes the lock,
carries out what the file says, and only then begins to listen for commands. So nobody misses
one, and nobody carries one out twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from headrace.errors import HeadraceError, ModelError
from headrace.server.channel import send_command, serve_commands
from headrace.server.commands import Command, Journal
from headrace.server.link import Seat, socket_path
from headrace.server.peers import read_snapshot, write_snapshot

_LOG = logging.getLogger("headrace.server")

CarryOut = Callable[[Command], Awaitable[None]]


class Alone:
    """A server of one process: commands one after another."""

    def __init__(self, carry_out: CarryOut) -> None:
        self._carry_out = carry_out

    async def join(self) -> None:
        """There is nobody to join."""

    async def tell_all(self, command: Command) -> None:
        """Carries it out. Raises what that raises."""
        await self._carry_out(command)

    async def leave(self) -> None:
        """There is nobody to leave."""


class Fellows:
    """One worker among several; see the module."""

    def __init__(self, seat: Seat, carry_out: CarryOut) -> None:
        folder = Path(seat.run_dir)
        paths = [control_path(folder, index) for index in range(seat.count)]
        self._own = paths.pop(seat.index)
        self._siblings = paths
        self._journal = folder / "control.journal"
        self._lock = folder / "control.lock"
        self._turn = asyncio.Lock()
        self._carry_out = carry_out
        self._server: asyncio.Server | None = None

    async def join(self) -> None:
        """Catches up with what was told before, and listens for more."""
        async with self._exclusively():
            for command in self._read().commands:
                try:
                    await self._carry_out(command)
                except HeadraceError as error:
                    _LOG.error("a command of before could not be repeated: %s", error.message)
            self._server = await serve_commands(self._own, self._carry_out)

    async def tell_all(self, command: Command) -> None:
        """Carries it out here and everywhere.

        Raises:
            HeadraceError: it could not be, here (then nobody else was told) or at a sibling.
        """
        async with self._exclusively():
            await self._carry_out(command)
            outcomes = await asyncio.gather(
                *(send_command(path, command) for path in self._siblings), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, TimeoutError):
                    raise ModelError("a worker did not answer in time", code="worker_timeout")
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is not None:
                    outcome.check()
            journal = self._read()
            journal.record(command)
            await asyncio.to_thread(write_snapshot, self._journal, msgspec.msgpack.encode(journal))

    async def leave(self) -> None:
        """Listens no more."""
        if self._server is not None:
            self._server.close()

    def _read(self) -> Journal:
        kept = read_snapshot(self._journal)
        return Journal() if kept is None else msgspec.msgpack.decode(kept, type=Journal)

    @contextlib.asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        async with self._turn:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                await asyncio.to_thread(fcntl.flock, descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def control_path(run_dir: str | Path, index: int) -> Path:
    """Where worker ``index`` takes commands; as short as its other socket's path."""
    return socket_path(run_dir, index).with_suffix(".ctl")
