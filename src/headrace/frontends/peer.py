"""Both ends of a connection: the address a client connected from, and the one it connected to."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, Protocol
from urllib.parse import unquote

import msgspec


class Address(NamedTuple):
    """A TCP host and port, or the path of a Unix socket, whose port is None."""

    host: str
    port: int | None


class Peer(msgspec.Struct):
    """``remote`` is the client's end, ``local`` the server's; None where it is not known.

    ``user`` is kept here by those who have looked it up: the uid of the process that connected.
    """

    remote: Address | None = None
    local: Address | None = None
    user: int | None = None

    @property
    def on_loopback(self) -> bool:
        """Whether the client connected to a loopback address. True if the address is unknown, so
        that checks for loopback are not skipped."""
        return self.local is None or is_loopback(self.local.host)


class Connected(Protocol):
    """What has a client at its other end."""

    def peer(self) -> Peer:
        """Both ends of the connection; the same object as long as it lasts."""
        ...


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Both ends of a connection. Asks the kernel: not for the hot path."""
    remote, local = (transport.get_extra_info(name) for name in ("peername", "sockname"))
    return Peer(address_of(remote), address_of(local))


def peer_of_grpcio(text: str, local_port: int | None = None) -> Peer:
    """From what grpcio's context says: ``ipv4:127.0.0.1:5000``, ``ipv6:%5B::1%5D:5000``.

    grpcio does not tell the local address. A connection from a loopback address can only have
    been made to one, so the client's host stands for it.

    Args:
        local_port: what the server listens on.
    """
    kind, _, rest = unquote(text).partition(":")
    if kind == "unix":
        return Peer(Address(rest, None), Address(rest, None))
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return Peer()
    host = host.strip("[]")
    return Peer(Address(host, int(port)), Address(host, local_port))


def is_loopback(host: str) -> bool:
    """Whether ``host`` is a literal in 127.0.0.0/8 (also written as an IPv6 address) or ``::1``."""
    address = ip_literal(host)
    return address is not None and address.is_loopback


def ip_literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address that ``host`` is a literal of, IPv4-mapped ones as IPv4; None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def address_of(found: object) -> Address | None:
    """An address as a socket tells it: host and port first, or the path of a Unix socket."""
    if isinstance(found, tuple):
        return Address(str(found[0]), int(found[1]))
    if isinstance(found, bytes):
        found = found.decode("utf-8", "replace")
    return Address(found, None) if isinstance(found, str) else None
