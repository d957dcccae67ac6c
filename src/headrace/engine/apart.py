"""Batches for models that are given requests, not rows: see ``runtimes.base.RequestModel``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from headrace.clock import MonotonicClock
from headrace.engine.inflight import Member, Ticket
from headrace.engine.served import ServedModel
from headrace.errors import HeadraceError, InferenceFailed
from headrace.runtimes.base import Emitted, ModelRequest, RequestModel

Piece = Sequence[np.ndarray | None] | HeadraceError


def run_apart(
    served: ServedModel,
    parts: Sequence[Member],
    emitted: Callable[[Ticket, Emitted, bool], None] | None,
) -> list[Piece]:
    """Runs the requests of one batch; blocks. What each gets, unless answers are emitted."""
    tickets = [cast("Ticket", part) for part in parts]  # only a task makes parts of a request
    now_ns = MonotonicClock.now_ns()
    for ticket in tickets:  # an answer may come, and end one, before the batch is back
        ticket.batched_ns = ticket.started_ns = now_ns
    model = cast("RequestModel", served.loaded)
    by_key = {ticket.request_id: index for index, ticket in enumerate(tickets)}
    pieces: list[Piece] = [_no_answer(served)] * len(tickets)

    def keep(key: int, answer: Emitted, _final: bool) -> None:
        if answer is not None:
            pieces[by_key[key]] = answer

    def pass_on(key: int, answer: Emitted, final: bool) -> None:
        assert emitted is not None
        emitted(tickets[by_key[key]], answer, final)

    if emitted is None:
        model.execute_requests([_request_of(ticket) for ticket in tickets], keep)
        return pieces
    model.execute_requests([_request_of(ticket) for ticket in tickets], pass_on)
    return [()] * len(tickets)


def _request_of(ticket: Ticket) -> ModelRequest:
    request = ticket.request
    wanted = request.outputs
    return ModelRequest(
        ticket.request_id,
        ticket.arrays,
        request.id,
        None if wanted is None else tuple([output.name for output in wanted]),
        request.parameters or {},
        request.sequence_id,
        request.sequence_start,
        request.sequence_end,
        request.priority,
        request.timeout_ns,
    )


def _no_answer(served: ServedModel) -> InferenceFailed:
    return InferenceFailed(
        f"model '{served.name}' gave no answer to a request of the batch",
        code="no_answer",
        model=served.name,
    )
