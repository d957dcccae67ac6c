"""Every error headrace raises on purpose, as one tree, split by whose fault it is.

::

    HeadraceError
    ├── RequestError            the caller's: do not retry unchanged
    │   ├── InvalidRequest        malformed, or disagrees with the model's signature
    │   ├── ModelNotFound         no such model or version
    │   ├── PayloadTooLarge       a named limit was exceeded
    │   ├── Unsupported           well formed, but not something this model or server can do
    │   ├── Forbidden             from another site, for an unknown host, or switched off
    │   ├── UnsupportedMediaType  its content type is not accepted on this route
    │   └── RequestCancelled      the caller left before the answer
    ├── CapacityError           nobody's: the same request may succeed later
    │   ├── Overloaded            a bounded queue is full (carries retry_after_ns)
    │   ├── DeadlineExceeded      the request's time ran out while queued or running
    │   └── ModelNotReady         known, but not loaded (yet, or any more)
    ├── ModelError              the model's
    │   ├── InferenceFailed       execution raised, or returned what it must not
    │   └── InstanceDied          the process that ran the model is gone
    └── OperatorError           whoever started or configured the server
        ├── ConfigError           a flag, file or environment variable is wrong
        ├── ModelLoadError        a model file is broken, unsafe or of an unknown kind
        ├── MissingExtra          an optional dependency is not installed
        ├── PullError             a model could not be fetched or verified
        │   └── StoreError        a remote store of models does not give what it should
        └── AddressInUse          the port is taken

The tree knows no transport: ``frontends/status.py`` holds the only table from these
classes to HTTP (and later gRPC) codes.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Any, TypeVar

_Error = TypeVar("_Error", bound=BaseException)


_FOLDERS = re.compile(r"(?<![\w:/.<])/([^\s/'\"`,;:()]+)/(?:[^\s/'\"`,;:()]+/)*")
_PASSWORD = re.compile(r"(?<=://)([^\s/@:]*):[^\s/@]+@")
_SECRET_QUERY = re.compile(r"(?i)([?&](?:password|token|secret|key|signature|sig)=)[^&\s]+")


def without_folders(text: str) -> str:
    """``text`` for callers: of each absolute path the last part alone."""
    if "/" not in text:
        return text
    return _FOLDERS.sub(lambda found: "" if found[1] in _roots() else found[0], text)


@functools.cache
def _roots() -> frozenset[str]:
    """The folders that absolute paths here begin with; routes and methods begin with others."""
    return frozenset(os.listdir("/"))  # noqa: PTH208 - names are wanted


def without_passwords(text: str) -> str:
    """``text`` for people and logs: the passwords in its URLs are ``***``."""
    return _SECRET_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


class HeadraceError(Exception):
    """Root of the tree.

    Args:
        message: one sentence: what was wrong, and what was expected.
        code: a stable machine-readable name; defaults to the class's own.
        hint: what to do about it.
        details: machine-readable facts (``model``, ``input``, ``expected``, ``got`` ...);
            values must be JSON-serialisable.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str = "", hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.details = details


class RequestError(HeadraceError):
    """The caller's fault."""

    default_code = "bad_request"


class InvalidRequest(RequestError):
    """Malformed, or in disagreement with the model's signature."""

    default_code = "invalid_request"


class ModelNotFound(RequestError):
    """No model, or no version of it, has this name."""

    default_code = "model_not_found"


class PayloadTooLarge(RequestError):
    """A named limit on the size of a request was exceeded."""

    default_code = "payload_too_large"


class Unsupported(RequestError):
    """Well formed, but not something this model or server can do."""

    default_code = "unsupported"


class Forbidden(RequestError):
    """Well formed, but not allowed: by where it comes from, or by the server's configuration."""

    default_code = "forbidden"


class UnsupportedMediaType(RequestError):
    """The content type is not one that the route accepts."""

    default_code = "unsupported_media_type"


class RequestCancelled(RequestError):
    """The caller left, or cancelled, before the answer was ready."""

    default_code = "cancelled"


class CapacityError(HeadraceError):
    """The same request may succeed later.

    ``retry_after_ns`` is 0 where nothing is known about when.
    """

    default_code = "capacity"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        hint: str = "",
        retry_after_ns: int = 0,
        **details: Any,
    ) -> None:
        super().__init__(message, code=code, hint=hint, **details)
        self.retry_after_ns = retry_after_ns


class Overloaded(CapacityError):
    """A bounded queue is full."""

    default_code = "overloaded"


class DeadlineExceeded(CapacityError):
    """The request's time ran out while it was queued or running."""

    default_code = "deadline_exceeded"


class ModelNotReady(CapacityError):
    """The model is known but not ready to serve."""

    default_code = "model_not_ready"


class ModelAbsent(ModelNotReady):
    """The model is known, and not in memory until somebody asks for it: now."""

    default_code = "model_absent"


class ModelError(HeadraceError):
    """The model's fault."""

    default_code = "model_error"


class InferenceFailed(ModelError):
    """The model raised, or returned something that is not what its signature says."""

    default_code = "inference_failed"


class InstanceDied(ModelError):
    """The process that ran the model ended before it answered."""

    default_code = "instance_died"


class OperatorError(HeadraceError):
    """The fault of whoever started or configured the server; shown as one line by the CLI."""

    default_code = "operator_error"


class ConfigError(OperatorError):
    """A flag, configuration file or environment variable is wrong."""

    default_code = "config_error"


class ModelLoadError(OperatorError):
    """A model file is broken, unsafe, or of a kind nothing here can run."""

    default_code = "model_load_error"


class MissingExtra(OperatorError):
    """An optional dependency is needed and not installed."""

    default_code = "missing_extra"

    def __init__(self, what: str, *, extra: str, package: str) -> None:
        super().__init__(
            f"{what} needs the package {package!r}, which is not installed",
            hint=f"pip install 'headrace[{extra}]'",
            extra=extra,
            package=package,
        )


class PullError(OperatorError):
    """A model could not be fetched, or is not what its digest says."""

    default_code = "pull_error"


class StoreError(PullError):
    """A remote store of models is not there, or does not give what it should.

    ``code`` says which: ``store_unreachable`` may be over by itself and is tried again,
    ``store_not_found``, ``store_denied``, ``store_changed``, ``store_digest``, ``store_no_room``,
    ``store_unsafe``, ``store_stopped``; ``store_error`` is everything else.
    """

    default_code = "store_error"


class AddressInUse(OperatorError):
    """The address to listen on is taken by another process."""

    default_code = "address_in_use"


def detached(error: _Error) -> _Error:
    """The same error without its traceback, cause and context.

    A traceback holds frames, and frames hold whole payloads: of whoever raised the error and of
    all that called it. Where one of their variables holds the error, only the garbage collector
    frees them, and it runs rarely. So call this where an error is stored, answered, or passed to
    another thread; log it before.
    """
    left: list[BaseException] = [error]
    while left:
        each = left.pop()
        left += [more for more in (each.__cause__, each.__context__) if more is not None]
        each.__traceback__ = each.__cause__ = each.__context__ = None
    return error


def counts_against_model(error: BaseException) -> bool:
    """Whether a failed execution says something about the model: the caller's mistakes do not."""
    return not isinstance(error, RequestError)


def kind_of(error: HeadraceError) -> str:
    """Names the nearest class of this module, for another process; see :func:`kind_named`."""
    return next(each.__name__ for each in type(error).__mro__ if each.__module__ == __name__)


def kind_named(name: str) -> type[HeadraceError]:
    """What an execution in another process failed with: the caller's kinds, or the model's."""
    return _CALLERS.get(name, InferenceFailed)


_KINDS: list[type[HeadraceError]] = [RequestError, *RequestError.__subclasses__()]
_CALLERS = {each.__name__: each for each in _KINDS}
