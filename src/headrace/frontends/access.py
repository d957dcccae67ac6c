"""The access log: one line for every request, after its answer or its end without one.

A connection class of its own, so that a server without the log pays nothing for it.
"""

from __future__ import annotations

import asyncio
import logging

from headrace.frontends.access_log import CLIENT_LEFT, log_request, shown
from headrace.frontends.exchange import Exchange
from headrace.frontends.http1 import Connection
from headrace.frontends.lane import Lane


class LoggedConnection(Connection):
    """Logs every request of an HTTP/1.1 connection; ``Http2Connection`` is given the log."""

    def __init__(self, lane: Lane, log: logging.Logger) -> None:
        super().__init__(lane)
        self._log = log
        self._open: dict[Exchange, list[int]] = {}  # status and bytes so far
        self._peer = "-"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks who it is while it is sure to be there."""
        self._peer = shown(transport.get_extra_info("peername"))
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
        log_request(
            self._log, self._peer, head.method, head.target, status, size, exchange.arrived_ns
        )
