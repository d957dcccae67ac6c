"""What a caller is told when a request ends without an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

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
    """The core did not take it in, gave it up, or threw it out with its model."""
    name = ticket.served.name
    tell = _REFUSALS.get(action.reason)
    if tell is not None:
        return tell(ticket, action)
    return ModelNotReady(
        f"model '{name}' version {ticket.served.version} was unloaded while the request waited",
        code=action.reason,
        model=name,
    )


def _full(ticket: Ticket, action: RejectRequest) -> Overloaded:
    served = ticket.served
    limit = action.limit or "max_queue_size"
    allowed = getattr(served.config.queue, limit)
    what = "requests" if limit == "max_queue_size" else limit.removeprefix("max_queue_")
    return Overloaded(
        f"model '{served.name}' has {allowed} {what} waiting already",
        code="queue_full",
        hint=f"retry later, send fewer at a time, or raise {limit}",
        retry_after_ns=action.retry_after_ns,
        model=served.name,
        limit=limit,
        allowed=allowed,
        **_when(action),
    )


def _shed(ticket: Ticket, action: RejectRequest) -> Overloaded:
    name = ticket.served.name
    why = (
        f"gave its place in the full queue of model '{name}' to one that goes before it"
        if action.limit
        else f"gave way to a larger batch of model '{name}', which is overloaded"
    )
    return Overloaded(
        f"the request {why}",
        code="shed",
        hint="retry later, send less, or add capacity",
        retry_after_ns=action.retry_after_ns,
        model=name,
        **({"limit": action.limit} if action.limit else {}),
        **_when(action),
    )


def _unreachable(ticket: Ticket, action: RejectRequest) -> CapacityError:
    name = ticket.served.name
    wanted_ns = _wanted_ns(ticket)
    wanted_ms = _ms(wanted_ns)
    # Who set a timeout of its own is told what it would have been told when that had passed.
    kind = DeadlineExceeded if ticket.request.timeout_ns == wanted_ns else Overloaded
    return kind(
        f"model '{name}' has too much to do to answer within {wanted_ms:g} ms",
        code="deadline_unreachable",
        hint="retry later, allow more time, send less, or add capacity",
        retry_after_ns=action.retry_after_ns,
        model=name,
        wanted_ms=wanted_ms,
        **_when(action),
    )


def _overdue(ticket: Ticket, action: RejectRequest) -> DeadlineExceeded:
    name = ticket.served.name
    wanted_ms = _ms(_wanted_ns(ticket))
    return DeadlineExceeded(
        f"the request to model '{name}' waited until it could no longer be answered within "
        f"{wanted_ms:g} ms",
        code="overdue",
        hint="allow more time, send less, or add capacity",
        retry_after_ns=action.retry_after_ns,
        model=name,
        wanted_ms=wanted_ms,
        **_when(action),
    )


def _unattainable(ticket: Ticket, action: RejectRequest) -> DeadlineExceeded:
    name = ticket.served.name
    wanted_ms = _ms(_wanted_ns(ticket))
    return DeadlineExceeded(
        f"model '{name}' needs about {_ms(action.predicted_ns):g} ms for this request by itself, "
        f"and its SLO of {wanted_ms:g} ms is strict",
        code="slo_unattainable",
        hint="allow more time, send fewer rows, or use a faster model",
        model=name,
        wanted_ms=wanted_ms,
        predicted_ms=_ms(action.predicted_ns),
    )


_REFUSALS: dict[str, Callable[[Ticket, RejectRequest], CapacityError]] = {
    "queue_full": _full,
    "shed": _shed,
    "deadline_unreachable": _unreachable,
    "overdue": _overdue,
    "slo_unattainable": _unattainable,
}


def _wanted_ns(ticket: Ticket) -> int:
    """Within what time the answer was wanted."""
    served, request = ticket.served, ticket.request
    timeout_ns = request.timeout_ns or served.timeout_ns
    return min(timeout_ns, request.slo_ns or served.slo_ns or timeout_ns)


def _when(action: RejectRequest) -> dict[str, float]:
    """What is known of times, for machines: milliseconds."""
    told: dict[str, float] = {}
    if action.predicted_ns:
        told["predicted_ms"] = _ms(action.predicted_ns)
    if action.retry_after_ns:
        told["retry_after_ms"] = _ms(action.retry_after_ns)
    return told


def _ms(span_ns: int) -> float:
    return round(span_ns / 1e6, 3)


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


def hung(served: ServedModel, ran_ns: int, limit_ns: int) -> InferenceFailed:
    """Its batch ran for too long."""
    ran_s, limit_s = ran_ns / 1e9, limit_ns / 1e9
    reason = f"an execution ran for {ran_s:.3g} s, longer than its limit of {limit_s:.3g} s"
    return InferenceFailed(
        f"model '{served.name}' hung: {reason}",
        code="execution_timeout",
        hint="send less at a time; or raise execution_timeout if the model honestly takes so long",
        model=served.name,
        reason=reason,
    )


def all_stuck(served: ServedModel) -> ModelNotReady:
    """Every instance of it is in an execution that cannot be ended."""
    return ModelNotReady(
        f"model '{served.name}' is not ready: {served.unavailable}",
        code="model_hung",
        hint='restart the server; isolation = "process" makes such executions end',
        model=served.name,
    )


def needs_stream(served: ServedModel) -> Unsupported:
    """A request with one answer, to a model that gives any number."""
    return Unsupported(
        f"ModelInfer RPC doesn't support models with decoupled transaction policy: '{served.name}'",
        code="needs_stream",
        hint="use gRPC's ModelStreamInfer, or POST generate_stream",
        model=served.name,
    )


def warn_of_slo(served: ServedModel, cost_ns: int) -> None:
    """Says so in the log if not even one request by itself can meet the model's SLO."""
    slo = served.config.slo
    if not 0 < slo.target_ns < cost_ns:
        return
    _LOG.warning(
        "model %s: one request by itself takes about %g ms, and its SLO is %s: %s",
        served.name,
        _ms(cost_ns),
        slo.p99,
        "all are refused, because the SLO is strict"
        if slo.strict
        else "they run as if they had none; allow more time, or use a faster model",
    )


def shutting_down() -> ModelNotReady:
    """The server drains."""
    return ModelNotReady(
        "the server is shutting down",
        code="shutting_down",
        hint="send it to another server, or again in a moment",
    )
