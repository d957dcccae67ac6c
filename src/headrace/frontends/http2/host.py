"""What an HTTP/2 machine needs of the connection around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from headrace.frontends.http2 import fields
from headrace.frontends.peer import Peer

if TYPE_CHECKING:
    from headrace.frontends.http2.streams import Sender, Stream


class RequestLog(Protocol):
    """The access log, where there is one."""

    def __call__(
        self,
        method: bytes,
        target: bytes,
        code: int,
        size: int,
        arrived_ns: int,
        **more: object,
    ) -> None:
        """One request, after its answer or its end without one."""
        ...


class Host(Protocol):
    """The connection around the machine."""

    def open_stream(self, machine: Sender, stream_id: int, request: fields.Fields) -> Stream:
        """A stream for a new request. Must not answer yet."""
        ...

    def schedule_flush(self) -> None:
        """There is something in ``out``."""
        ...

    def schedule_turn(self) -> None:
        """There is more to do than one turn of the loop may take: ``Machine.go_on`` in the next."""
        ...

    def future(self) -> asyncio.Future[None]:
        """Of the loop on which everything happens."""
        ...

    def offload(
        self, work: Callable[[], Any], done: Callable[[asyncio.Future[Any]], object]
    ) -> None:
        """Does ``work`` on a thread."""
        ...

    def peer(self) -> Peer:
        """Both ends of the connection."""
        ...

    def emptied(self) -> None:
        """The last stream is over."""
        ...
