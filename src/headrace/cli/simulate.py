"""``headrace simulate``: the server's own scheduler under a virtual clock."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.simulate.fuzzing import Verdict
    from headrace.simulate.outcome import Line, Report
    from headrace.simulate.peers import Policy
    from headrace.simulate.simulator import Scenario
    from headrace.simulate.workload import Arrival

_EPILOG = """\
The scheduler is the server's; the clock, the requests and the machine are made up from one seed,
so a result is a command. A batch costs what --cost says, in milliseconds: "5+b" is 5 and 1 for
each row, "3+0.01t" 0.01 for each padded token, and a file of the server's cache folder profiles
what was learnt of a model there.

A trace is a CSV whose first line names its columns (time_s, and model, tenant, priority, rows,
length, slo_ms, timeout_ms where you have them), or a recording of headrace serve --record.

examples:
  headrace simulate --rate 400 --cost 5+b --slo p99=20ms
  headrace simulate --seed 7 --trace day.csv --slo p99=50ms
  headrace simulate --cost 8+0.2b --instances 8 --slo p99=20ms --sweep 2000,8000,16000,24000 \\
      --policy ours --policy fixed:5ms --policy greedy --plot goodput.svg
  headrace simulate --fuzz 1000

exit codes: 0 ok; 1 --check and the SLO was missed, or --fuzz and a law was broken; 2 usage
"""


def add_parser(subparsers: Any) -> None:
    """Adds ``simulate`` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "simulate",
        help="the same scheduler under a virtual clock: what would this load come to",
        description="Runs the server's scheduler under a virtual clock.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    load = parser.add_argument_group("load")
    load.add_argument("--trace", type=Path, metavar="FILE", help="recorded arrivals, CSV or JSONL")
    load.add_argument("--rate", type=float, metavar="R", help="requests a second, on average")
    load.add_argument("--arrivals", choices=("poisson", "bursty", "diurnal"), default="poisson")
    load.add_argument("--burst-scv", type=float, default=4.0, metavar="C2", help="of bursty (4)")
    load.add_argument("--seconds", type=float, default=60.0, metavar="S", help="how long (60)")
    load.add_argument("--sweep", metavar="R,R,...", help="several rates, one after another")
    load.add_argument(
        "--lengths", metavar="MEDIAN,SIGMA", help="log-normal lengths, for a cost in tokens"
    )
    load.add_argument("--seed", type=int, default=0)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--cost", default="5+b", metavar="MS|FILE", help="of a batch (5+b)")
    machine.add_argument("--noise", type=float, default=0.0, metavar="SIGMA", help="log-normal (0)")
    machine.add_argument("--instances", type=int, default=1, metavar="N")
    machine.add_argument("--max-rows", type=int, default=32, metavar="N", help="of a batch (32)")
    machine.add_argument(
        "--max-tokens", type=int, default=512, metavar="N", help="of a batch (512)"
    )
    machine.add_argument("--slo", metavar="p99=MS", help='such as "p99=50ms"')
    machine.add_argument("--strict", action="store_true", help="refuse what even alone is late")
    machine.add_argument(
        "--policy",
        action="append",
        metavar="NAME",
        help="ours (the default), fixed:5ms, greedy (fixed:0ms) or none; may be repeated",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="the report as JSON, a run a line")
    output.add_argument("--plot", type=Path, metavar="SVG", help="goodput over the offered load")
    output.add_argument(
        "--check", action="store_true", help="exit 1 if less than 99 %% are in time"
    )
    laws = parser.add_argument_group("laws")
    laws.add_argument(
        "--fuzz",
        type=int,
        metavar="N",
        help="N random scenarios with faults from --seed on; every law is checked in each",
    )
    laws.add_argument("--jobs", type=int, default=1, metavar="N", help="processes for --fuzz (1)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs it.

    Raises:
        ConfigError: a flag or a trace is wrong.
    """
    if args.fuzz is not None:
        return _fuzz(args.seed, args.fuzz, args.jobs)
    _check(args)
    import msgspec

    policies = args.policy or ["ours"]
    for name in policies:
        _policy(name, args.max_rows)  # a wrong one is told before anything runs
    missed = False
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
    for rate in _rates(args):
        arrivals = _arrivals(args, rate)
        for name in policies:
            told = _simulate(args, arrivals, name)
            curves[name].append((told.offered_rps, told.good_rps))
            missed = missed or told.total.goodput < 0.99
            if args.json:
                line = {"policy": name, "seed": args.seed} | msgspec.to_builtins(told)
                print(msgspec.json.encode(line).decode())
            else:
                _print(told, name if len(policies) > 1 else "")
    if args.plot is not None:
        _plot(args, curves)
    return 1 if args.check and missed else 0


def _check(args: argparse.Namespace) -> None:
    for name, least in (("instances", 1), ("max_rows", 1), ("max_tokens", 1), ("noise", 0)):
        if getattr(args, name) < least:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} must be at least {least}, got {getattr(args, name)}")
    if not 0 < args.seconds <= 1_000_000:
        raise ConfigError(f"--seconds must be above 0 and at most 1,000,000, got {args.seconds:g}")
    if not args.burst_scv > 0:
        raise ConfigError(f"--burst-scv must be above 0, got {args.burst_scv:g}")
    given = [flag for flag in ("trace", "rate", "sweep") if getattr(args, flag) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"expected one of --trace, --rate and --sweep, got {' and '.join(given) or 'none'}"
        )


def _rates(args: argparse.Namespace) -> list[float]:
    if args.trace is not None:
        return [0.0]
    texts = args.sweep.split(",") if args.sweep is not None else [str(args.rate)]
    rates: list[float] = []
    for text in texts:
        try:
            rate = float(text)
        except ValueError:
            rate = 0.0
        if not 0 < rate <= 10_000_000:
            raise ConfigError(f"a rate must be a number above 0, got {text!r}")
        rates.append(rate)
    return rates


def _arrivals(args: argparse.Namespace, rate: float) -> list[Arrival]:
    from headrace.simulate.traces import read_trace
    from headrace.simulate.workload import NS, Source, merged

    slo_ns = _slo_ns(args.slo)
    if args.trace is not None:
        return read_trace(args.trace, slo_ns=slo_ns)
    if rate * args.seconds > 20_000_000:
        raise ConfigError("this would be more than 20 million requests", hint="fewer --seconds")
    source = Source(
        rate=rate,
        process=args.arrivals,
        burst_scv=args.burst_scv,
        period_s=args.seconds,
        lengths=_lengths(args.lengths),
        max_length=args.max_tokens,
        slo_ns=slo_ns,
        timeout_ns=60 * NS,
        end_ns=int(args.seconds * NS),
    )
    return merged([source], args.seed)


def _slo_ns(text: str | None) -> int:
    from headrace.units import duration_ns

    if text is None:
        return 0
    try:
        return duration_ns(text.removeprefix("p99="))
    except ValueError as error:
        raise ConfigError(f"--slo {text}: {error}", hint="--slo p99=50ms") from None


def _lengths(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        median, sigma = (float(part) for part in text.split(","))
        if median >= 1 and sigma >= 0:
            return median, sigma
    except ValueError:
        pass
    raise ConfigError(f'--lengths: expected MEDIAN,SIGMA such as "30,0.8", got {text!r}')


def _policy(name: str, max_rows: int) -> Policy:
    from headrace.core.scheduler import Scheduler
    from headrace.simulate.peers import FixedWindow
    from headrace.units import duration_ns

    if name == "ours":
        return Scheduler()
    if name == "none":
        return FixedWindow(0, max_rows=1)
    if name in {"greedy", "fixed:0", "fixed:0ms"}:
        return FixedWindow(0, max_rows)
    kind, _, window = name.partition(":")
    try:
        if kind == "fixed":
            return FixedWindow(duration_ns(window), max_rows)
    except ValueError as error:
        raise ConfigError(f"--policy {name}: {error}") from None
    raise ConfigError(f"unknown --policy {name!r}: ours, fixed:5ms, greedy or none")


def _simulate(args: argparse.Namespace, arrivals: list[Arrival], name: str) -> Report:
    from headrace.simulate.outcome import report
    from headrace.simulate.simulator import Simulation

    scenario = _scenario(args, arrivals)
    outcome = Simulation(scenario, _policy(name, args.max_rows)).run()
    span_ns = arrivals[-1].at_ns if args.trace is not None else int(args.seconds * 1e9)
    return report(outcome, args.instances, span_ns)


def _scenario(args: argparse.Namespace, arrivals: list[Arrival]) -> Scenario:
    from headrace.core.events import BatchLimits
    from headrace.simulate.curves import read_curve
    from headrace.simulate.simulator import Scenario, SimulatedModel

    if not arrivals:
        raise ConfigError("no request falls into this run", hint="raise --seconds or --rate")
    curve = read_curve(args.cost)
    limits = BatchLimits(
        max_rows=256 if curve.tokens else args.max_rows,
        max_padded_tokens=args.max_tokens if curve.tokens else 0,
        batch_overhead_tokens=16 if curve.tokens else 0,
        max_queue_size=1_000_000,
        max_concurrency=args.instances,
        priority_levels=max([arrival.priority for arrival in arrivals]),
        strict_slo=args.strict,
    )
    numbers = sorted({arrival.model for arrival in arrivals})
    models = tuple([SimulatedModel(n, curve, limits, noise=args.noise) for n in numbers])
    slo_ns = _slo_ns(args.slo)
    if slo_ns and slo_ns < curve.ns(1):
        print(
            f"headrace: an SLO of {slo_ns / 1e6:g} ms is below the cost of a single request, "
            f"{curve.ns(1) / 1e6:g} ms: "
            + ("all are refused" if args.strict else "they run as if they had none"),
            file=sys.stderr,
        )
    return Scenario(models, args.instances, arrivals, args.seed)


def _print(told: Report, policy: str) -> None:
    head = f"{policy}: " if policy else ""
    print(
        f"{head}{told.offered_rps:,.0f} requests/s offered, {told.good_rps:,.0f}/s in time; "
        f"batches of {told.mean_rows:g} rows, instances busy {told.utilisation:.0%}"
    )
    width = max(len("requests"), *[len(line.who) for line in (told.total, *told.groups)])
    print(
        f"  {'requests':<{width}} {'offered':>9} {'in time':>9} {'late':>7} {'refused':>8} "
        f"{'other':>6} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8}"
    )
    for line in (told.total, *told.groups):
        print(_row(line, width))
    if told.total.refused:
        reasons = ", ".join([f"{count:,} {why}" for why, count in told.total.refused.items()])
        print(f"  refused: {reasons}; {told.refused_at_once:.1%} of them at arrival")
    print()


def _row(line: Line, width: int) -> str:
    return (
        f"  {line.who:<{width}} {line.offered:>9,} {line.goodput:>9.2%} {line.late:>7,} "
        f"{sum(line.refused.values()):>8,} {sum(line.ended.values()):>6,} {line.p50_ms:>8.2f} "
        f"{line.p90_ms:>8.2f} {line.p99_ms:>8.2f}"
    )


def _plot(args: argparse.Namespace, curves: dict[str, list[tuple[float, float]]]) -> None:
    from headrace.simulate.picture import Line, draw

    title = f"{args.cost} ms, {args.instances} instances, {args.slo or 'no SLO'}, {args.arrivals}"
    picture = draw(
        [Line(name, points) for name, points in curves.items()],
        title=title,
        x_label="offered requests/s",
        y_label="answered in time /s",
        diagonal=True,
    )
    try:
        args.plot.write_text(picture)
    except OSError as error:
        raise ConfigError(f"cannot write {args.plot}: {error.strerror}") from None


def _fuzz(first: int, count: int, jobs: int) -> int:
    from concurrent.futures import ProcessPoolExecutor

    from headrace.simulate.fuzzing import try_seed

    if count < 1 or jobs < 1:
        raise ConfigError("--fuzz and --jobs must be at least 1")
    seeds = range(first, first + count)
    requests = broken = 0
    pool = ProcessPoolExecutor(jobs) if jobs > 1 else None
    verdicts: Iterator[Verdict]
    if pool is None:
        verdicts = map(try_seed, seeds)
    else:
        verdicts = pool.map(try_seed, seeds, chunksize=max(1, count // (jobs * 16)))
    for verdict in verdicts:
        requests += verdict.requests
        if verdict.broken:
            broken += 1
            print(f"seed {verdict.seed}: {verdict.broken}")
            for line in verdict.history:
                print(f"    {line}")
            print(f"  again with: headrace simulate --fuzz 1 --seed {verdict.seed}")
    if pool is not None:
        pool.shutdown()
    print(f"{count:,} seeds, {requests:,} requests: {broken or 'no'} broken")
    return 1 if broken else 0
