"""TRITONSERVER_Error_Code, the numbers that ``TritonError`` carries, and this server's errors."""

from __future__ import annotations

from headrace.errors import (
    CapacityError,
    HeadraceError,
    InferenceFailed,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    RequestCancelled,
    RequestError,
    Unsupported,
)

UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE = range(5)
UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(5, 8)

_ERROR_OF: dict[int, type[HeadraceError]] = {
    NOT_FOUND: ModelNotFound,
    INVALID_ARG: InvalidRequest,
    UNAVAILABLE: ModelNotReady,
    UNSUPPORTED: Unsupported,
    ALREADY_EXISTS: RequestError,
    CANCELLED: RequestCancelled,
}

_CODE_OF: tuple[tuple[type[HeadraceError], int], ...] = (
    (ModelNotFound, NOT_FOUND),
    (Unsupported, UNSUPPORTED),
    (RequestCancelled, CANCELLED),
    (RequestError, INVALID_ARG),
    (CapacityError, UNAVAILABLE),
)


def error_of(code: int, message: str, model: str) -> HeadraceError:
    """The error of an answer that a model gave with this code."""
    kind = _ERROR_OF.get(code, InferenceFailed)
    return kind(message or "unknown error", code="model_error", model=model)


def code_of(error: HeadraceError) -> int:
    """What a model is told that called another one and got this."""
    return next((code for kind, code in _CODE_OF if isinstance(error, kind)), INTERNAL)
