"""HTTP requests to stores and sources: redirects, addresses and transfer rates are checked.

A store chooses where it redirects to, and the server can reach more than the store can: its own
ports, other machines of its network, the metadata service of its cloud. So a redirect stays on the
host it came from unless the operator names another, and every connection goes to an address that is
at least as public as the source's first one was. The address is checked that is connected to, so
names that resolve to something else later do not help.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

from headrace.errors import PullError

MIN_BYTES_PER_WINDOW = 60 * 1024
WINDOW_S = 60.0
"""A transfer that brings less in such a window is broken off: 1 KiB/s, far below what any line
gives. Without it a byte every ten seconds would keep a model from loading for years."""

HEAD_S = 60.0
"""For a connection, its TLS, and the head of its answer together."""

Resolve = Callable[[str, int], Sequence[str]]
"""Host and port -> addresses."""

_PUBLIC, _PRIVATE, _LOOPBACK, _NEVER = range(4)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PORT_OF = {"http": 80, "https": 443}


def reach_of(address: str) -> int:
    """How far an address can be reached from: the higher, the fewer.

    An IPv6 address that stands for one of IPv4 counts as that. Link-local ones (the metadata
    services of clouds), multicast and unspecified ones are highest, above loopback.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return reach_of(str(inner))
    if ip.is_link_local or ip.is_unspecified or ip.is_multicast:
        return _NEVER
    if ip.is_loopback:
        return _LOOPBACK
    return _PUBLIC if ip.is_global else _PRIVATE


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name. Raises socket.gaierror."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


class Outbound:
    """Opens URLs of one source. For one thread.

    Args:
        redirect_hosts: hosts that the source may redirect to, beside its own; ``*``: any.
        timeout_s: of silence.
        resolver: of names.
    """

    def __init__(
        self,
        *,
        redirect_hosts: Sequence[str] = (),
        timeout_s: float,
        resolver: Resolve = resolve,
    ) -> None:
        self._timeout_s = timeout_s
        self._resolve = resolver
        self._reach: int | None = None
        self._twin: socket.socket | None = None
        self._opener = urllib.request.build_opener(
            _Redirects(redirect_hosts), _Http(self._connect), _Https(self._connect)
        )

    @contextmanager
    def open(self, request: urllib.request.Request) -> Iterator[http.client.HTTPResponse]:
        """The answer, with its head read.

        Raises:
            PullError: a redirect or an address is refused.
            OSError, http.client.HTTPException: as ``urllib`` does.
        """
        watch = threading.Timer(HEAD_S, self._break_off)
        watch.daemon = True
        watch.start()
        try:
            response = self._opener.open(request, timeout=self._timeout_s)
        finally:
            watch.cancel()
            self._forget()
        with response:
            yield response

    def _connect(self, address: tuple[str, int], *rest: Any) -> socket.socket:
        """As ``socket.create_connection``, to addresses that this source may lead to alone."""
        host, port = address
        failed: OSError | None = None
        for each in self._resolve(host, port):
            self._check(host, each)
            try:
                connection = socket.create_connection((each, port), *rest)
            except OSError as error:
                failed = error
                continue
            self._forget()
            self._twin = connection.dup()
            return connection
        raise failed or socket.gaierror(socket.EAI_NONAME, f"{host} has no address")

    def _check(self, host: str, address: str) -> None:
        reach = reach_of(address)
        if self._reach is None:
            self._reach = reach  # the operator named this source
        if reach > self._reach:
            raise PullError(
                f"{host} leads to an address that the source itself is not at: loopback, "
                "link-local or of a private network",
                hint="name that address as the source, if it is what you want",
            )

    def _break_off(self) -> None:
        twin = self._twin
        if twin is not None:
            try:
                twin.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended by itself
                pass

    def _forget(self) -> None:
        if self._twin is not None:
            self._twin.close()
            self._twin = None


def paced(
    chunks: Iterable[bytes],
    label: str,
    *,
    now_s: Callable[[], float] = time.monotonic,
    error: Callable[[str], Exception] = PullError,
) -> Iterator[bytes]:
    """``chunks``, as long as they come at MIN_BYTES_PER_WINDOW.

    Raises:
        PullError: they do not; or what ``error`` makes of the message.
    """
    began_s, received = now_s(), 0
    for chunk in chunks:
        received += len(chunk)
        if now_s() - began_s >= WINDOW_S:
            if received < MIN_BYTES_PER_WINDOW:
                raise error(
                    f"{label} sends less than {MIN_BYTES_PER_WINDOW:,} bytes in {WINDOW_S:.0f} s"
                )
            began_s, received = now_s(), 0
        yield chunk


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects on the same host, and to hosts that were named; never to weaker ones."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = {host.lower() for host in hosts}

    def redirect_request(  # noqa: PLR0917 - the base class's signature
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to follow with; raises PullError where it must not be followed."""
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is None:
            return None
        old, new = _place(req), _place(request)
        if new[0] not in _PORT_OF or (old[0] == "https" and new[0] != "https"):
            raise PullError(f"{old[1]} redirects from {old[0]} to something weaker")
        same = old[1:] == new[1:] or (old[1] == new[1] and (old[2], new[2]) == (80, 443))
        if not same and "*" not in self._hosts and new[1] not in self._hosts:
            raise PullError(
                f"{old[1]} redirects to another host, {new[1]}:{new[2]}",
                hint=f"if that is right, allow it: store_redirect_hosts = [{new[1]!r}], or "
                f"headrace pull --redirect-host {new[1]}",
            )
        if req.has_proxy() or getattr(req, "_tunnel_host", None):  # a proxy resolves, not we
            _refuse_literal(new[1])
        return request


def _place(request: urllib.request.Request) -> tuple[str, str, int]:
    """Scheme, host and port that a request goes to, as ``urllib`` understood its address."""
    tunnel = getattr(request, "_tunnel_host", None)
    whole = urllib.parse.urlsplit(request.full_url)
    host = urllib.parse.urlsplit(f"//{tunnel or request.host}")
    if request.has_proxy():  # its host is the proxy's then
        host = whole
    scheme = whole.scheme.lower()
    try:
        port = host.port
    except ValueError:
        port = None
    return scheme, (host.hostname or "").rstrip("."), port or _PORT_OF.get(scheme, 0)


def _refuse_literal(host: str) -> None:
    try:
        reach = reach_of(host)
    except ValueError:
        return
    if reach != _PUBLIC:
        raise PullError(f"a redirect to {host}, which is no public address, is not followed")


class _Http(urllib.request.HTTPHandler):
    def __init__(self, connect: Callable[..., socket.socket]) -> None:
        super().__init__()
        self._connect = connect

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        hook = None if req.has_proxy() else self._connect
        return self.do_open(partial(_connection, http.client.HTTPConnection, hook), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, connect: Callable[..., socket.socket]) -> None:
        super().__init__()
        self._connect = connect

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        hook = None if getattr(req, "_tunnel_host", None) else self._connect
        return self.do_open(partial(_connection, http.client.HTTPSConnection, hook), req)


def _connection(
    kind: type[http.client.HTTPConnection],
    connect: Callable[..., socket.socket] | None,
    host: str,
    **options: Any,
) -> http.client.HTTPConnection:
    connection = kind(host, **options)
    if connect is not None:
        vars(connection)["_create_connection"] = connect
    return connection
