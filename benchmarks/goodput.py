"""How much is answered in time: ours beside fixed windows, on emulated models.

The scheduler is the server's own, under a virtual clock (``headrace.simulate``); the others are
Triton's dynamic batcher with windows of 0, 1, 5 and 10 ms. A batch of b rows takes ``5 + b`` ms
(steep) or ``8 + 0.2 b`` (flat), at most 32 rows; nothing is tuned to a curve, and the scheduler
knows no more than measuring a batch of 1 and one of 32 tells. The rates are also shown for batches
that vary by 5 %, as on a shared machine; the pictures and what is past saturation have that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import msgspec

from benchmarks.results import Goal, Result, Spread
from benchmarks.settings import Settings
from headrace.core.events import BatchLimits, TenantsChanged, TenantTerms
from headrace.core.scheduler import Scheduler
from headrace.simulate.curves import read_curve
from headrace.simulate.outcome import Outcome, Tally, report
from headrace.simulate.peers import FixedWindow, Policy
from headrace.simulate.picture import Line, draw
from headrace.simulate.simulator import Scenario, SimulatedModel, Simulation
from headrace.simulate.workload import NS, Arrival, Source, merged

NAME = "goodput"

ROWS_MAX = 32
REQUESTS = 20_000
IN_TIME = 0.99
WINDOWS_MS = (0, 1, 5, 10)
NOISE = 0.05
LOADS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)


class Case(msgspec.Struct, frozen=True):
    """``instances`` share the load; answers are wanted within ``slo_ms``."""

    instances: int
    slo_ms: int
    process: str
    cost: str

    @property
    def name(self) -> str:
        return f"{self.cost} ms, {self.instances} x, {self.slo_ms} ms, {self.process}"

    @property
    def capacity(self) -> float:
        """Requests a second in full batches."""
        return self.instances * ROWS_MAX / read_curve(self.cost).ns(ROWS_MAX) * NS


CASES = (
    Case(1, 20, "poisson", "5+b"),
    Case(1, 20, "bursty", "5+b"),
    Case(1, 50, "poisson", "5+b"),
    Case(8, 20, "poisson", "5+b"),
    Case(8, 20, "poisson", "8+0.2b"),
    Case(8, 20, "bursty", "5+b"),
    Case(8, 20, "bursty", "8+0.2b"),
    Case(8, 50, "poisson", "5+b"),
)
"""The curves of the table that the plan was made from."""


def run(settings: Settings) -> Iterator[Result]:
    """Rates within the SLO, overload, tenants, and pictures."""
    for case in CASES:
        yield best_rates(case, settings)
    for case in CASES:
        yield overload(case, settings)
    yield from tenants(settings)
    yield speed(settings)


def best_rates(case: Case, settings: Settings) -> Result:
    """The highest rate with 99 % in time: ours and each window, by bisection, over some seeds."""
    count = settings.scaled(REQUESTS, least=2000)
    seeds = range(settings.seed, settings.seed + max(1, settings.rounds // 2))
    ours = [_most(case, Scheduler, count, seed) for seed in seeds]
    noisy = [_most(case, Scheduler, count, seed, NOISE) for seed in seeds[:1]]
    noisy_best = [
        max(_most(case, _window(window), count, seed, NOISE) for window in WINDOWS_MS)
        for seed in seeds[:1]
    ]
    windows = {
        window: [_most(case, _window(window), count, seed) for seed in seeds]
        for window in WINDOWS_MS
    }
    best = [max(rates[i] for rates in windows.values()) for i in range(len(ours))]
    middle = [median(rates[i] for rates in windows.values()) for i in range(len(ours))]
    beside_best = Spread.of(mine / its for mine, its in zip(ours, best, strict=True))
    beside_middle = Spread.of(mine / its for mine, its in zip(ours, middle, strict=True))
    least = 1.3 if case.process == "bursty" and case.cost == "5+b" else 0.95
    goals = [Goal(f"beside the best window: {case.name}", beside_best, least, at_least=True)]
    if case.capacity >= 1.5 * median(middle):  # else nothing that there is could do it
        goals.append(
            Goal(f"beside the median window: {case.name}", beside_middle, 1.5, at_least=True)
        )
    return Result(
        benchmark=NAME,
        case=f"{case.name}: requests/s with 99 % in time",
        figures={
            "ours": Spread.of(ours),
            **{f"{window} ms": Spread.of(rates) for window, rates in windows.items()},
            "ours / best": beside_best,
            "ours / median": beside_middle,
            "ours / best, 5 % noise": Spread.of(
                a / b for a, b in zip(noisy, noisy_best, strict=True)
            ),
            "capacity": round(case.capacity),
        },
        goals=tuple(goals),
    )


def overload(case: Case, settings: Settings) -> Result:
    """What is answered in time from a fifth to three times the capacity."""
    count = settings.scaled(REQUESTS, least=2000)
    policies: dict[str, Callable[[], Policy]] = {"headrace": Scheduler}
    policies |= {f"window {window} ms": _window(window) for window in WINDOWS_MS}
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
    peak, kept, p99, at_once = 0.0, {}, {}, {}
    for load in LOADS:
        arrivals = _arrivals(case, load * case.capacity, count, settings.seed)
        for name, make in policies.items():
            told = report(
                _run(case, make(), arrivals, noise=NOISE), case.instances, arrivals[-1].at_ns
            )
            lines[name].append((told.offered_rps, told.good_rps))
            if name == "headrace":
                peak = max(peak, told.good_rps)
                kept[load] = told.good_rps / peak
                p99[load] = told.total.p99_ms
                at_once[load] = told.refused_at_once
    slug = f"{case.cost}-{case.instances}x-{case.slo_ms}ms-{case.process}".replace("+", "_")
    title = (
        f"{case.cost} ms a batch, {case.instances} instances, SLO {case.slo_ms} ms, {case.process}"
    )
    picture = draw(
        [Line(name, points) for name, points in lines.items()],
        title=title,
        x_label="offered requests/s",
        y_label="answered in time /s",
        diagonal=True,
    )
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / f"goodput-{slug}.svg").write_text(picture)
    past = [load for load in LOADS if load >= 2.0]
    least = Spread.of(kept[load] for load in past)
    worst = Spread.of(p99[load] for load in past)
    return Result(
        benchmark=NAME,
        case=f"{case.name}: past saturation",
        figures={
            **{f"in time at {load:g} x": round(kept[load], 3) for load in (1.0, 2.0, 3.0)},
            "p99 ms of accepted": worst,
            "refused at arrival": Spread.of(at_once[load] for load in past),
        },
        goals=(
            Goal(f"goodput at 2 and 3 x, of its peak: {case.name}", least, 0.95, at_least=True),
            Goal(f"p99 of accepted: {case.name}", worst, float(case.slo_ms), "ms"),
        ),
    )


def tenants(settings: Settings) -> Iterator[Result]:
    """Ten tenants of equal shares; one of them at ten times its share instead of once."""
    for slo_ms in (50, 0):
        yield _greedy(Case(2, slo_ms, "poisson", "5+b"), settings)


def _greedy(case: Case, settings: Settings) -> Result:
    seeds = range(settings.seed, settings.seed + max(2, settings.rounds // 2))
    before = [_polite(case, seed, 1.0, settings) for seed in seeds]
    after = [_polite(case, seed, 10.0, settings) for seed in seeds]
    growth = Spread.of(b.p99_ms / a.p99_ms for a, b in zip(before, after, strict=True))
    in_time = Spread.of(b.in_time / a.in_time for a, b in zip(before, after, strict=True))
    what = (
        f"nine polite tenants, one greedy, {f'SLO {case.slo_ms} ms' if case.slo_ms else 'no SLO'}"
    )
    goals = (
        Goal("p99 of the polite, greedy at 10 x its share", growth, 1.2),
        Goal("of the polite in time, beside before", in_time, 0.97, at_least=True),
    )
    return Result(
        benchmark=NAME,
        case=what,
        figures={
            "p99 ms, greedy at its share": Spread.of(each.p99_ms for each in before),
            "p99 ms, greedy at 10 x": Spread.of(each.p99_ms for each in after),
            "growth": growth,
            "polite in time": Spread.of(each.in_time for each in after),
            "greedy in time": Spread.of(each.greedy_in_time for each in after),
        },
        goals=goals if case.slo_ms else (),
    )


class _Shares(msgspec.Struct, frozen=True):
    p99_ms: float
    in_time: float
    greedy_in_time: float


def _polite(case: Case, seed: int, greedy: float, settings: Settings) -> _Shares:
    """Nine tenants at seven tenths of their shares, and one at ``greedy`` times its own."""
    share = case.capacity / 10
    span_ns = int(settings.scaled(60, least=5) * NS)
    sources = [
        Source(
            rate=(greedy if number == 1 else 0.7) * share,
            tenant=number,
            slo_ns=case.slo_ms * 1_000_000,
            timeout_ns=60 * NS,
            end_ns=span_ns,
        )
        for number in range(1, 11)
    ]
    terms = TenantsChanged({}, TenantTerms())
    outcome = _run(case, Scheduler(), merged(sources, seed), terms=terms)
    polite = Tally()
    for (_, tenant, _), tally in outcome.groups.items():
        if tenant != 1:
            polite.add(tally)
    one = outcome.groups[1, 1, 0]
    return _Shares(
        polite.percentile_ms(0.99), polite.in_time / polite.offered, one.in_time / one.offered
    )


def speed(settings: Settings) -> Result:
    """How much faster than time the simulator is: 2,000 requests/s on four instances."""
    import time

    case = Case(4, 50, "poisson", "5+b")
    count = settings.scaled(100_000, least=10_000)
    arrivals = _arrivals(case, 2000.0, count, settings.seed)
    factors: list[float] = []
    for _ in range(max(1, settings.rounds // 2)):
        started_s = time.process_time()
        _run(case, Scheduler(), arrivals)
        factors.append(arrivals[-1].at_ns / 1e9 / (time.process_time() - started_s))
    factor = Spread.of(factors)
    return Result(
        benchmark=NAME,
        case="simulator, 2,000 requests/s",
        figures={"times real time": factor},
        goals=(Goal("simulated seconds per CPU second", factor, 50.0, at_least=True),),
    )


def _window(window_ms: int) -> Callable[[], Policy]:
    return lambda: FixedWindow(window_ms * 1_000_000, ROWS_MAX)


def _most(
    case: Case, make: Callable[[], Policy], count: int, seed: int, noise: float = 0.0
) -> float:
    low, high = 0.0, 1.3 * case.capacity
    for _ in range(11):
        rate = (low + high) / 2
        outcome = _run(case, make(), _arrivals(case, rate, count, seed), noise=noise)
        if outcome.total().in_time >= IN_TIME * count:
            low = rate
        else:
            high = rate
    return max(low, 1.0)


def _arrivals(case: Case, rate: float, count: int, seed: int) -> list[Arrival]:
    source = Source(
        rate=rate,
        process=case.process,
        slo_ns=case.slo_ms * 1_000_000,
        timeout_ns=60 * NS,
        end_ns=int(3 * count / rate * NS) + NS,
    )
    return merged([source], seed)[:count]


def _run(
    case: Case,
    policy: Policy,
    arrivals: list[Arrival],
    *,
    noise: float = 0.0,
    terms: TenantsChanged | None = None,
) -> Outcome:
    limits = BatchLimits(
        max_rows=ROWS_MAX, max_concurrency=case.instances, max_queue_size=1_000_000
    )
    model = SimulatedModel(1, read_curve(case.cost), limits, noise=noise)
    scenario = Scenario((model,), case.instances, arrivals, seed=1, tenants=terms)
    return Simulation(scenario, policy).run()
