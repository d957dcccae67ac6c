"""The address to listen on: taken once, shared on purpose, never shared by accident.

``SO_REUSEPORT`` lets several workers listen on one port, and the kernel spreads the
connections (socket(7)). It also lets a *stranger* of the same user join in silently: a
second server on a port that is taken would start without an error and steal every other
connection. So a port is first tried without the option.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import select
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from headrace.errors import AddressInUse, ConfigError

BACKLOG = 2048
"""Connections the kernel holds until they are accepted; it cuts this to ``somaxconn``
(4096 since Linux 5.4). A burst of reconnecting clients fits."""

_HANDSHAKE_S = 0.1
"""A client on another machine has so long to finish a handshake that it has begun."""

_CONNECTING_TURNS = 3
"""Turns of the event loop from accept() to ``connection_made``."""

_SO_ATTACH_FILTER = 26
"""Of Linux; Python does not name it. On some rare processors the number is another one."""

_NO_SYN = (  # classic BPF on the TCP header: load the flags, drop what has SYN, take the rest
    (0x30, 0, 0, 13),
    (0x45, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFF_FFFF),
)


def listening_socket(
    host: str,
    port: int,
    *,
    shared: bool = False,
    backlog: int = BACKLOG,
    field: str = "port",
) -> socket.socket:
    """A TCP socket that listens on ``host:port`` and does not block.

    Args:
        host: a name or an address of this machine; of a name's addresses the first is used.
        port: 0 picks a free one (``getsockname()`` tells which).
        shared: other workers will listen on the same port, held by :func:`reserve_port`.
        backlog: see :data:`BACKLOG`.
        field: of the configuration, for the message where the port cannot be had.

    Raises:
        AddressInUse: another process listens there.
        ConfigError: the host is not an address of this machine, or the port needs
            privileges that this process lacks.
    """
    listener = bound_socket(host, port, shared=shared, field=field)
    try:
        listener.listen(backlog)
    except OSError as error:  # two sockets may bind alike; only one of them may listen
        listener.close()
        raise _explained(error, host, port, field) from error
    return listener


def reserve_port(host: str, port: int, field: str = "port") -> socket.socket:
    """Holds a port for workers that will share it, without accepting on it.

    The socket is bound but does not listen, so the kernel gives it no connections; while
    it is open the port stays ours between one worker's death and the next one's start.
    Port 0 is resolved here, once, for all workers.

    Raises: as :func:`listening_socket`.
    """
    if port:
        # Listening without SO_REUSEPORT is the test that fails wherever anybody is there.
        listening_socket(host, port, backlog=1, field=field).close()
    placeholder = bound_socket(host, port, shared=True, field=field)
    # Without this a second supervisor could bind beside us until our first worker listens.
    placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return placeholder


def bound_socket(host: str, port: int, *, shared: bool, field: str = "port") -> socket.socket:
    """As :func:`listening_socket`, before it listens: the kernel gives it no connections yet.

    So a worker that is still loading keeps nobody waiting whom a sibling could serve.
    """
    family, address = _resolve(host, port)
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of a server that just ended linger in TIME_WAIT; they are no conflict.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise _explained(error, host, port, field) from error
    return bound


class Closing(Protocol):
    """What accepts connections: ``asyncio.Server`` or our own."""

    def close(self) -> None:
        """Accepts no more."""
        ...


async def close_when_accepted(
    servers: Sequence[Closing], listeners: Sequence[socket.socket]
) -> None:
    """Closes the servers of ``listeners`` once they have accepted all that the kernel has.

    close() resets connections that are complete in the kernel and not accepted. So new handshakes
    are stopped first. Where the kernel cannot do that, connections that come between the last
    accept and close() are still reset.
    """
    for listener in listeners:
        _stop_handshakes(listener)
    hosts = [listener.getsockname()[0] for listener in listeners]
    if not all(host.startswith("127.") or host == "::1" for host in hosts):
        await asyncio.sleep(_HANDSHAKE_S)
    waiting = select.poll()
    for listener in listeners:
        waiting.register(listener, select.POLLIN)
    for _ in range(BACKLOG):  # a turn accepts one at least
        if not waiting.poll(0):
            break
        await asyncio.sleep(0)
    for server in servers:
        server.close()
    for _ in range(_CONNECTING_TURNS):
        await asyncio.sleep(0)


def _stop_handshakes(listener: socket.socket) -> None:
    """Has the kernel drop the first packet of further connections; those begun still come.

    A client repeats the packet a second later, and is refused then, or served by another worker.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _NO_SYN))
    described = struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            f"the host to listen on, {host!r}, cannot be resolved: {error}",
            hint="use 127.0.0.1 (this machine only) or 0.0.0.0 (every interface)",
            field="server.host",
            got=host,
        ) from error
    family, _, _, _, address = found[0]
    return family, address


def _explained(error: OSError, host: str, port: int, field: str) -> AddressInUse | ConfigError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(
            f"port {port} of {host} is taken by another process",
            hint=f"choose another with --{field.replace('_', '-')} (0 picks a free one); "
            f"`ss -ltnp 'sport = :{port}'` shows who has it",
            host=host,
            port=port,
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return ConfigError(
            f"port {port} needs privileges that this process does not have",
            hint="choose a port of 1024 or above",
            field=f"server.{field}",
            got=port,
        )
    return ConfigError(
        f"cannot listen on {host}:{port}: {error.strerror or error}",
        hint="use an address of this machine: 127.0.0.1, 0.0.0.0, or one shown by `ip addr`",
        field="server.host",
        got=host,
    )
