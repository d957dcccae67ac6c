"""A seed makes a scenario out of everything that can happen; the laws must hold in all of them."""

from __future__ import annotations

import random

import msgspec

from headrace.core.events import BatchLimits, TenantsChanged, TenantTerms
from headrace.core.scheduler import Scheduler
from headrace.simulate import faults
from headrace.simulate.curves import MS, Curve
from headrace.simulate.laws import LawBroken, Laws
from headrace.simulate.outcome import Outcome
from headrace.simulate.simulator import Scenario, SimulatedModel, Simulation
from headrace.simulate.workload import NS, Source, merged

_TIMEOUT_NS = 2 * NS
"""Of every request, so that whatever breaks, each must end."""


class Verdict(msgspec.Struct, frozen=True):
    """``broken`` "": all laws held."""

    seed: int
    requests: int
    broken: str = ""
    history: tuple[str, ...] = ()


def try_seed(seed: int, *, requests: int = 1500) -> Verdict:
    """Runs the scenario of one seed under the laws."""
    scenario = scenario_of(seed, requests)
    scheduler = Scheduler()
    laws = Laws(scheduler, every=7)
    simulation = Simulation(scenario, scheduler, (laws,))
    try:
        outcome = simulation.run()
        laws.over()
        _check(outcome, len(scenario.arrivals))
    except LawBroken as broken:
        return Verdict(seed, simulation.requests, broken.law, tuple(broken.history))
    except Exception as error:  # noqa: BLE001 - a crash of the core breaks every law
        return Verdict(seed, simulation.requests, f"{type(error).__name__}: {error}")
    return Verdict(seed, simulation.requests)


def _check(outcome: Outcome, arrivals: int) -> None:
    offered = outcome.total().offered
    if offered != arrivals:
        raise LawBroken(f"{arrivals} arrived and {offered} ended", [])


def scenario_of(seed: int, requests: int) -> Scenario:
    """The same for the same seed; about so many requests."""
    chance = random.Random(f"{seed}/scenario")
    instances = chance.choice([1, 1, 2, 2, 3, 4, 8])
    tenants = _tenants(chance)
    models = tuple([_model(chance, number) for number in range(1, chance.choice([1, 1, 2, 3]) + 1)])
    capacity = sum([_capacity(model, instances) for model in models]) / len(models)
    rate = capacity * chance.choice([0.1, 0.5, 0.9, 1.1, 2.0, 4.0])
    span_ns = int(requests / rate * NS)
    sources = [_source(chance, model, rate / len(models), span_ns, tenants) for model in models]
    if tenants is not None:
        sources.append(_source(chance, models[0], rate, span_ns, tenants))
    return Scenario(
        models,
        instances,
        merged(sources, seed),
        seed,
        tenants,
        tuple(_faults(chance, models, instances, span_ns)),
        failure_rate=chance.choice([0.0, 0.0, 0.02, 0.2]),
    )


def _tenants(chance: random.Random) -> TenantsChanged | None:
    if chance.random() < 0.5:
        return None
    terms = {
        number: TenantTerms(chance.choice([0.5, 1.0, 3.0]), chance.choice([0, 0, 2]))
        for number in range(1, chance.randint(2, 5))
    }
    return TenantsChanged(terms, TenantTerms(chance.choice([0.1, 1.0])))


def _model(chance: random.Random, number: int) -> SimulatedModel:
    tokens = chance.random() < 0.35
    fixed = chance.choice([0.2, 1.0, 5.0, 8.0])
    each = chance.choice([0.002, 0.01, 0.05]) if tokens else chance.choice([0.05, 0.2, 1.0, 4.0])
    return SimulatedModel(
        number,
        Curve(fixed * MS, each * MS, tokens),
        _limits(chance, tokens=tokens),
        noise=chance.choice([0.0, 0.05, 0.3]),
        known=chance.random() < 0.7,
    )


def _limits(chance: random.Random, *, tokens: bool) -> BatchLimits:
    return BatchLimits(
        max_rows=chance.choice([1, 4, 32]) if not tokens else 256,
        max_padded_tokens=chance.choice([256, 1024]) if tokens else 0,
        batch_overhead_tokens=16 if tokens else 0,
        max_queue_size=chance.choice([4, 64, 4096]),
        max_concurrency=chance.choice([1, 2, 8]),
        priority_levels=chance.choice([0, 0, 3]),
        max_queue_rows=chance.choice([0, 0, 40]),
        max_queue_tokens=chance.choice([0, 0, 2000]) if tokens else 0,
        strict_slo=chance.random() < 0.2,
        min_share=chance.choice([0.0, 0.0, 0.3]),
    )


def _capacity(model: SimulatedModel, instances: int) -> float:
    """Requests a second in batches as large as may be, about."""
    limits = model.limits
    usable = min(instances, limits.max_concurrency)
    if limits.max_padded_tokens:
        return (
            usable * limits.max_padded_tokens / 30 / model.costs.ns(limits.max_padded_tokens) * NS
        )
    return usable * limits.max_rows / model.costs.ns(limits.max_rows) * NS


def _source(
    chance: random.Random,
    model: SimulatedModel,
    rate: float,
    span_ns: int,
    tenants: TenantsChanged | None,
) -> Source:
    tokens = bool(model.limits.max_padded_tokens)
    smallest_ns = model.costs.ns(30 if tokens else 1)
    return Source(
        rate=rate,
        process=chance.choice(["poisson", "bursty", "diurnal"]),
        period_s=max(0.01, span_ns / NS / 2),
        model=model.number,
        tenant=chance.randint(0, 5) if tenants is not None else 0,
        priority=chance.randint(0, 4),
        rows=chance.choice([(1, 1), (1, 1), (1, 3), (1, 40)]),
        lengths=(20.0, 0.8) if tokens else None,
        slo_ns=int(smallest_ns * chance.choice([0, 0, 0.5, 1.5, 3, 10])),
        timeout_ns=chance.choice([_TIMEOUT_NS, max(1, int(smallest_ns * 4))]),
        leaves=chance.choice([0.0, 0.0, 0.3]),
        patience_ns=int(smallest_ns * 3),
        start_ns=0,
        end_ns=span_ns,
    )


def _faults(
    chance: random.Random, models: tuple[SimulatedModel, ...], instances: int, span_ns: int
) -> list[faults.Fault]:
    found: list[faults.Fault] = []
    for _ in range(chance.choice([0, 0, 1, 3, 6])):
        at_ns = int(chance.random() * span_ns)
        instance = chance.randrange(instances)
        for_ns = int(chance.random() * span_ns / 5) + 1
        kind = chance.randrange(6)
        if kind == 0:
            found.append(faults.Slowdown(at_ns, instance, for_ns, chance.choice([2.0, 10.0])))
        elif kind == 1:
            found.append(faults.Hang(at_ns, instance, for_ns))
        elif kind == 2:
            found.append(faults.Crash(at_ns, instance, for_ns))
        elif kind == 3:
            found.append(faults.CancelStorm(at_ns, chance.choice([0.3, 1.0])))
        elif kind == 4:
            found.append(faults.ClockJump(at_ns, chance.choice([-1, 1]) * for_ns))
        else:
            model = chance.choice(models)
            tokens = bool(model.limits.max_padded_tokens)
            found.append(faults.NewLimits(at_ns, model.number, _limits(chance, tokens=tokens)))
    return found
