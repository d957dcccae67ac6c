"""How long a batch takes, learnt from every batch that ran.

Law: a prediction never falls as work grows, and no single batch, however strange, can move it
by more than a quarter.

What is learnt is a curve through a few points: two for each doubling of work (*units*: rows,
or padded tokens where there is a length), each the average of the batches of about that size.
Between points time is a line, beyond them the line goes on. A curve rather than one line,
because execution times bend where caches end and where kernels change.

Two more numbers make it useful on a machine that others share:

* ``level`` is how slow the machine is right now, against what the points say. It follows within
  a few batches (or about a second of running, if batches are long), for all sizes at once; so a
  noisy neighbour is seen in the sizes that did not run meanwhile too. The points are kept as
  if the level were 1.
* ``spread`` is the quantile of the ratio of the time taken to the time predicted
  (stochastic approximation, H. Robbins and S. Monro 1951): what a promise must allow for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from math import frexp

from headrace.core.events import LearntCost

QUANTILE = 0.99
"""A promise is kept by so many batches. Above it a few stalls of the machine would set the
pace of all; requests behind one another meet several batches, whose errors even out."""

_SPREAD_MAX = 4.0
_SPREAD_STEP = 0.04
_SPREAD_FIRST = 1.1

_STEP_MAX = 2.0
"""A ratio beyond this (or its inverse) counts as this: a stall is not a trend."""

_LEVEL_WEIGHT = 0.125
_LEVEL_WEIGHT_MAX = 0.3
_LEVEL_SPAN_NS = 2_000_000_000
"""A batch moves the level by an eighth of what it was off by; one that took a good part of
two seconds by more, up to the limit: drift is to be seen within seconds, not within batches."""

_LEVEL_MAX = 100.0
"""A machine that is a hundred times slower (or faster) than it was is another one."""

_POINT_WEIGHT = 1 / 64
"""Of one batch in its point, once the point has seen as many: slower than the level, which is
what makes one of them the machine and the other the model."""

_OBSERVE_NS = 100_000
_OBSERVE_ALL = 64
"""After so many batches one in a tenth of a millisecond is looked at: a stream of tiny ones
has no more to tell, and must not pay for it."""

_REDRAW = 16
"""Batches between two curves, once the points move little: drawing costs as much as a decision."""

_ORDINARY = 1.25

_DRAWN_MAX = 1024

_TRUST = 8
"""Batches of about one size before it says something about the level."""


class LatencyModel:
    """One model on one kind of instance.

    Args:
        learnt: where to begin; None: nothing is known.
    """

    __slots__ = (
        "_bins",
        "_drawn",
        "_level",
        "_observed_ns",
        "_spread",
        "_times",
        "_units",
        "batches",
    )

    def __init__(self, learnt: LearntCost | None = None) -> None:
        self.batches = 0
        self._level = 1.0
        self._spread = _SPREAD_FIRST
        self._bins: dict[int, list[float]] = {}  # number -> [units, ns, weight]
        self._units: list[float] = []
        self._times: list[float] = []
        self._drawn: dict[float, float] = {}  # the curve where it was asked for
        self._observed_ns = -_OBSERVE_NS
        if learnt is not None:
            for units, taken_ns in learnt.points:
                # What was measured before counts as two batches: it gives way to what is seen.
                self._bins[_bin_of(units)] = [units, max(taken_ns, 1.0), 2.0]
            self._spread = min(max(learnt.spread, 1.0), _SPREAD_MAX)
            self.batches = learnt.batches
            self._draw()

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return bool(self._units)

    @property
    def level(self) -> float:
        """How slow the machine is: 2.0 takes twice as long as it used to."""
        return self._level

    @property
    def spread(self) -> float:
        """What a promise allows for, as a factor."""
        return self._spread

    def predict_ns(self, units: float) -> float:
        """The time of a batch of ``units``; 0.0 as long as nothing is known."""
        return self._level * self.on_curve(units)

    def safe_ns(self, units: float) -> float:
        """What nearly every batch of ``units`` keeps below."""
        return self._spread * self._level * self.on_curve(units)

    def largest_within(self, slack_ns: float) -> float:
        """The units of the largest batch that is safely over within ``slack_ns``.

        0.0 where not even the smallest is; infinite as long as nothing is known.
        """
        units, times = self._units, self._times
        if not units:
            return float("inf")
        target = slack_ns / (self._spread * self._level)
        if len(units) == 1:
            return float("inf") if target >= times[0] else _scaled_units(target, units, times)
        index = min(max(bisect_right(times, target), 1), len(units) - 1)
        slope = _slope(units, times, index)
        if slope <= 0.0:
            return float("inf") if target >= times[index] else 0.0
        return max(0.0, units[index] + (target - times[index]) / slope)

    def observe(self, units: float, taken_ns: int, now_ns: int) -> None:
        """A batch of ``units`` took so long, and is over now."""
        self.batches += 1
        if now_ns - self._observed_ns < _OBSERVE_NS and self.batches > _OBSERVE_ALL:
            return
        self._observed_ns = now_ns
        taken_ns = max(taken_ns, 1)  # a clock that stood still; predictions are divided by
        number = _bin_of(units)
        entry = self._bins.get(number)
        if entry is None:
            self._bins[number] = [units, taken_ns / self._level, 1.0]
            self._draw()
            return
        expected_ns = self.on_curve(units)
        ratio = taken_ns / max(1.0, self._level * expected_ns)
        bounded = min(max(ratio, 1 / _STEP_MAX), _STEP_MAX)
        seen = entry[2]
        if seen >= _TRUST:
            long = self._level * expected_ns / _LEVEL_SPAN_NS
            weight = max(_LEVEL_WEIGHT, min(long, _LEVEL_WEIGHT_MAX))
            level = self._level * (1.0 + weight * (bounded - 1.0))
            self._level = min(max(level, 1 / _LEVEL_MAX), _LEVEL_MAX)
            above = QUANTILE if ratio > self._spread else QUANTILE - 1.0
            self._spread = min(max(self._spread * (1.0 + _SPREAD_STEP * above), 1.0), _SPREAD_MAX)
            plain_ns = bounded * expected_ns
        else:
            plain_ns = taken_ns / self._level
        share = max(_POINT_WEIGHT, 1.0 / (seen + 1.0))
        if seen >= _TRUST and not 1 / _ORDINARY < ratio < _ORDINARY:
            share *= 0.25  # rather the machine than the model
        entry[0] += (units - entry[0]) * share
        entry[1] += (plain_ns - entry[1]) * share
        entry[2] = seen + 1.0
        if seen < 2 * _TRUST or not seen % _REDRAW:
            self._draw()

    def state(self) -> LearntCost:
        """What is worth keeping. The level is of this hour and is not."""
        pairs = zip(self._units, self._times, strict=True)
        points = tuple([(round(units, 3), round(taken_ns, 1)) for units, taken_ns in pairs])
        return LearntCost(points, round(self._spread, 4), self.batches)

    def points(self) -> list[tuple[float, float]]:
        """(units, nanoseconds) as they are right now, level included."""
        return [(u, t * self._level) for u, t in zip(self._units, self._times, strict=True)]

    def on_curve(self, units: float) -> float:
        """The time of a batch of ``units`` when the machine is as it usually is."""
        taken_ns = self._drawn.get(units)
        if taken_ns is None:
            if len(self._drawn) >= _DRAWN_MAX:
                self._drawn.clear()
            taken_ns = self._drawn[units] = self._drawn_at(units)
        return taken_ns

    def _drawn_at(self, units: float) -> float:
        known, times = self._units, self._times
        if len(known) < 2:
            if not known:
                return 0.0
            # One size says nothing about the slope: half of its time is taken to be fixed.
            return times[0] * max(1.0, 0.5 + 0.5 * units / known[0])
        index = min(max(bisect_left(known, units), 1), len(known) - 1)
        taken_ns = times[index] + (units - known[index]) * _slope(known, times, index)
        # Below the smallest point the line may lead nowhere.
        return max(taken_ns, 0.5 * times[0])

    def _draw(self) -> None:
        """The curve through the points; time may not fall where work grows."""
        self._drawn.clear()
        entries = sorted(self._bins.values())
        self._units = [entry[0] for entry in entries]
        times: list[float] = []
        for entry in entries:
            times.append(max(entry[1], times[-1]) if times else entry[1])
        self._times = times


def _bin_of(units: float) -> int:
    """Two for each doubling."""
    mantissa, exponent = frexp(units)
    return 2 * exponent + (mantissa >= 0.75)


def _slope(units: list[float], times: list[float], index: int) -> float:
    return (times[index] - times[index - 1]) / (units[index] - units[index - 1])


def _scaled_units(target_ns: float, units: list[float], times: list[float]) -> float:
    return 0.0 if target_ns < times[0] else units[0] * (2.0 * target_ns / times[0] - 1.0)
