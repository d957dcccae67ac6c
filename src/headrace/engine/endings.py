"""What a caller is told when a request ends without an answer."""

from __future__ import annotations

import logging

from headrace.core.actions import RejectRequest
from headrace.engine.inflight import Ticket
from headrace.engine.served import ServedModel
from headrace.errors import (
    CapacityError,
    DeadlineExceeded,
    HeadraceError,
    InferenceFailed,
    ModelNotReady,
    Overloaded,
    Unsupported,
)

_LOG = logging.getLogger("headrace.engine")

_FULL_HINT = "retry later, send fewer at a time, or raise max_queue_size"


def too_many_prepared(served: ServedModel) -> Overloaded:
    """The task has more requests under way than may wait."""
    limit = served.config.queue.max_queue_size
    return Overloaded(
        f"model '{served.name}' has {limit} requests being prepared already",
        code="queue_full",
        hint=_FULL_HINT,
        model=served.name,
        limit="max_queue_size",
    )


def rejected(ticket: Ticket, action: RejectRequest) -> CapacityError:
    """The core did not take it in, or threw it out with its model."""
    served = ticket.served
    if action.reason == "queue_full":
        return Overloaded(
            f"model '{served.name}' has {served.config.queue.max_queue_size} requests "
            "waiting already",
            code="queue_full",
            hint=_FULL_HINT,
            retry_after_ns=action.retry_after_ns,
            model=served.name,
            limit="max_queue_size",
        )
    return ModelNotReady(
        f"model '{served.name}' version {served.version} was unloaded while the request waited",
        code=action.reason,
        model=served.name,
    )


def expired(ticket: Ticket, *, waited_ns: int, running: bool) -> DeadlineExceeded:
    """Its time ran out."""
    waited_ms = waited_ns // 1_000_000
    return DeadlineExceeded(
        f"the request to model '{ticket.served.name}' was not answered within its timeout: "
        f"{waited_ms} ms passed while {'running' if running else 'waiting in the queue'}",
        hint="raise the timeout, send less, or add capacity",
        model=ticket.served.name,
        waited_ms=waited_ms,
    )


def unanswerable(ticket: Ticket, error: Exception) -> HeadraceError:
    """The model ran, and its results could not be made an answer."""
    if isinstance(error, HeadraceError):
        return error
    name = ticket.served.name
    _LOG.error("model %s: no answer could be made of its results", name, exc_info=error)
    return InferenceFailed(
        f"no answer could be made of the results of model '{name}': "
        f"{type(error).__name__}: {error}",
        model=name,
    )


def needs_stream(served: ServedModel) -> Unsupported:
    """A request with one answer, to a model that gives any number."""
    return Unsupported(
        f"ModelInfer RPC doesn't support models with decoupled transaction policy: '{served.name}'",
        code="needs_stream",
        hint="use gRPC's ModelStreamInfer, or POST generate_stream",
        model=served.name,
    )


def shutting_down() -> ModelNotReady:
    """The server drains."""
    return ModelNotReady(
        "the server is shutting down",
        code="shutting_down",
        hint="send it to another server, or again in a moment",
    )
