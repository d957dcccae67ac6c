"""``headrace explain``: the learnt cost of a model's batches and what the scheduler makes of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from headrace.cli.running_server import ask
from headrace.errors import ModelNotFound

if TYPE_CHECKING:
    from headrace.engine.explain import Curve, Explanation

_TIMEOUT_S = 10.0


def add_parser(subparsers: Any) -> None:
    """Adds ``explain`` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "explain",
        help="what batches of a model cost, and the decisions that this leads to",
        description="Asks a running server what it has learnt of a model's batches, and tells it "
        "in words and as a chart.",
    )
    parser.add_argument("model", help="name of the model")
    parser.add_argument("--model-version", default="", metavar="V", help="default: the server's")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server")
    parser.add_argument("--json", action="store_true", help="as the server says it")
    parser.add_argument("--ascii", action="store_true", help="a chart without Unicode")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs it.

    Raises:
        ConfigError: the URL is none, or nobody answers there.
        ModelNotFound: the server does not have the model.
    """
    body = _fetched(args.url, args.model, args.model_version)
    if args.json:
        print(body.decode())
        return 0
    from headrace.engine.explain import Explanation

    explained = msgspec.json.decode(body, type=Explanation)
    for line in told(explained):
        print(line)
    chart = drawn(explained, unicode=not args.ascii and _can_unicode())
    if chart:
        print()
        print(chart)
    return 0


def _can_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _fetched(url: str, model: str, version: str) -> bytes:
    path = f"/v2/models/{quote(model, safe='')}"
    path += f"/versions/{quote(version, safe='')}" if version else ""
    return ask(url, path + "/explain", refusal=ModelNotFound, timeout_s=_TIMEOUT_S)


def told(what: Explanation) -> Iterator[str]:
    """The words."""
    yield (
        f"model {what.model} version {what.version} on {what.runtime}, "
        f"{what.instances} {_many(what.instances, 'instance')}; batches of at most "
        f"{what.largest:,} {_many(what.largest, what.unit)}"
    )
    for curve in what.curves:
        yield from _cost(what, curve)
        yield from _target(what, curve)
    if what.timeout_ms:
        yield f"nobody waits longer than {what.timeout_ms / 1000:g} s"
    if what.priority_levels > 1:
        yield f"{what.priority_levels} levels of priority: the first is always served first"
    mean = what.rows / what.batches if what.batches else 0.0
    yield (
        f"so far: {what.completed:,} answered in {what.batches:,} batches of {mean:.1f} rows on "
        f"average, {what.late:,} late, {what.refused:,} refused ({what.given_up:,} of them after "
        f"waiting); now {what.waiting:,} wait and {what.running:,} run"
    )
    if what.unattainable:
        yield f"{what.unattainable:,} were wanted sooner than an idle machine could have answered"


def _cost(what: Explanation, curve: Curve) -> Iterator[str]:
    source = f"learnt from {curve.batches:,} batches" if curve.batches else "measured at load"
    (first, first_ms), (last, last_ms) = curve.points[0], curve.points[-1]
    text = f"a batch of {_number(first)} {_many(first, what.unit)} takes {first_ms:.3g} ms"
    if last > first:
        each_ms = (last_ms - first_ms) / (last - first)
        text += f", of {_number(last)} {last_ms:.3g} ms: {each_ms:.3g} ms for each {what.unit} more"
        gain = (last / last_ms) / (first / first_ms)
        text += f", and {gain:.1f} x the {what.unit}s a second" if gain > 1.05 else ""
    yield f"{text} ({source})"
    if curve.slowdown > 1.2:
        yield f"the machine is {curve.slowdown:.1f} x slower now than it usually is"
    yield f"a promise allows for batches that take {(curve.allowance - 1) * 100:.0f} % longer"


def _target(what: Explanation, curve: Curve) -> Iterator[str]:
    if not what.slo_ms:
        yield "no SLO: a batch takes all that waits and fits; set one with slo = { p99 = ... }"
        return
    smallest_ms = curve.points[0][1]
    if smallest_ms > what.slo_ms:
        how = "all are refused" if what.strict else "they run as if there were none"
        yield f"the SLO of {what.slo_ms:g} ms is below the cost of a single request: {how}"
        return
    within = min(curve.within_slo, float(what.largest))
    yield (
        f"SLO {what.slo_ms:g} ms: a batch that starts at once may have "
        f"{_number(int(within))} {_many(int(within), what.unit)}; what waited for longer gets a "
        "smaller one, and what could not be in time is refused when it arrives"
    )
    largest_ms = curve.points[-1][1]
    if what.instances > 1 and what.slo_ms <= 3 * largest_ms:
        yield (
            "under load an instance waits for company as long as all stay in time, because the SLO "
            "is short beside the largest batch"
        )


def drawn(what: Explanation, *, unicode: bool) -> str:
    """The chart: milliseconds over the size of a batch; "" where there is only one size."""
    from headrace.client.chart import Series, draw

    marks = (("●", "*"), ("▲", "+"), ("■", "x"))
    series = [
        Series(f"instances of kind {curve.kind}" if curve.kind else "a batch", curve.points, *mark)
        for curve, mark in zip(what.curves, marks, strict=False)
        if len(curve.points) > 1
    ]
    if not series:
        return ""
    return draw(
        series,
        unicode=unicode,
        bound=what.slo_ms or None,
        x_label=f"{what.unit}s in a batch",
        title="ms",
    )


def _number(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _many(count: float, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
