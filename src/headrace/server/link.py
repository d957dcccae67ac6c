"""What a supervisor and its workers say to one another, over one socket pair each.

::

    worker      -> Ready               it listens; count it in
    worker      -> Alive               its event loop comes round; every ``Seat.beat_s``
    worker      -> Failed(message)     it cannot start, and why; its exit follows
    supervisor  -> Roster              how many of us are ready, on every change
    either side ends                   the other sees the end of the stream

One message is one packet (``SOCK_SEQPACKET``), so there is no framing to get wrong. A
worker whose supervisor is gone must leave: nobody would restart it, count it or stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from headrace.errors import ConfigError, HeadraceError

MAX_MESSAGE_BYTES = 16 * 1024
"""A reason for a failure is a sentence; a longer one is cut, not split."""


class Seat(msgspec.Struct, frozen=True):
    """A worker's place: which of how many, and where its siblings are found.

    ``generation`` counts the starts of this place: 0 for the first worker in it, and a
    later one inherits what :attr:`snapshot_path` holds. ``channel_fd`` is an open file
    descriptor of the worker. ``beat_s``: how often it says that it is alive; 0: never. Travels as
    JSON on the worker's command line.
    """

    index: int
    count: int
    run_dir: str
    channel_fd: int
    generation: int = 0
    beat_s: float = 0.0

    @property
    def socket_path(self) -> Path:
        """Where this worker answers its siblings' questions (see ``peers.py``)."""
        return socket_path(self.run_dir, self.index)

    @property
    def snapshot_path(self) -> Path:
        """Where this place's last word is kept when its worker dies."""
        return self.socket_path.with_suffix(".snapshot")

    @property
    def peer_paths(self) -> list[Path]:
        """The sockets of every worker, this one included, in order."""
        return [socket_path(self.run_dir, index) for index in range(self.count)]

    def encode(self) -> str:
        """One line of JSON."""
        return msgspec.json.encode(self).decode()

    @staticmethod
    def decode(text: str) -> Seat:
        """The reverse of :meth:`encode`.

        Raises:
            ConfigError: the text is not a seat; workers are started by a supervisor only.
        """
        try:
            return msgspec.json.decode(text, type=Seat)
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"not a worker's seat: {error}", hint="start workers with `headrace serve`"
            ) from error


def socket_path(run_dir: str | Path, index: int) -> Path:
    """The Unix socket of worker ``index``."""
    return Path(run_dir) / f"worker-{index}.sock"


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker listens and its models are loaded."""


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """The worker's event loop comes round."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker cannot start; the fields are those of a :class:`HeadraceError`."""

    message: str
    code: str = ""
    hint: str = ""


class Roster(msgspec.Struct, frozen=True, tag="roster"):
    """How the whole group is doing. ``restarts`` counts since the supervisor began."""

    count: int
    ready: int
    restarts: int


_from_worker: msgspec.json.Decoder[Ready | Alive | Failed] = msgspec.json.Decoder(
    Ready | Alive | Failed
)
_from_supervisor: msgspec.json.Decoder[Roster] = msgspec.json.Decoder(Roster)


def decode_worker_message(packet: bytes) -> Ready | Alive | Failed | None:
    """What a worker said; None where it is not a message we know (a newer worker's)."""
    try:
        return _from_worker.decode(packet)
    except msgspec.DecodeError:
        return None


class SupervisorLink:
    """A worker's end of the line. Use from the worker's event loop."""

    def __init__(self, seat: Seat) -> None:
        # The model's own child processes must not hold our end open after we are gone.
        os.set_inheritable(seat.channel_fd, False)
        self._channel = socket.socket(fileno=seat.channel_fd)
        self._channel.setblocking(False)

    def ready(self) -> None:
        """Tells the supervisor that this worker listens and answers."""
        self._send(msgspec.json.encode(Ready()))

    def alive(self) -> None:
        """Tells the supervisor that this worker's event loop comes round."""
        with contextlib.suppress(BlockingIOError):  # the supervisor is stopped
            self._send(msgspec.json.encode(Alive()))

    def failed(self, error: BaseException) -> None:
        """Tells the supervisor why this worker will not start.

        The supervisor shows the reason once for all workers, so the worker stays quiet.
        """
        if isinstance(error, HeadraceError):
            told = Failed(error.message, error.code, error.hint)
        else:
            told = Failed(f"{type(error).__name__}: {error}")
        packet = msgspec.json.encode(told)
        if len(packet) > MAX_MESSAGE_BYTES:
            packet = msgspec.json.encode(
                Failed(told.message[: MAX_MESSAGE_BYTES // 12] + " …", told.code)
            )
        self._send(packet)

    async def follow(self, on_roster: Callable[[Roster], None] | None = None) -> None:
        """Calls ``on_roster`` for every change; returns when the supervisor is gone."""
        loop = asyncio.get_running_loop()
        while packet := await loop.sock_recv(self._channel, MAX_MESSAGE_BYTES):
            try:
                roster = _from_supervisor.decode(packet)
            except msgspec.DecodeError:
                continue  # a newer supervisor's word
            if on_roster is not None:
                on_roster(roster)

    def close(self) -> None:
        """Gives the line back."""
        self._channel.close()

    def _send(self, packet: bytes) -> None:
        try:
            self._channel.send(packet)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the supervisor is gone; follow() returns and tells so
