"""What happened to every request: one row of integers each, kept raw until the end.

Raw rows instead of a histogram, because a run is bounded (``spec.MAX_REQUESTS``) and exact
percentiles, errors and the generator's own lateness then come from one place.
"""

from __future__ import annotations

from array import array

import msgspec

PENDING = -1
"""Outcome of a request that has no answer (yet)."""

OK = 0
"""Outcome of a request that was answered as it should be."""

_MAX_REASONS = 64
"""Different texts that are told apart; servers like to put numbers into theirs."""

NO_STATUS = 0
"""In place of an HTTP status where there was no answer."""


class Reason(msgspec.Struct, frozen=True):
    """Why requests failed. ``status`` is HTTP's, or ``NO_STATUS``."""

    status: int
    text: str


class Samples:
    """Append-only rows; ``index`` is the order in which requests were due.

    Attributes:
        due_ns: when the request should have been sent (open loop) or was (closed loop).
        taken_ns: when the generator came to it; ``taken - due`` is the generator's fault.
        done_ns: when the answer was complete, or the failure was known; 0 while pending.
        outcome: ``PENDING``, ``OK``, or the number of a reason.
        sent: requests whose bytes were handed to a connection.
        started_ns, ended_ns: of the run, set by whoever drives it.
    """

    def __init__(self) -> None:
        self.due_ns = array("q")
        self.taken_ns = array("q")
        self.done_ns = array("q")
        self.outcome = array("h")
        self.reasons: list[Reason] = [Reason(NO_STATUS, "ok")]
        self.sent = 0
        self.ok = 0
        self.failed = 0
        self.started_ns = 0
        self.ended_ns = 0
        self._numbers: dict[Reason, int] = {}

    def __len__(self) -> int:
        return len(self.due_ns)

    @property
    def outstanding(self) -> int:
        """Requests without an outcome."""
        return len(self.due_ns) - self.ok - self.failed

    def take(self, due_ns: int, taken_ns: int) -> int:
        """A new request; returns its index."""
        index = len(self.due_ns)
        self.due_ns.append(due_ns)
        self.taken_ns.append(taken_ns)
        self.done_ns.append(0)
        self.outcome.append(PENDING)
        return index

    def succeed(self, index: int, now_ns: int) -> None:
        """The answer is there and is what it should be."""
        assert self.outcome[index] == PENDING, "a request ends once"
        self.outcome[index] = OK
        self.done_ns[index] = now_ns
        self.ok += 1

    def fail(self, index: int, now_ns: int, reason: Reason) -> None:
        """The request failed, with the reason a person will read."""
        assert self.outcome[index] == PENDING, "a request ends once"
        self.outcome[index] = self._number(reason)
        self.done_ns[index] = now_ns
        self.failed += 1

    def _number(self, reason: Reason) -> int:
        known = self._numbers.get(reason)
        if known is not None:
            return known
        if len(self.reasons) > _MAX_REASONS:
            reason = Reason(reason.status, "(reasons beyond the first 64)")
            if reason in self._numbers:
                return self._numbers[reason]
        self._numbers[reason] = len(self.reasons)
        self.reasons.append(reason)
        return self._numbers[reason]
