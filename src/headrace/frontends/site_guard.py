"""Refuses state-changing requests that a web page of another site made a browser send.

A browser sends some requests across sites without asking the server first (``no-cors`` requests
and forms), and with DNS rebinding a page can make any server appear to be of its own site. Three
signs tell such requests from those of clients, probes and our own pages:

- ``Sec-Fetch-Site`` (W3C Fetch Metadata) and ``Origin`` (RFC 6454) say which site asks. Scripts
  cannot set either. Clients that are no browsers send neither.
- ``Host`` is the name that the browser looked up. On loopback only names that cannot be rebound,
  and those the operator listed, are accepted.
- A request that needs no CORS preflight has a content type of forms or text, or none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import unquote, urlsplit

from headrace.errors import Forbidden, UnsupportedMediaType
from headrace.frontends.peer import ip_literal

_LOG = logging.getLogger("headrace.frontends")

FieldValues = Callable[[str], Sequence[str]]
"""Every value of a header field, or of a gRPC metadata key; the name in lower case."""

_SAME_SITE = frozenset({"same-origin", "none"})
"""``none``: the user typed the address. ``same-site`` is another port or subdomain: not us."""

_FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})

_DEFAULT_PORTS = {"http": 80, "https": 443}

_SHOWN_CHARACTERS = 200


class SiteGuard:
    """Checks one request at a time; holds no state of its own.

    Args:
        allowed_hosts: names, besides those of loopback, that a request on loopback may have in
            ``Host``. Ports in them do not count.
    """

    def __init__(self, allowed_hosts: Iterable[str] = ()) -> None:
        hosts = (_split(host) for host in allowed_hosts)
        self._allowed = frozenset(host[0] for host in hosts if host is not None)

    def check(self, values: FieldValues, authority: str, *, on_loopback: bool) -> None:
        """Returns if the request may change the server's state.

        Args:
            values: of the request's header fields.
            authority: ``Host`` or ``:authority``; "" if the request has none (HTTP/1.0), which no
                browser leaves out.
            on_loopback: whether the client connected to a loopback address.

        Raises:
            Forbidden: it comes from another site, or names a host that is not known.
            UnsupportedMediaType: its content type is one of forms or text.
        """
        for site in values("sec-fetch-site"):
            if site.strip().lower() not in _SAME_SITE:
                raise _cross_site("Sec-Fetch-Site", site)
        for origin in values("origin"):
            if not _is_same_origin(origin.strip(), authority):
                raise _cross_site("Origin", origin)
        if on_loopback and authority and not self._is_known(authority):
            raise _unknown_host(authority)
        for content_type in values("content-type"):
            _check_content_type(content_type)

    def note(self, what: str, remote: str | None) -> None:
        """Logs which client asks for a change, whatever comes of it."""
        _LOG.info("control request %r from %s", what[:200], remote or "an unknown address")

    def _is_known(self, authority: str) -> bool:
        split = _split(authority)
        if split is None:
            return False
        host = split[0]
        if host == "localhost" or host.endswith(".localhost") or host in self._allowed:
            return True
        # A literal cannot be rebound. 0.0.0.0 is the way some clients write "this machine".
        address = ip_literal(host)
        return address is not None and (address.is_loopback or address.is_unspecified)


def _is_same_origin(origin: str, authority: str) -> bool:
    """Whether scheme://host:port is the server that was asked.

    The scheme is not compared: a proxy may have taken TLS off.
    """
    scheme, _, rest = origin.partition("://")
    default = _DEFAULT_PORTS.get(scheme.lower())
    theirs, ours = _split(rest), _split(authority)
    if default is None or theirs is None or ours is None:
        return False
    return (theirs[0], theirs[1] or default) == (ours[0], ours[1] or default)


def _split(authority: str) -> tuple[str, int | None] | None:
    """Host in lower case and port; None if it is no authority without user information.

    Percent-encoded too: grpc-core writes ``%5B::1%5D:8001``.
    """
    authority = unquote(authority.strip()).lower()
    if not authority or not authority.isascii() or any(c in authority for c in "/?#@\\ \t,"):
        return None
    if authority.count(":") > 1 and authority[0] != "[":
        return (authority, None) if ip_literal(authority) is not None else None
    try:
        split = urlsplit("//" + authority)
        host, port = split.hostname, split.port
    except ValueError:
        return None
    return ((host.removesuffix(".")), port) if host else None


def _check_content_type(value: str) -> None:
    media_type = value.partition(";")[0].strip().lower()
    if media_type in _FORM_TYPES or media_type.startswith("text/"):
        raise UnsupportedMediaType(
            f"the content type {_shown(media_type)} is not accepted here: web pages can send it "
            "to other sites",
            hint="send JSON with the header 'Content-Type: application/json' (curl -d alone sends "
            "a form's)",
            got=media_type[:_SHOWN_CHARACTERS],
            expected="application/json",
        )


def _cross_site(field: str, value: str) -> Forbidden:
    return Forbidden(
        f"the request comes from another site: {field} is {_shown(value)}",
        code="cross_site",
        hint="send it from a page of this server, or from a client that is no browser",
        field=field,
        got=value[:_SHOWN_CHARACTERS],
    )


def _unknown_host(authority: str) -> Forbidden:
    return Forbidden(
        f"the host {_shown(authority)} is not known here, and this connection is on loopback",
        code="unknown_host",
        hint="ask for localhost or 127.0.0.1, or list the host in server.allowed_hosts",
        setting="server.allowed_hosts",
        got=authority[:_SHOWN_CHARACTERS],
    )


def _shown(value: str) -> str:
    return repr(value[:_SHOWN_CHARACTERS])
