"""Several rates, one after the other: how latency grows with load, and where it breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from headrace.client.benchmark import Benchmark
from headrace.client.drivers import Watch
from headrace.client.journal import RunResult
from headrace.client.spec import DEFAULT_SWEEP_DURATION_S, ArrivalSpec, BenchSpec

_PROBE_CONNECTIONS = 64
"""The closed loop that estimates capacity: enough in flight to fill any batch."""

_SHARES = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2)
"""Of the estimated capacity: sparse where nothing happens, dense where the curve bends."""

_MAX_STEPS_UP = 5
"""By half each, beyond the estimate, where even the highest rate held."""

_MAX_STEPS_DOWN = 2
"""To a quarter each, where even the lowest rate did not hold. What does not hold at less than
one percent of capacity does not fail because of load."""

_MIN_REQUESTS = 20
"""A rate that brings fewer in a run's time says nothing."""

_REFINEMENTS = 3
"""Halvings between the highest rate that held and the lowest that did not."""

OnResult = Callable[[RunResult], None]
WatchFor = Callable[[BenchSpec], Watch | None]


class Sweep(msgspec.Struct, frozen=True):
    """Results by rising rate; ``capacity_rps`` is the estimate ``auto`` began with."""

    results: tuple[RunResult, ...]
    capacity_rps: float | None = None

    @property
    def best(self) -> RunResult | None:
        """The highest rate below which every rate held; None where the lowest did not."""
        best = None
        for result in self.results:
            if not held(result):
                break
            best = result
        return best


def held(result: RunResult) -> bool:
    """To the end of the run the server kept up, and met the SLO where there is one."""
    slo = result.summary.slo
    whole = not result.interrupted
    return whole and result.summary.kept_up and (slo is None or slo.met)


class Sweeper:
    """Runs a sweep on an opened and warmed-up benchmark.

    ``watch_for`` makes the progress display of a run; ``on_result`` is told each result.
    """

    def __init__(self, benchmark: Benchmark, watch_for: WatchFor, on_result: OnResult) -> None:
        self._benchmark = benchmark
        self._watch_for = watch_for
        self._on_result = on_result
        self._results: list[RunResult] = []

    async def run(self, rates: Sequence[float]) -> Sweep:
        """These rates, in rising order. An interruption ends it with what there is."""
        for rate in sorted(rates):
            await self._run_at(rate)
        return self._sweep(None)

    async def find(self) -> Sweep:
        """Estimates capacity, walks up to it and past it, then narrows down where it breaks."""
        capacity = await self._capacity()
        if capacity is None:
            return self._sweep(None)
        for share in _SHARES:
            result = await self._run_at(capacity * share)
            if result is None or not result.summary.kept_up:
                break
        await self._extend()
        await self._refine()
        return self._sweep(capacity)

    async def _capacity(self) -> float | None:
        """Answers per second of a closed loop; None if interrupted or nothing was answered."""
        spec = self._benchmark.spec
        spec = msgspec.structs.replace(
            spec,
            scenario="closed",
            arrivals=ArrivalSpec(),
            connections=_PROBE_CONNECTIONS,
            duration_s=(spec.duration_s or DEFAULT_SWEEP_DURATION_S) / 2,
            requests=None,
        )
        result = await self._benchmark.run(spec, self._watch_for(spec))
        if self._benchmark.interrupted or not result.summary.ok:
            return None
        return result.summary.answered_rps

    async def _run_at(self, rate: float) -> RunResult | None:
        if self._benchmark.interrupted:
            return None
        spec = self._benchmark.spec
        duration_s = spec.duration_s
        if duration_s is None and spec.requests is None:
            duration_s = DEFAULT_SWEEP_DURATION_S
        spec = msgspec.structs.replace(
            spec,
            arrivals=msgspec.structs.replace(spec.arrivals, rate=float(f"{rate:.4g}")),
            duration_s=duration_s,
        )
        result = await self._benchmark.run(spec, self._watch_for(spec))
        self._results.append(result)
        self._on_result(result)
        return result

    def _edges(self) -> tuple[float | None, float | None]:
        """``(highest rate that held, lowest that did not)``."""
        good = [rate_of(result) for result in self._results if held(result)]
        bad = [rate_of(result) for result in self._results if not held(result)]
        return max(good, default=None), min(bad, default=None)

    async def _extend(self) -> None:
        for step in range(_MAX_STEPS_UP):
            good, bad = self._edges()
            if good is not None and bad is not None:
                return
            rate = bad / 4 if bad is not None else (good or 1.0) * 1.5
            duration_s = self._benchmark.spec.duration_s or DEFAULT_SWEEP_DURATION_S
            down = bad is not None
            if down and (step >= _MAX_STEPS_DOWN or rate * duration_s < _MIN_REQUESTS):
                return
            if await self._run_at(rate) is None:
                return

    async def _refine(self) -> None:
        for _ in range(_REFINEMENTS):
            good, bad = self._edges()
            # A noisy machine can break a low rate and hold a higher one: nothing to halve then.
            if good is None or bad is None or bad <= good * 1.05:
                return
            if await self._run_at((good + bad) / 2) is None:
                return

    def _sweep(self, capacity: float | None) -> Sweep:
        return Sweep(tuple(sorted(self._results, key=rate_of)), capacity)


def rate_of(result: RunResult) -> float:
    """The rate that was asked for."""
    return result.spec.arrivals.rate or result.summary.offered_rps
