"""Limits the bytes of all requests and answers that one process holds at a time.

Bytes are taken before they are held and given back when they are not held any more. One peer, that
is one remote address, never gets more than half, so that others are served while it holds its half.
Clients on this machine have the same address, and so have all clients behind one proxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv6Address

from headrace.errors import Overloaded
from headrace.frontends.peer import Peer, ip_literal
from headrace.limits import MIB

UNCOUNTED_BYTES = 16 * 1024
"""A body or an answer of at most so many bytes is not counted: small requests, health and metrics
pay nothing and always pass. 10,000 connections hold at most 160 MiB in this way."""

STEP_BYTES = 64 * 1024
"""A body that arrives in pieces takes so many bytes ahead of what has arrived."""

TLS_BYTES = 64 * 1024
"""Of one TLS connection, from its acceptance to its end: 53 kB were measured with uvloop."""

_RETRY_AFTER_NS = 1_000_000_000
_BODIES_AT_LEAST = 8
"""So that a single client, which gets half, can send four of the largest at a time."""


def default_total_bytes(memory_bytes: int, workers: int, max_body_bytes: int) -> int:
    """A quarter of the memory, shared by the workers; at least eight of the largest bodies.

    Where that would be more than half of the memory, half of it. ``memory_bytes`` 0: not known.
    """
    least = _BODIES_AT_LEAST * max_body_bytes
    if not memory_bytes:
        return least
    return max(memory_bytes // 4 // workers, min(least, memory_bytes // 2 // workers), MIB)


def memory_full(total_bytes: int) -> Overloaded:
    """The error of a request for which there is no room."""
    return Overloaded(
        "the requests and answers in this server's memory leave no room for this one",
        code="memory_full",
        hint="retry later, send smaller requests, or raise max_memory_bytes",
        retry_after_ns=_RETRY_AFTER_NS,
        limit="max_memory_bytes",
        allowed=total_bytes,
    )


def peer_name(peer: Peer) -> str:
    """What a client is told apart by: its address, of IPv6 the first 64 bits, "" if unknown."""
    if peer.remote is None:
        return ""
    host = peer.remote.host
    address = ip_literal(host.partition("%")[0])
    return address.exploded[:19] if isinstance(address, IPv6Address) else host


class ByteAccount:
    """The bytes of one process. Use from the event loop. ``refused`` counts by reason."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self.refused = {"total": 0, "peer": 0}
        self._by_peer: dict[str, int] = {}

    def why_not(self, peer: str, size: int) -> str:
        """ "": there is room for ``size`` more bytes; otherwise the key in ``refused``."""
        if self.used_bytes + size > self.total_bytes:
            return "total"
        return "peer" if self._by_peer.get(peer, 0) + size > self.total_bytes // 2 else ""

    def take(self, peer: str, size: int) -> bool:
        """Takes ``size`` bytes if there is room. False is counted as a refusal."""
        reason = self.why_not(peer, size)
        if reason:
            self.refused[reason] += 1
            return False
        self.spend(peer, size)
        return True

    def spend(self, peer: str, size: int) -> None:
        """Takes ``size`` bytes that are held already, room or not."""
        self.used_bytes += size
        self._by_peer[peer] = self._by_peer.get(peer, 0) + size

    def give(self, peer: str, size: int) -> None:
        """Gives back what was taken."""
        self.used_bytes -= size
        left = self._by_peer[peer] - size
        assert left >= 0, "more bytes given back than taken"
        if left:
            self._by_peer[peer] = left
        else:
            del self._by_peer[peer]


class Share:
    """What one connection holds of an account. After :meth:`close` every method does nothing.

    Args:
        account: of the process.
        peer_of: both ends of the connection; called when the first byte is counted.
    """

    __slots__ = ("_account", "_closed", "_name", "_peer_of", "used_bytes")

    def __init__(self, account: ByteAccount, peer_of: Callable[[], Peer]) -> None:
        self._account = account
        self._peer_of: Callable[[], Peer] | None = peer_of
        self._name = ""
        self._closed = False
        self.used_bytes = 0

    def fits(self, size: int) -> bool:
        """Whether there is room now. False is counted as a refusal."""
        reason = self._account.why_not(self._peer(), size)
        if reason:
            self._account.refused[reason] += 1
        return not reason

    def take(self, size: int) -> bool:
        """Takes ``size`` more bytes; False if there is no room."""
        if self._closed:
            return True
        if not self._account.take(self._peer(), size):
            return False
        self.used_bytes += size
        return True

    def spend(self, size: int) -> None:
        """Takes ``size`` bytes that are held already, room or not."""
        if not self._closed:
            self._account.spend(self._peer(), size)
            self.used_bytes += size

    def spend_on(self, transport: asyncio.BaseTransport) -> None:
        """Takes what the connection itself needs, if it has TLS."""
        if transport.get_extra_info("sslcontext") is not None:
            self.spend(TLS_BYTES)

    def give(self, size: int) -> None:
        """Gives ``size`` bytes back."""
        if size and not self._closed:
            self.used_bytes -= size
            self._account.give(self._name, size)

    def full(self) -> Overloaded:
        """The error after a ``take`` that was refused."""
        return memory_full(self._account.total_bytes)

    def close(self) -> None:
        """The connection is over, and nothing of it is held."""
        self.give(self.used_bytes)
        self._closed = True
        self._peer_of = None  # which may hold the connection

    def _peer(self) -> str:
        if self._peer_of is not None:
            self._name = peer_name(self._peer_of())
            self._peer_of = None
        return self._name
