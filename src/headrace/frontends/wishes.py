"""What a caller says beside its request, in headers: the same over HTTP and as gRPC metadata.

==================  ====================================================================
``x-slo-ms``        within how many milliseconds the answer is wanted (decimal, above 0)
``x-tenant-id``     on whose account: 1 to 128 visible ASCII characters. It is believed: where
                    callers are not trusted, a gateway in front has to set it
``traceparent``     W3C Trace Context, as it came
==================  ====================================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from headrace.errors import InvalidRequest
from headrace.frontends.peer import Connected, ip_literal
from headrace.types import InferenceRequest

SLO = b"x-slo-ms"
TENANT = b"x-tenant-id"
TRACE = b"traceparent"

_SLO_MAX_MS = 86_400_000.0
"""A day, as for timeouts."""

_TENANT = re.compile(rb"[\x21-\x7e]{1,128}")


def heed(request: InferenceRequest, headers: Mapping[bytes, bytes]) -> None:
    """Puts into the request what its headers say.

    Raises:
        InvalidRequest: a header is not what it should be; names it.
    """
    value = headers.get(TRACE)
    if value is not None:
        request.trace_context = value.decode("latin-1")
    value = headers.get(SLO)
    if value is not None:
        request.slo_ns = slo_ns(value)
    value = headers.get(TENANT)
    if value is not None:
        request.tenant = tenant(value)


def name_caller(request: InferenceRequest, client: Connected) -> None:
    """Sets ``caller``, to which a request's sequence belongs, if it has one.

    It is the client's host with the tenant, and not the connection, because a client may have
    several of them and send requests of one sequence over any.
    """
    if request.sequence_id:
        remote = client.peer().remote
        address = None if remote is None else ip_literal(remote.host)
        host = "" if remote is None else str(address or remote.host)
        if address is not None and address.is_loopback:
            host = "loopback"  # one machine, whichever of its names it was asked for by
        request.caller = f"{host} {request.tenant}"


def slo_ns(value: bytes) -> int:
    """The nanoseconds of ``x-slo-ms``.

    Raises:
        InvalidRequest: not a decimal number above 0 and of a day at most.
    """
    try:
        length_ms = float(value) if b"_" not in value else math.nan
    except ValueError:
        length_ms = math.nan
    if not 0 < length_ms <= _SLO_MAX_MS:
        raise InvalidRequest(
            f"the header x-slo-ms must be a number of milliseconds above 0 and up to "
            f"{_SLO_MAX_MS:.0f}, got {_quoted(value)}",
            code="invalid_slo",
            hint='say within what time the answer is wanted, such as "x-slo-ms: 50"',
            header="x-slo-ms",
        )
    return max(1, round(length_ms * 1e6))


def tenant(value: bytes) -> str:
    """The name in ``x-tenant-id``.

    Raises:
        InvalidRequest: empty, too long, or with other than visible ASCII characters.
    """
    if _TENANT.fullmatch(value) is None:
        raise InvalidRequest(
            "the header x-tenant-id must have 1 to 128 visible ASCII characters, got "
            f"{_quoted(value)}",
            code="invalid_tenant",
            hint="leave it out, or send the name that stands in [tenants.NAME]",
            header="x-tenant-id",
        )
    return value.decode("ascii")


def _quoted(value: bytes) -> str:
    text = ascii(value[:64].decode("latin-1"))
    return text if len(value) <= 64 else f"{text}... ({len(value)} bytes)"
