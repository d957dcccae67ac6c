"""Is the new version worse than the one before it? Decided by counting, not by a threshold's luck.

Two questions, each answered with one-sided confidence, so that a newcomer is neither thrown out
by one bad request nor kept after a hundred:

- *Errors*: is its failure rate above what its predecessor had, plus what is allowed?
- *Latency*: do more of its requests exceed ``max_slowdown`` times the predecessor's 95 % time
  than the 5 % that would by definition?

A proportion is believed to be above a bound where Wilson's lower limit is (E. B. Wilson, JASA 22,
1927).
"""

from __future__ import annotations

from math import sqrt

import msgspec

Z = 3.0
"""Standard deviations of certainty: one good version in about 740 looks would be thrown out."""

TAIL = 0.05


class Terms(msgspec.Struct, frozen=True):
    """What a newcomer may do worse, and for how long it is watched.

    ``max_error_rate`` above the predecessor's own; ``max_slowdown`` times the predecessor's 95 %
    time; ``min_requests`` before anything is decided, and of the predecessor before there is
    anything to compare with.
    """

    window_ns: int
    max_error_rate: float = 0.02
    max_slowdown: float = 2.0
    min_requests: int = 50


class Record(msgspec.Struct):
    """What became of a version's requests. ``latencies_ns``: of a sample of them."""

    answered: int = 0
    failed: int = 0
    latencies_ns: list[int] = []

    @property
    def error_rate(self) -> float:
        """Failed by the model's fault, of all that it answered or failed."""
        total = self.answered + self.failed
        return self.failed / total if total else 0.0

    def tail_ns(self) -> int:
        """Within what time 95 % of the sample were; 0: there is none."""
        times = sorted(self.latencies_ns)
        return times[min(len(times) - 1, int(len(times) * (1 - TAIL)))] if times else 0


def wilson_lower(hits: int, total: int, z: float = Z) -> float:
    """The lower limit of the proportion that ``hits`` of ``total`` is a sample of."""
    if hits == 0:
        return 0.0
    share, square = hits / total, z * z
    middle = share + square / (2 * total)
    spread = z * sqrt(share * (1 - share) / total + square / (4 * total * total))
    return (middle - spread) / (1 + square / total)


def breach(terms: Terms, before: Record, after: Record) -> str:
    """Why the newcomer has to go, in a sentence; "": nothing speaks against it (yet)."""
    total = after.answered + after.failed
    if total < terms.min_requests:
        return ""
    allowed = before.error_rate + terms.max_error_rate
    if wilson_lower(after.failed, total) > allowed:
        return (
            f"{after.failed} of its first {total} requests failed, "
            f"{before.error_rate:.1%} of those of the version before it"
        )
    bound_ns = int(before.tail_ns() * terms.max_slowdown)
    if bound_ns and len(after.latencies_ns) >= terms.min_requests:
        slow = sum(1 for each in after.latencies_ns if each > bound_ns)
        if wilson_lower(slow, len(after.latencies_ns)) > TAIL:
            return (
                f"{slow} of {len(after.latencies_ns)} requests took longer than "
                f"{bound_ns / 1e6:.3g} ms, {terms.max_slowdown:g} times what 95 % took with the "
                "version before it"
            )
    return ""


def comparable(terms: Terms, before: Record) -> bool:
    """Whether the predecessor has answered enough to be compared with."""
    return before.answered + before.failed >= terms.min_requests
