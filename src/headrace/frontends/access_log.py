"""One line of the access log, for HTTP/1.1, HTTP/2 and gRPC alike."""

from __future__ import annotations

import logging

from headrace.clock import MonotonicClock

_now_ns = MonotonicClock.now_ns

CLIENT_LEFT = 499
"""As nginx logs a client that did not wait for its answer."""


def log_request(  # noqa: PLR0917 - one line
    log: logging.Logger,
    peer: str,
    method: bytes,
    target: bytes,
    code: int,
    size: int,
    arrived_ns: int,
    **more: object,
) -> None:
    """Writes method, target, status, bytes of the answer's body, milliseconds, and the client.

    ``ms`` is from the last byte of the request to the last byte of the answer handed to the
    socket. What never became a request has neither method nor target, and 0 ms. ``more`` comes
    after the rest: a gRPC call's ``grpc_status``.
    """
    elapsed_ns = _now_ns() - arrived_ns if arrived_ns else 0
    fields = {
        "method": method.decode("latin-1") or "-",
        "target": target.decode("latin-1") or "-",
        "status": code,
        "bytes": size,
        "ms": round(elapsed_ns / 1e6, 3),
        "peer": peer,
        **more,
    }
    log.info("request", extra={"fields": fields})


def shown(address: object) -> str:
    """``192.0.2.1:5000``, ``[2001:db8::1]:5000``, or what a Unix socket has."""
    if not isinstance(address, tuple):
        return str(address or "-")
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
