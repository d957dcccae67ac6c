"""The supervisor: as many workers as were asked for, kept alive, and ended together.

Law: the supervisor never serves, loads or listens. It starts fresh interpreters (never a
fork of a process that has threads), counts those that said they are ready, puts a new one
in an empty place after a growing pause, and passes the end on to all.

What ends a worker ends its children too: each worker leads a process group of its own,
which also keeps the terminal's Ctrl-C away from it, so that a signal arrives exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from headrace.errors import ConfigError, OperatorError
from headrace.server.link import (
    MAX_MESSAGE_BYTES,
    Failed,
    Ready,
    Roster,
    Seat,
    decode_worker_message,
    socket_path,
)

MAX_SOCKET_PATH_BYTES = 107
"""``sun_path`` of unix(7) holds 108 bytes with the terminating zero."""

EXIT_INTERRUPTED = 128 + signal.SIGINT

_log = logging.getLogger("headrace.server")


BEATS = 6
"""A worker says so many times in ``worker_timeout_s`` that it is alive: one that is late, or one
time that this process is, does not decide."""

STACKS_S = 1.0
"""What a worker that is to be killed has to print the stacks of its threads."""


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """How long a place stays empty after its worker ended.

    The pause doubles from ``first_s`` to ``most_s`` with every end in a row; a worker that
    was ready for ``healthy_s`` breaks the row. When every place failed ``give_up_after``
    times in a row without becoming ready, the supervisor ends too: whoever supervises *it*
    should know. Before anybody has ever been ready, once is enough: what is wrong then
    (a broken model, a bad setting) does not heal.
    """

    first_s: float = 0.5
    most_s: float = 30.0
    healthy_s: float = 60.0
    give_up_after: int = 10

    def pause_s(self, ends_in_a_row: int) -> float:
        """Seconds to wait after the n-th end in a row, n >= 1."""
        doublings = min(max(ends_in_a_row, 1) - 1, 32)  # enough to reach any sensible most_s
        return min(self.most_s, self.first_s * 2.0**doublings)


class _Place:
    """One worker's place and whoever is in it now."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.generation = 0
        self.process: asyncio.subprocess.Process | None = None
        self.channel: socket.socket | None = None
        self.ready_since: float | None = None
        self.failure: Failed | None = None
        self.unheard = 0  # times that the supervisor listened and heard nothing
        self.ends_in_a_row = 0
        self.fruitless_starts = 0  # ends in a row without having been ready


class Supervisor:
    """Runs ``count`` workers until told to stop.

    Args:
        count: number of places.
        command: the command line of the worker for a :class:`Seat`; it must hand
            ``seat.encode()`` on, so that the worker can report (``link.SupervisorLink``).
        stop_timeout_s: from SIGTERM to a worker until SIGKILL; more than the time the
            worker itself takes to drain.
        worker_timeout_s: a worker that is not heard of for so long is killed; 0: never.
        backoff: see :class:`Backoff`.
        environment: what workers have in theirs beside this process's.
        on_roster: called with every change of the number of ready workers.
    """

    def __init__(
        self,
        count: int,
        command: Callable[[Seat], Sequence[str]],
        *,
        stop_timeout_s: float,
        worker_timeout_s: float = 0.0,
        backoff: Backoff | None = None,
        environment: Mapping[str, str] | None = None,
        on_roster: Callable[[Roster], None] | None = None,
    ) -> None:
        self._command = command
        self._stop_timeout_s = stop_timeout_s
        self._worker_timeout_s = worker_timeout_s
        self._environment = environment
        self._backoff = backoff or Backoff()
        self._on_roster = on_roster
        self._places = [_Place(index) for index in range(count)]
        self._run_dir = ""
        self._restarts = 0
        self._reason: Failed | None = None
        self._given_up = False
        self._unclean = False
        self._stopping = asyncio.Event()
        self._someone_was_ready = False
        self._start_decided = asyncio.Event()  # someone was ready, or we are stopping

    @property
    def stopping(self) -> bool:
        """Whether :meth:`stop` was called, or the supervisor gave up."""
        return self._stopping.is_set()

    def statistics(self) -> Roster:
        """How many there are, how many are ready, how many were started again."""
        ready = sum(place.ready_since is not None for place in self._places)
        return Roster(count=len(self._places), ready=ready, restarts=self._restarts)

    def stop(self) -> None:
        """Asks every worker to finish what it has begun and leave. Again: no effect."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._start_decided.set()
            for place in self._places:
                _terminate(place)

    def kill(self) -> None:
        """Ends every worker and what it started, at once."""
        self.stop()
        for place in self._places:
            if place.process is not None:
                _kill_group(place.process.pid)

    async def run(self) -> int:
        """Starts the workers, keeps them, returns when all have ended after :meth:`stop`.

        Returns:
            0 when every worker left in time and by itself, else 1.

        Raises:
            OperatorError: no worker could start; carries the first one's reason.
            ConfigError: the folder for temporary files has too long a name.
        """
        with tempfile.TemporaryDirectory(prefix="headrace-") as self._run_dir:  # mode 0700
            _check_socket_path(self._run_dir, len(self._places))
            keepers = [asyncio.create_task(self._keep(place)) for place in self._places]
            watching = asyncio.create_task(self._watch(self._worker_timeout_s))
            try:
                await self._until_stopped(keepers)
            finally:
                watching.cancel()
                self.kill()
                await asyncio.wait(keepers)
            for keeper in keepers:
                keeper.result()  # an error of ours is not to be swallowed
        if self._given_up and self._reason is not None:
            raise OperatorError(
                self._reason.message, code=self._reason.code, hint=self._reason.hint
            )
        return 1 if self._unclean else 0

    async def _until_stopped(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([stopped, *keepers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        self.stop()  # where a keeper ended by an error, the rest must end too
        await asyncio.wait(keepers, timeout=self._stop_timeout_s)

    async def _watch(self, timeout_s: float) -> None:
        """Ends workers that hang.

        What counts is how often this process listened in vain, and not the time that passed: where
        it was stopped itself, or the machine slept, its workers were too.
        """
        while timeout_s and not self.stopping:
            await asyncio.sleep(timeout_s / BEATS)
            for place in self._places:
                self._read(place)  # what came while this process was held up
                if place.ready_since is None or place.failure is not None:
                    continue
                place.unheard += 1
                if place.unheard > BEATS:
                    self._end_hung(place, timeout_s)

    def _end_hung(self, place: _Place, timeout_s: float) -> None:
        process = place.process
        if process is None or self.stopping:
            return
        place.failure = Failed(
            f"worker {place.index} hung: it was not heard of for {timeout_s:g} s, and was killed",
            hint="the stacks of its threads are above, unless it was stopped",
        )
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGUSR2)  # prints the stacks; see ``server.worker``

        def kill() -> None:
            if place.process is process:
                _kill_group(process.pid)

        asyncio.get_running_loop().call_later(STACKS_S, kill)

    async def _keep(self, place: _Place) -> None:
        while not self._stopping.is_set():
            story = await self._live(place)
            if self._stopping.is_set():
                return
            self._consider_giving_up()
            # A reason that all share is raised once, by run(); only others are worth a line.
            await self._start_decided.wait()
            pause_s = self._backoff.pause_s(place.ends_in_a_row)
            if not self._stopping.is_set():
                _log.error("%s; starting it again in %.1f s", story.message, pause_s)
            try:
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            except TimeoutError:
                self._restarts += 1
                place.generation += 1

    async def _live(self, place: _Place) -> Failed:
        """One worker's whole life in a place; returns how it ended."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with theirs:
                try:
                    process = await self._start(place, theirs.fileno())
                except OSError as error:
                    place.failure = Failed(f"worker {place.index} cannot be started: {error}")
                    return self._ended(place, None)
            place.process, place.channel = process, ours
            self._tell(place, self.statistics())
            loop = asyncio.get_running_loop()
            loop.add_reader(ours, self._read, place)
            try:
                if self.stopping:  # the signal to stop came while the process was being made
                    _terminate(place)
                await process.wait()
            finally:
                loop.remove_reader(ours)
                _kill_group(process.pid)
            self._read(place)  # what it said with its last breath
            return self._ended(place, process.returncode)

    async def _start(self, place: _Place, channel_fd: int) -> asyncio.subprocess.Process:
        place.failure, place.unheard = None, 0
        seat = Seat(
            index=place.index,
            count=len(self._places),
            run_dir=self._run_dir,
            channel_fd=channel_fd,
            generation=place.generation,
            beat_s=self._worker_timeout_s / BEATS,
        )
        return await asyncio.create_subprocess_exec(
            *self._command(seat),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[channel_fd],
            start_new_session=True,
            env={**os.environ, **(self._environment or {})},
        )

    def _read(self, place: _Place) -> None:
        while place.channel is not None:
            try:
                packet = place.channel.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                packet = b""
            if not packet:
                asyncio.get_running_loop().remove_reader(place.channel)
                return
            message = decode_worker_message(packet)
            place.unheard = 0
            if isinstance(message, Failed):
                place.failure = message
            elif isinstance(message, Ready) and place.ready_since is None:
                place.ready_since = time.monotonic()
                place.fruitless_starts = 0
                self._someone_was_ready = True
                self._start_decided.set()
                self._publish()

    def _ended(self, place: _Place, returncode: int | None) -> Failed:
        was_ready_since, place.ready_since = place.ready_since, None
        place.process = place.channel = None
        story = _story(place, returncode, ready=was_ready_since is not None)
        place.ends_in_a_row += 1
        if was_ready_since is None:
            place.fruitless_starts += 1
            self._reason = self._reason or story
        elif time.monotonic() - was_ready_since >= self._backoff.healthy_s:
            place.ends_in_a_row = 1
        if self._stopping.is_set():
            # A worker that had not begun to listen may not know the signal's meaning yet.
            by_the_signal = returncode == -signal.SIGTERM and was_ready_since is None
            if returncode != 0 and not by_the_signal:
                self._unclean = True
                _log.error("%s instead of finishing its work", story.message)
        if was_ready_since is not None:
            self._publish()
        return story

    def _consider_giving_up(self) -> None:
        limit = self._backoff.give_up_after if self._someone_was_ready else 1
        if all(place.fruitless_starts >= limit for place in self._places):
            self._given_up = True
            self.stop()

    def _publish(self) -> None:
        roster = self.statistics()
        for place in self._places:
            self._tell(place, roster)
        if self._on_roster is not None:
            self._on_roster(roster)

    def _tell(self, place: _Place, roster: Roster) -> None:
        if place.channel is not None:
            # A worker that does not read has a newer roster coming, or its end.
            with contextlib.suppress(OSError):
                place.channel.send(msgspec.json.encode(roster))


def run_workers(supervisor: Supervisor) -> int:
    """Runs a supervisor under this process's signals; for the main thread.

    SIGTERM, SIGHUP and the first Ctrl-C let the workers finish; the second Ctrl-C ends
    them at once.

    Returns:
        The exit status: 0 all left in time, 1 not, 130 ended by a second Ctrl-C.

    Raises: as :meth:`Supervisor.run`.
    """
    return asyncio.run(_run_under_signals(supervisor))


async def _run_under_signals(supervisor: Supervisor) -> int:
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if supervisor.stopping:
            interrupted = True
            supervisor.kill()
        else:
            supervisor.stop()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, supervisor.stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup asked for it
        loop.add_signal_handler(signal.SIGHUP, supervisor.stop)
    status = await supervisor.run()
    return EXIT_INTERRUPTED if interrupted else status


def _terminate(place: _Place) -> None:
    if place.process is not None:
        with contextlib.suppress(ProcessLookupError):
            place.process.terminate()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _story(place: _Place, returncode: int | None, *, ready: bool) -> Failed:
    if place.failure is not None:
        return place.failure
    if returncode is not None and returncode < 0:
        how = f"was ended by signal {-returncode} ({signal.Signals(-returncode).name})"
    else:
        how = f"ended with status {returncode}"
    when = "" if ready else " before it was ready"
    hint = "" if ready else "its own output above tells more"
    return Failed(f"worker {place.index} {how}{when}", hint=hint)


def _check_socket_path(run_dir: str, count: int) -> None:
    longest = socket_path(run_dir, count)
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the folder for temporary files, {run_dir!r}, has too long a name for a Unix "
            f"socket in it ({MAX_SOCKET_PATH_BYTES} bytes at most)",
            hint="set TMPDIR to a shorter path",
        )
