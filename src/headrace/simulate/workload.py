"""What arrives, and when: a pure function of a description and a seed.

============  ===========================================================================
poisson       exponential gaps: independent callers
bursty        Gamma gaps with squared coefficient of variation ``burst_scv``
diurnal       Poisson whose rate follows a day compressed into ``period_s``: between 0.2 and
              1.8 times the mean (thinning, P. Lewis and G. Shedler 1979)
============  ===========================================================================

A recorded trace (``traces``) takes the place of all of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import msgspec

from headrace.core.events import NEVER_NS, QueuedRequest

NS = 1_000_000_000

_DEEPEST = 0.8
"""Of the diurnal wave, as a part of the mean."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of requests.

    rate          requests a second, on average
    process       see the module
    rows          in one request, drawn evenly between the two
    lengths       median and sigma of a log-normal; None: nothing is padded
    slo_ns        answers are wanted within this; 0: within the timeout
    timeout_ns    nobody waits longer; 0: for ever
    patience_ns   of a part ``leaves`` of all, after which they cancel
    """

    rate: float
    process: str = "poisson"
    burst_scv: float = 4.0
    period_s: float = 60.0
    model: int = 1
    tenant: int = 0
    priority: int = 0
    rows: tuple[int, int] = (1, 1)
    lengths: tuple[float, float] | None = None
    max_length: int = 512
    slo_ns: int = 0
    timeout_ns: int = 0
    leaves: float = 0.0
    patience_ns: int = 0
    start_ns: int = 0
    end_ns: int = 0


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One request, by offset from the start. ``cancel_ns`` 0: it is never withdrawn."""

    at_ns: int
    model: int = 1
    tenant: int = 0
    priority: int = 0
    rows: int = 1
    length: int = 0
    slo_ns: int = 0
    timeout_ns: int = 0
    cancel_ns: int = 0
    shape_key: int = 0

    def request(self, request_id: int, now_ns: int) -> QueuedRequest:
        """As the core is told of it, when it arrives at ``now_ns`` of its clock."""
        deadline_ns = now_ns + self.timeout_ns if self.timeout_ns else NEVER_NS
        due_ns = min(deadline_ns, now_ns + self.slo_ns) if self.slo_ns else deadline_ns
        return QueuedRequest(
            request_id,
            self.model,
            self.rows,
            self.length,
            self.shape_key,
            now_ns,
            deadline_ns,
            self.priority,
            self.tenant,
            due_ns,
        )


def drawn(source: Source, seed: int) -> Iterator[Arrival]:
    """The requests of one source, in order.

    Raises:
        ValueError: the process is unknown, or a number makes no sense.
    """
    if source.rate <= 0 or source.end_ns <= source.start_ns:
        return
    times = _times(source, random.Random(f"{seed}/gaps/{source.process}"))
    kinds = random.Random(f"{seed}/kinds")
    plain = source.rows[0] == source.rows[1] and source.lengths is None and not source.leaves
    for at_s in times:
        at_ns = source.start_ns + int(at_s * NS)
        if at_ns >= source.end_ns:
            return
        rows, length, cancel_ns = source.rows[0], 0, 0
        if not plain:
            rows = kinds.randint(*source.rows)
            if source.lengths is not None:
                median, sigma = source.lengths
                length = int(kinds.lognormvariate(math.log(median), sigma))
                length = min(max(1, length), source.max_length)
            if source.leaves and kinds.random() < source.leaves:
                cancel_ns = at_ns + max(1, int(kinds.expovariate(1.0) * source.patience_ns))
        yield Arrival(
            at_ns,
            source.model,
            source.tenant,
            source.priority,
            rows,
            length,
            source.slo_ns,
            source.timeout_ns,
            cancel_ns,
        )


def merged(sources: list[Source], seed: int) -> list[Arrival]:
    """All sources together, in order of time; of equal times the earlier source first."""
    arrivals = [
        arrival
        for number, source in enumerate(sources)
        for arrival in drawn(source, seed * 1009 + number)
    ]
    arrivals.sort(key=lambda arrival: arrival.at_ns)
    return arrivals


def _times(source: Source, chance: random.Random) -> Iterator[float]:
    at_s = 0.0
    if source.process == "poisson":
        while True:
            at_s += chance.expovariate(source.rate)
            yield at_s
    elif source.process == "bursty":
        shape = 1.0 / source.burst_scv
        scale = source.burst_scv / source.rate
        while True:
            at_s += chance.gammavariate(shape, scale)
            yield at_s
    elif source.process == "diurnal":
        most = source.rate * (1.0 + _DEEPEST)
        while True:
            at_s += chance.expovariate(most)
            wave = 1.0 + _DEEPEST * math.sin(2.0 * math.pi * at_s / source.period_s)
            if chance.random() * most < source.rate * wave:
                yield at_s
    else:
        raise ValueError(f"unknown arrivals {source.process!r}: poisson, bursty or diurnal")
