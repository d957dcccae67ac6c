"""Accepts TLS connections, and counts them before their handshake.

asyncio's own server creates the TLS state of a connection as soon as it is accepted, and tells the
protocol after the handshake: clients that never send anything are not seen until then.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial

from headrace.frontends.byte_account import TLS_BYTES, Share
from headrace.frontends.lane import Lane
from headrace.frontends.peer import Peer, address_of

_LOG = logging.getLogger("headrace.http")

_RETRY_S = 1.0
"""Without a free file descriptor there is no use in asking again at once."""


class TlsServer:
    """Listens on one socket. Has the part of ``asyncio.Server`` that is used.

    A handshake may take ``header_timeout_s``. Meanwhile it counts as a connection and takes
    ``TLS_BYTES`` of the account; without room for it the connection is closed.
    """

    def __init__(
        self,
        lane: Lane,
        make: Callable[[], asyncio.Protocol],
        listener: socket.socket,
        context: ssl.SSLContext,
    ) -> None:
        self._lane = lane
        self._make = make
        self._listener = listener
        self._context = context
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = lane.loop.create_task(self._accept())

    def close(self) -> None:
        """Accepts no more. Handshakes under way go on."""
        self._accepting.cancel()
        self._listener.close()

    def end_handshakes(self) -> None:
        """Closes the connections whose handshake is not over."""
        for handshake in tuple(self._handshakes):
            handshake.cancel()

    async def _accept(self) -> None:
        lane, loop = self._lane, self._lane.loop
        while True:
            try:
                accepted, address = await loop.sock_accept(self._listener)
            except OSError as error:
                _LOG.error("a connection could not be accepted: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            share = Share(lane.account, partial(Peer, address_of(address)))
            if not lane.has_room_for_handshake() or not share.take(TLS_BYTES):
                share.close()
                accepted.close()
                continue
            lane.handshakes += 1
            task = loop.create_task(self._shake(accepted, share))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake(self, accepted: socket.socket, share: Share) -> None:
        lane = self._lane
        try:
            await lane.loop.connect_accepted_socket(
                self._make,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=lane.limits.header_timeout_s,
            )
        except (OSError, asyncio.CancelledError) as error:
            accepted.close()
            if isinstance(error, ConnectionAbortedError):
                lane.counters.reject("header_timeout_s")
            _LOG.debug("a TLS handshake failed: %s", error)
        finally:
            lane.handshakes -= 1
            share.close()
