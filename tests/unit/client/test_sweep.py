"""The search for saturation, against a server that is a formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client.arrivals import make_schedule
from headrace.client.journal import RunResult
from headrace.client.processes import Meter
from headrace.client.samples import Samples
from headrace.client.spec import ArrivalSpec, BenchSpec
from headrace.client.summary import Context, summarise
from headrace.client.sweep import Sweeper, held, rate_of

SPEC = BenchSpec(
    url="http://127.0.0.1:1",
    model="m",
    scenario="server",
    arrivals=ArrivalSpec(process="constant", rate=1),
    duration_s=2.0,
    slo_ms=100.0,
)


class FormulaServer:
    """One queue, ``capacity`` requests a second; ``estimate``: what a closed loop sees of it."""

    def __init__(self, capacity: float, estimate: float, stop_after: int = 10**9) -> None:
        self.spec = SPEC
        self.interrupted = False
        self.asked: list[BenchSpec] = []
        self._service_ns = int(1e9 / capacity)
        self._estimate = estimate
        self._stop_after = stop_after

    async def run(self, spec: BenchSpec, watch: object) -> RunResult:
        assert watch is None
        self.asked.append(spec)
        if len(self.asked) > self._stop_after:
            self.interrupted = True
        return self._closed(spec) if spec.scenario == "closed" else self._open(spec)

    def _closed(self, spec: BenchSpec) -> RunResult:
        samples = Samples()
        count = max(1, int(self._estimate))
        for number in range(count):
            samples.succeed(samples.take(0, 0), int((number + 1) / self._estimate * 1e9))
        return self._result(spec, samples, None)

    def _open(self, spec: BenchSpec) -> RunResult:
        schedule = make_schedule(
            spec.arrivals, duration_s=spec.duration_s, requests=None, seed=spec.seed
        )
        samples, free_at = Samples(), 0
        for due in schedule.offsets_ns.tolist():
            free_at = max(due, free_at) + self._service_ns
            samples.succeed(samples.take(due, due), free_at)
        return self._result(spec, samples, schedule.horizon_ns)

    def _result(self, spec: BenchSpec, samples: Samples, horizon_ns: int | None) -> RunResult:
        samples.ended_ns = max(samples.done_ns)
        context = Context(
            percentile=99.0,
            slo_ms=spec.slo_ms,
            horizon_ns=horizon_ns,
            rows=np.ones(len(samples), np.int64),
            interrupted=False,
            meter=Meter(),
        )
        return RunResult(
            spec=spec,
            summary=summarise(samples, context),
            server="",
            distinct_bodies=1,
            mean_body_bytes=1.0,
            started_at="",
        )


def sweeper(server: FormulaServer, seen: list[RunResult] | None = None) -> Sweeper:
    return Sweeper(server, lambda spec: None, ([] if seen is None else seen).append)  # type: ignore[arg-type]


@pytest.mark.parametrize("capacity", [30.0, 400.0])
@pytest.mark.parametrize("error", [0.2, 0.7, 1.0, 1.4, 6.0])
async def test_saturation_is_found_from_good_and_bad_estimates(capacity, error):
    sweep = await sweeper(FormulaServer(capacity, capacity * error)).find()
    assert sweep.best is not None
    assert any(not held(result) for result in sweep.results)
    # Within 2 s and 100 ms of patience a server may be overrun by a few percent.
    assert capacity * 0.75 <= rate_of(sweep.best) <= capacity * 1.15
    rates = [rate_of(result) for result in sweep.results]
    assert rates == sorted(rates)
    assert len(rates) <= 20


async def test_a_list_of_rates_is_run_in_rising_order_and_told_one_by_one():
    seen: list[RunResult] = []
    sweep = await sweeper(FormulaServer(100, 100), seen).run([50, 20, 400])
    assert [rate_of(result) for result in seen] == [20, 50, 400]
    assert [held(result) for result in sweep.results] == [True, True, False]
    assert sweep.best is not None
    assert rate_of(sweep.best) == 50
    assert sweep.capacity_rps is None


@given(st.integers(0, 12))
async def test_an_interruption_ends_the_sweep_with_what_there_is(stop_after):
    server = FormulaServer(100, 100, stop_after)
    sweep = await sweeper(server).find()
    assert len(server.asked) <= stop_after + 1
    assert len(sweep.results) <= stop_after + 1


async def test_every_run_of_a_sweep_has_the_same_seed_and_its_own_rate():
    server = FormulaServer(100, 100)
    await sweeper(server).run([10, 20])
    assert [spec.arrivals.rate for spec in server.asked] == [10, 20]
    assert {spec.seed for spec in server.asked} == {SPEC.seed}
    assert {spec.duration_s for spec in server.asked} == {2.0}
