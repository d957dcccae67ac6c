"""Where requests go: parsed, resolved once, and refused where it is not this machine.

A load generator that is aimed at another machine by accident is an incident. So the
address is resolved here, every address it stands for must be loopback, and connections are
made to that address and to no other: no second lookup, no proxy, no redirect.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from urllib.parse import urlsplit

import msgspec

from headrace.errors import ConfigError

_PORTS = {"http": 80, "https": 443}


class Target(msgspec.Struct, frozen=True):
    """A resolved server.

    Attributes:
        host: as the user wrote it, for the ``Host`` header and TLS.
        address, port, family: where connections are made.
        prefix: path in front of ``/v2`` and ``/v1``, without a slash at its end.
        tls: None for plain HTTP.
    """

    url: str
    host: str
    address: str
    port: int
    family: int
    prefix: str
    loopback: bool
    tls: ssl.SSLContext | None = None

    @property
    def authority(self) -> str:
        """``host:port`` as the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def resolve_target(url: str, *, allow_remote: bool = False, ca_file: str = "") -> Target:
    """Parses and resolves ``http[s]://host[:port][/prefix]``. Blocks on the resolver.

    Raises:
        ConfigError: not such a URL; the name is unknown; it is not loopback and remote
            targets were not allowed; the certificate file is unusable.
    """
    scheme, host, port, prefix = _parse(url)
    address, family, loopback = _resolve(host, port)
    if not loopback and not allow_remote:
        where = f" ({address})" if address != host else ""
        raise ConfigError(
            f"{host}{where} is not a loopback address; load is only put on this machine unless "
            "you say otherwise",
            hint="use http://127.0.0.1:PORT, or add --allow-remote if you may load that server",
        )
    return Target(
        url=url,
        host=host,
        address=address,
        port=port,
        family=family,
        prefix=prefix,
        loopback=loopback,
        tls=_tls(ca_file) if scheme == "https" else None,
    )


def _parse(url: str) -> tuple[str, str, int, str]:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port  # raises where it is not a number
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a URL: {error}", hint=_HINT) from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ConfigError(f"{url!r} is not an http:// or https:// URL", hint=_HINT)
    if parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(
            f"{url!r} has a query, a fragment or a password; only host, port and prefix count",
            hint=f"{_HINT}; credentials go into --header",
        )
    if any(ord(character) <= 32 or ord(character) >= 127 for character in parts.path):
        raise ConfigError(f"{url!r} has blanks or control characters in its path", hint=_HINT)
    return parts.scheme, parts.hostname, port or _PORTS[parts.scheme], parts.path.rstrip("/")


_HINT = "for example http://127.0.0.1:8000"


def _resolve(host: str, port: int) -> tuple[str, int, bool]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot resolve {host!r}: {error}", hint=_HINT) from error
    # "localhost" is often ::1 and 127.0.0.1, while servers listen on the latter by default.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, address = found[0][0], str(found[0][4][0])
    loopback = all(
        ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found
    )
    return address, family, loopback


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use the certificates in {ca_file!r}: {error}") from error
