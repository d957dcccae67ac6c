"""One gRPC call, as a transport shows it to a service; and a service, as a transport sees it.

Two transports implement :class:`Call`: our own HTTP/2 lane and grpcio's server. Everything
happens on the event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol
from weakref import WeakSet

import msgspec

from headrace.errors import Overloaded
from headrace.frontends.peer import Peer

Metadata = Sequence[tuple[bytes, bytes]]
"""Names in lower case; values of ``-bin`` names are already decoded from base64."""


class Call(Protocol):
    """One call. It is ended once, by :meth:`finish` or :meth:`end`; after that, and once
    ``closed``, every method does nothing.

    ``timeout_ns`` is that of ``grpc-timeout``, 0 for none. The client left or cancelled: the
    transport sets ``closed`` and calls ``cancel``, which whoever does the work sets.
    ``pending_bytes`` of the answer wait for the client to read what was sent before.
    """

    metadata: Metadata
    arrived_ns: int
    timeout_ns: int
    closed: bool
    pending_bytes: int
    cancel: Callable[[], object] | None

    @property
    def authority(self) -> str:
        """``:authority``; "" where the transport does not tell it (grpcio's server)."""
        ...

    def peer(self) -> Peer:
        """See ``Connected``."""
        ...

    def send(self, message: bytes) -> None:
        """One message of the answer; more may follow."""
        ...

    def finish(self, message: bytes) -> None:
        """The only message of a unary answer, and OK: one write."""
        ...

    def end(self, code: int = 0, text: str = "", trailers: Metadata = ()) -> None:
        """The status (``grpc-status``, ``grpc-message``) without a further message."""
        ...

    def fail(self, error: BaseException) -> None:
        """Ends with what ``frontends/status.py`` has for the error."""
        ...

    def hold(self, size: int) -> bool:
        """Takes ``size`` bytes of the process's memory until the end; False if there is no room."""
        ...

    def give(self, size: int) -> None:
        """Gives back what was taken by :meth:`hold`, or a part of it."""
        ...

    def full(self) -> Overloaded:
        """The error after a ``hold`` that was refused."""
        ...

    def pause_reading(self) -> None:
        """No more credit for the client: it has as much under way as may be (streams)."""
        ...

    def resume_reading(self) -> None:
        """The reverse."""
        ...

    async def writable(self) -> None:
        """Waits while the client reads more slowly than we write."""
        ...


class Incoming(Protocol):
    """The receiving side of a call whose client sends any number of messages."""

    def message(self, message: bytes) -> None:
        """One more. May raise HeadraceError: the call fails with it."""
        ...

    def half_closed(self) -> None:
        """The client sends no more; what it asked is still to be answered."""
        ...


Unary = Callable[[Call, bytes], None]
"""Answers now or later. May raise HeadraceError: the call fails with it."""

Streaming = Callable[[Call], Incoming]


class Method(msgspec.Struct, frozen=True):
    """Exactly one of the two is set. ``unary`` methods may also answer with a stream."""

    unary: Unary | None = None
    streaming: Streaming | None = None


Methods = Mapping[bytes, Method]
"""``b"/package.Service/Method"`` -> what answers it; all else is UNIMPLEMENTED."""


class LateMethods(Mapping[bytes, Method]):
    """Methods that are imported and made when they are first needed, by any thread."""

    def __init__(self, build: Callable[[], Methods]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._table: Methods | None = None

    def table(self) -> Methods:
        """All of them; the first call takes as long as their imports."""
        table = self._table
        if table is None:
            with self._lock:
                if self._table is None:
                    self._table = self._build()
                table = self._table
        return table

    def __getitem__(self, path: bytes) -> Method:
        """Raises KeyError."""
        return self.table()[path]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.table())

    def __len__(self) -> int:
        return len(self.table())


class LongCall(Protocol):
    """A call that only its client ends, such as a stream."""

    def drain(self) -> None:
        """The server stops: ends the call as soon as what it was asked is answered."""
        ...


class LongCalls:
    """Those under way, so that a server that stops need not wait for their clients."""

    def __init__(self) -> None:
        # Weak, because nobody tells when a transport drops a call.
        self._calls: WeakSet[LongCall] = WeakSet()

    def add(self, call: LongCall) -> None:
        """One more."""
        self._calls.add(call)

    def drain(self) -> None:
        """Ends all of them."""
        for call in tuple(self._calls):
            call.drain()
