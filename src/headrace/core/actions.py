"""What must be done now. The engine carries these out in order, without asking why.

Every request ends in exactly one of :class:`CompleteRequests`, :class:`RejectRequest`,
:class:`ExpireRequests`, :class:`CancelRequests` and :class:`FailRequests`.
"""

from __future__ import annotations

import msgspec


class ExecuteBatch(msgspec.Struct, frozen=True, gc=False):
    """Run these together, in this order, on this instance.

    ``padded_length`` is the longest member's (0 where nothing is padded).
    """

    batch_id: int
    instance_id: int
    model: int
    request_ids: tuple[int, ...]
    rows: int
    padded_length: int = 0


class CompleteRequests(msgspec.Struct, frozen=True, gc=False):
    """Answer these with their share of the batch's result."""

    batch_id: int
    request_ids: tuple[int, ...]


class RejectRequest(msgspec.Struct, frozen=True):
    """Not run. ``reason`` is one of:

    ==================== =====================================================================
    queue_full           a bound of the queue (``limit`` names it) is reached
    shed                 it waited, and gave way: to one of a better level in a full queue
                         (``limit`` likewise), or to a larger batch that could not have kept up
                         with what arrives if it had to be in time for this one
    deadline_unreachable it would be answered after ``due_ns``, because of what is before it
    overdue              it waited, and even alone it would now be answered after ``due_ns``
    slo_unattainable     even an idle machine would be late (only with ``strict_slo``)
    unknown_model        there is none
    model_removed        it waited, and its model went
    ==================== =====================================================================

    ``predicted_ns``: how long after its arrival it would have been answered; 0: not predicted.
    ``retry_after_ns`` 0: nothing is known about when.
    """

    request_id: int
    reason: str
    retry_after_ns: int = 0
    predicted_ns: int = 0
    limit: str = ""


class ExpireRequests(msgspec.Struct, frozen=True):
    """Their deadline passed; ``running`` says whether they were in a batch."""

    request_ids: tuple[int, ...]
    running: bool


class CancelRequests(msgspec.Struct, frozen=True):
    """They were withdrawn; nobody waits for an answer."""

    request_ids: tuple[int, ...]


class FailRequests(msgspec.Struct, frozen=True):
    """The model failed for these; the engine knows the error by ``batch_id``."""

    batch_id: int
    request_ids: tuple[int, ...]


Action = (
    ExecuteBatch | CompleteRequests | RejectRequest | ExpireRequests | CancelRequests | FailRequests
)
