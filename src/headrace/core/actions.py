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
    """Never queued. ``reason``: ``queue_full``, ``unknown_model`` or ``model_removed``.

    ``retry_after_ns`` 0: nothing is known about when.
    """

    request_id: int
    reason: str
    retry_after_ns: int = 0


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
