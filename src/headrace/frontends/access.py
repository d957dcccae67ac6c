"""The access log: one line for every request, after its answer or its end without one.

A connection class of its own, so that a server without the log pays nothing for it.
"""

from __future__ import annotations

import asyncio
import logging

from headrace.clock import MonotonicClock
from headrace.frontends.exchange import Exchange
from headrace.frontends.http1 import Connection
from headrace.frontends.lane import Lane

_now_ns = MonotonicClock.now_ns

CLIENT_LEFT = 499
"""As nginx logs a client that did not wait for its answer."""


class LoggedConnection(Connection):
    """Logs method, target, status, bytes of the answer's body, milliseconds, and the client.

    ``ms`` is from the last byte of the request to the last byte of the answer handed to the
    socket. What never became a request has neither method nor target, and 0 ms.
    """

    def __init__(self, lane: Lane, log: logging.Logger) -> None:
        super().__init__(lane)
        self._log = log
        self._open: dict[Exchange, list[int]] = {}  # status and bytes so far
        self._peer = "-"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks who it is while it is sure to be there."""
        self._peer = _shown(transport.get_extra_info("peername"))
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Requests that are under way now are never answered."""
        for exchange in self._exchanges:
            _, size = self._open.pop(exchange, (0, 0))
            if not exchange.finished:
                self._line(exchange, CLIENT_LEFT, size)
        super().connection_lost(exc)

    def finish_ok(self, exchange: Exchange, body: bytes) -> None:
        """The common case takes the way of all others, which is logged."""
        if self._exchanges:
            exchange.respond(200, body)

    def begin(self, exchange: Exchange, code: int, head: bytes) -> None:
        """Remembers the status."""
        self._open[exchange] = [code, 0]
        super().begin(exchange, code, head)

    def send(self, exchange: Exchange, data: bytes, *, last: bool) -> None:
        """Counts bytes, and writes the line after the last."""
        answer = self._open.get(exchange)
        super().send(exchange, data, last=last)
        if answer is not None:
            answer[1] += len(data)
            if last:
                del self._open[exchange]
                self._line(exchange, *answer)

    def _line(self, exchange: Exchange, status: int, size: int) -> None:
        head = exchange.head
        elapsed_ns = _now_ns() - exchange.arrived_ns if exchange.arrived_ns else 0
        fields = {
            "method": head.method.decode("latin-1") or "-",
            "target": head.target.decode("latin-1") or "-",
            "status": status,
            "bytes": size,
            "ms": round(elapsed_ns / 1e6, 3),
            "peer": self._peer,
        }
        self._log.info("request", extra={"fields": fields})


def _shown(address: object) -> str:
    """``192.0.2.1:5000``, ``[2001:db8::1]:5000``, or what a Unix socket has."""
    if not isinstance(address, tuple):
        return str(address or "-")
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
