"""The only table from error classes to HTTP and gRPC codes, and the shapes errors are sent in.

The class decides, the nearest ancestor in the table wins, and what is not in the table is a
500 that tells nothing of our inside. Sources: the OIP/Triton error body ``{"error": text}``,
to which machine-readable keys are added; OpenAI's ``{"error": {message, type, param,
code}}``, all four always present; RFC 9110 for the codes, 499 as nginx uses it.
"""

from __future__ import annotations

import json
import math
from itertools import islice
from typing import Any

import msgspec

from headrace.errors import (
    CapacityError,
    DeadlineExceeded,
    Forbidden,
    HeadraceError,
    InferenceFailed,
    InstanceDied,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
    PayloadTooLarge,
    RequestCancelled,
    RequestError,
    Unsupported,
    UnsupportedMediaType,
    without_folders,
    without_passwords,
)

NS_PER_S = 1_000_000_000

INTERNAL_TEXT = "internal error; the server's log has the reason"


class Status(msgspec.Struct, frozen=True):
    """``http`` is the status code, ``grpc`` the name of the gRPC one, ``openai`` the ``type``."""

    http: int
    grpc: str
    openai: str


_REQUEST = "invalid_request_error"
_SERVER = "server_error"

INTERNAL = Status(500, "INTERNAL", _SERVER)

STATUS_OF: dict[type[BaseException], Status] = {
    RequestError: Status(400, "INVALID_ARGUMENT", _REQUEST),
    InvalidRequest: Status(400, "INVALID_ARGUMENT", _REQUEST),
    ModelNotFound: Status(404, "NOT_FOUND", _REQUEST),
    PayloadTooLarge: Status(413, "RESOURCE_EXHAUSTED", _REQUEST),
    Unsupported: Status(501, "UNIMPLEMENTED", _REQUEST),
    Forbidden: Status(403, "PERMISSION_DENIED", _REQUEST),
    UnsupportedMediaType: Status(415, "INVALID_ARGUMENT", _REQUEST),
    RequestCancelled: Status(499, "CANCELLED", _REQUEST),
    CapacityError: Status(503, "UNAVAILABLE", _SERVER),
    Overloaded: Status(503, "UNAVAILABLE", _SERVER),
    ModelNotReady: Status(503, "UNAVAILABLE", _SERVER),
    DeadlineExceeded: Status(504, "DEADLINE_EXCEEDED", _SERVER),
    ModelError: INTERNAL,
    InferenceFailed: INTERNAL,
    # The process is being started again: the same request may succeed in a moment.
    InstanceDied: Status(503, "UNAVAILABLE", _SERVER),
}


def status_of(error: BaseException) -> Status:
    """The row of the nearest ancestor; :data:`INTERNAL` for everything unforeseen."""
    return _row(error) or INTERNAL


def http_status(error: BaseException) -> int:
    """Only the HTTP status code of :func:`status_of`."""
    return status_of(error).http


GRPC_CODES = {
    "OK": 0,
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
}
"""Numbers of the names in the table (google.rpc.Code)."""

_TEXT_MAX_BYTES = 2048
_DETAILS_MAX_BYTES = 1024
"""Of what a gRPC error tells in its trailers: clients refuse a list of more than 8 KiB, and tell
of that instead of the error. A byte of the text takes up to three there, one of the details 4/3."""


def grpc_answer(error: BaseException) -> tuple[int, str, tuple[tuple[bytes, bytes], ...]]:
    """``grpc-status``, ``grpc-message`` and further trailers.

    ``headrace-error-bin`` is the JSON that HTTP would have had: code, hint and details.
    """
    body = v2_error_body(error)
    trailers = [(b"headrace-error-bin", body)] if len(body) <= _DETAILS_MAX_BYTES else []
    retry_after = retry_after_header(error)
    if retry_after is not None:
        trailers.append((b"retry-after", retry_after.encode()))
    return GRPC_CODES[status_of(error).grpc], grpc_text(error), tuple(trailers)


def grpc_text(error: BaseException) -> str:
    """``grpc-message``: the message and the hint, of a bounded length."""
    message, _, hint, _ = _told(error)
    text = f"{message} ({hint})" if hint else message
    raw = text.encode("utf-8", "replace")
    if len(raw) > _TEXT_MAX_BYTES:
        text = raw[:_TEXT_MAX_BYTES].decode("utf-8", "ignore") + "…"
    return text


_QUOTED_MAX = 4096
_ITEMS_MAX = 1024
"""Characters of a text and items of a list in an error that is sent: names of all of a model's
inputs fit, a shape of millions of dimensions does not."""


def retry_after_header(error: BaseException) -> str | None:
    """Value of ``Retry-After`` in whole seconds (at least 1), or None where it has no place.

    RFC 9110 section 10.2.3 gives it a meaning with 503; a missed deadline (504) says nothing
    about when to come back.
    """
    if http_status(error) != 503:
        return None
    wait_ns = error.retry_after_ns if isinstance(error, CapacityError) else 0
    return str(max(1, math.ceil(wait_ns / NS_PER_S)))


def v2_error_body(error: BaseException) -> bytes:
    """``{"error": text, "code": name, "hint"?: text, ...details}``."""
    message, code, hint, details = _told(error)
    return v2_body(message, code, hint=hint, details=details)


def v2_body(
    message: str, code: str, *, hint: str = "", details: dict[str, Any] | None = None
) -> bytes:
    """The V2 shape for what is no exception of ours, such as a route that does not exist."""
    first = {"error": message, "code": code} | ({"hint": hint} if hint else {})
    return _encode(first | {k: v for k, v in (details or {}).items() if k not in first})


def openai_error_body(error: BaseException) -> bytes:
    """``{"error": {"message", "type", "param", "code"}}``; a hint ends the message."""
    message, code, hint, details = _told(error)
    param = details.get("param")
    return openai_body(
        f"{message} ({hint})" if hint else message,
        code,
        kind=status_of(error).openai,
        param=param if isinstance(param, str) else None,
    )


def openai_body(
    message: str, code: str, *, kind: str = _REQUEST, param: str | None = None
) -> bytes:
    """The OpenAI shape for what is no exception of ours."""
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _row(error: BaseException) -> Status | None:
    for ancestor in type(error).__mro__:
        status = STATUS_OF.get(ancestor)
        if status is not None:
            return status
    return None


def _told(error: BaseException) -> tuple[str, str, str, dict[str, Any]]:
    """Message, code, hint and details that a stranger may see.

    Without a row there are none: an operator's error names files of the server, and nobody
    knows what a ``KeyError`` would tell.
    """
    if isinstance(error, HeadraceError) and _row(error) is not None:
        return (
            _shown(error.message),
            error.code,
            _shown(error.hint),
            {name: _shown(value) for name, value in error.details.items()},
        )
    return INTERNAL_TEXT, "internal", "", {}


def _shown(value: Any) -> Any:
    """The value for a caller, without the server's folders and the passwords of its stores.

    Texts and lists are cut to a bounded length, because they may quote a whole request.
    """
    if isinstance(value, str):
        cut = value if len(value) <= _QUOTED_MAX else value[:_QUOTED_MAX] + "…"
        return without_passwords(without_folders(cut)) if "/" in cut else cut
    if isinstance(value, dict):
        return {key: _shown(each) for key, each in islice(value.items(), _ITEMS_MAX)}
    if isinstance(value, list | tuple):
        return [_shown(each) for each in value[:_ITEMS_MAX]]
    return value


def _encode(body: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body, enc_hook=str)
    except UnicodeEncodeError:
        # A message quotes a name that is no Unicode text, such as a lone surrogate.
        return json.dumps(body, default=str).encode()
