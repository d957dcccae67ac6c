"""One seed, one history; what a simulation reports is what was decided."""

from __future__ import annotations

import pytest

from headrace.core.events import BatchLimits, LimitsChanged, TenantsChanged, TenantTerms
from headrace.core.scheduler import Scheduler
from headrace.simulate.curves import MS, Curve, read_curve
from headrace.simulate.faults import CancelStorm, ClockJump, Crash, Hang, Slowdown
from headrace.simulate.fuzzing import scenario_of, try_seed
from headrace.simulate.laws import LawBroken, Laws
from headrace.simulate.outcome import report
from headrace.simulate.peers import FixedWindow
from headrace.simulate.simulator import Scenario, SimulatedModel, Simulation
from headrace.simulate.workload import NS, Arrival, Source, merged
from tests.fuzzing import examples

COST = Curve(5 * MS, 1 * MS)


def scenario(*sources, instances=1, seed=3, **more) -> Scenario:
    limits = BatchLimits(max_rows=32, max_concurrency=instances, max_queue_size=100_000)
    model = SimulatedModel(1, COST, limits)
    return Scenario((model,), instances, merged(list(sources), seed), seed, **more)


def poisson(rate, seconds=5.0, slo_ms=20, **more) -> Source:
    slo_ns = int(slo_ms * MS)
    return Source(rate=rate, slo_ns=slo_ns, timeout_ns=60 * NS, end_ns=int(seconds * NS), **more)


def ran(what: Scenario, policy=None):
    scheduler = policy or Scheduler()
    watchers = (Laws(scheduler, every=50),) if isinstance(scheduler, Scheduler) else ()
    simulation = Simulation(what, scheduler, watchers)
    outcome = simulation.run()
    for laws in watchers:
        laws.over()
    assert outcome.unanswered == 0
    assert outcome.total().offered == len(what.arrivals)
    return outcome


def test_a_lone_request_takes_what_it_costs():
    what = Scenario(
        (SimulatedModel(1, COST, BatchLimits(max_rows=32)),),
        1,
        [Arrival(at_ns=7, slo_ns=20 * 10**6)],
    )

    assert ran(what).total().latencies_ns == [6 * 10**6]


def test_the_same_seed_gives_the_same_history_and_another_one_another():
    first, again, other = [
        ran(scenario(poisson(300), seed=seed)).total().latencies_ns for seed in (1, 1, 2)
    ]

    assert first == again != other


def test_what_arrives_together_is_decided_together():
    arrivals = [Arrival(at_ns=0, slo_ns=10**9) for _ in range(3)]
    what = Scenario((SimulatedModel(1, COST, BatchLimits(max_rows=32)),), 1, arrivals)

    assert ran(what).total().latencies_ns == [8 * 10**6] * 3


@pytest.mark.parametrize("instances", [1, 4])
def test_past_saturation_as_much_is_in_time_as_before_and_refusals_come_at_once(instances):
    capacity = 865 * instances
    told = {}
    for load in (1.0, 2.0, 3.0):
        what = scenario(poisson(capacity * load, seconds=4.0), instances=instances)
        told[load] = report(ran(what), instances, 4 * NS)

    peak = 0.0
    for load, run in told.items():
        peak = max(peak, run.good_rps)
        assert run.good_rps >= 0.95 * peak, load
        assert run.total.p99_ms <= 20
    assert min(told[load].refused_at_once for load in (2.0, 3.0)) > 0.95


def test_a_fixed_window_collapses_where_ours_does_not():
    what = scenario(poisson(1200, seconds=4.0))

    assert ran(what, FixedWindow(5 * 10**6)).total().in_time < 200
    assert ran(what).total().in_time > 1500


def test_a_fixed_window_waits_for_company_and_not_longer():
    arrivals = [Arrival(at_ns=0), Arrival(at_ns=2 * 10**6), Arrival(at_ns=50 * 10**6)]
    what = Scenario((SimulatedModel(1, COST, BatchLimits(max_rows=32)),), 1, arrivals)

    assert ran(what, FixedWindow(5 * 10**6)).total().latencies_ns == [
        12_000_000,
        10_000_000,
        11_000_000,
    ]


def test_a_greedy_tenant_does_not_hurt_the_polite():
    """Nine at a tenth of what they are entitled to, one at ten times that."""
    terms = TenantsChanged({}, TenantTerms())
    polite = [poisson(30, slo_ms=1000, tenant=number) for number in range(2, 11)]
    before = ran(scenario(*polite, tenants=terms)).total().percentile_ms(0.99)
    outcome = ran(scenario(*polite, poisson(3000, slo_ms=1000, tenant=1), tenants=terms))

    after = max(outcome.groups[1, number, 0].percentile_ms(0.99) for number in range(2, 11))
    assert sum(outcome.groups[1, number, 0].in_time for number in range(2, 11)) > 1250
    assert after < before + 2 * 37, "at most two of the largest batches more"


def test_a_slower_machine_is_followed():
    what = scenario(
        poisson(300, seconds=8.0, slo_ms=60), faults=(Slowdown(2 * NS, 0, 4 * NS, 3.0),)
    )
    outcome = ran(what)

    assert outcome.total().late < 0.02 * len(what.arrivals)
    assert outcome.total().in_time > 0.5 * len(what.arrivals)


@pytest.mark.parametrize(
    "fault",
    [
        Hang(NS, 0, NS),
        Crash(NS, 0, NS),
        CancelStorm(NS, 1.0),
        ClockJump(NS, NS),
        ClockJump(NS, -NS),
    ],
)
def test_whatever_breaks_every_request_ends(fault):
    ran(scenario(poisson(600, seconds=3.0), instances=2, faults=(fault,), failure_rate=0.05))


def test_learnt_from_nothing_it_soon_keeps_its_promises():
    limits = BatchLimits(max_rows=32)
    model = SimulatedModel(1, COST, limits, noise=0.1, known=False)
    arrivals = merged([poisson(250, seconds=10.0, slo_ms=40)], 5)
    outcome = ran(Scenario((model,), 1, arrivals, 5))

    assert outcome.total().in_time > 0.98 * len(arrivals)


@pytest.mark.parametrize("seed", range(12))
def test_random_histories_obey_the_laws(seed):
    assert try_seed(seed, requests=400).broken == ""


@pytest.mark.slow
def test_many_random_histories_obey_the_laws():
    verdicts = map(try_seed, range(1000, 1000 + examples(60)))
    assert [verdict for verdict in verdicts if verdict.broken] == []


def test_a_seed_is_one_scenario():
    first, second = scenario_of(11, 300), scenario_of(11, 300)

    assert first == second


class Broken(Scheduler):
    """Answers the first batch twice."""

    def handle(self, event, *, now_ns):
        actions = super().handle(event, now_ns=now_ns)
        ended = [action for action in actions if type(action).__name__ == "CompleteRequests"]
        return actions + ended[:1]


class Forgetful(Scheduler):
    """Loses whoever expires."""

    def handle(self, event, *, now_ns):
        actions = super().handle(event, now_ns=now_ns)
        return [action for action in actions if type(action).__name__ != "RejectRequest"]


def test_the_laws_see_an_answer_given_twice():
    scheduler = Broken()
    what = scenario(poisson(300))
    with pytest.raises((LawBroken, KeyError)):
        Simulation(what, scheduler, (Laws(scheduler),)).run()


def test_the_laws_see_a_request_that_never_ends():
    scheduler = Forgetful()
    laws = Laws(scheduler)
    Simulation(scenario(poisson(900)), scheduler, (laws,)).run()

    with pytest.raises(LawBroken, match="never ended"):
        laws.over()


def test_the_laws_see_a_batch_beyond_its_limits():
    scheduler = Scheduler()
    laws = Laws(scheduler)
    simulation = Simulation(scenario(poisson(800, seconds=1.0)), scheduler, (laws,))
    laws.saw(LimitsChanged(1, BatchLimits(max_rows=1)), [], 0)  # the scheduler was told otherwise
    laws._before = lambda event: (
        None if type(event).__name__ == "ModelAdded" else Laws._before(laws, event)
    )

    with pytest.raises(LawBroken, match="too many rows"):
        simulation.run()


@pytest.mark.parametrize(
    ("text", "units", "expected_ms", "tokens"),
    [
        ("5+b", 3, 8, False),
        ("8+0.2b", 10, 10, False),
        ("3 + 0.01*t", 100, 4, True),
        ("7", 9, 7, False),
    ],
)
def test_costs_as_people_write_them(text, units, expected_ms, tokens):
    curve = read_curve(text)

    assert curve.ns(units) == pytest.approx(expected_ms * MS)
    assert curve.tokens is tokens
