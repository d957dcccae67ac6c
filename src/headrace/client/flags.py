"""Flags of ``headrace bench`` -> a checked :class:`BenchSpec` and what to do with its result."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any, Literal, TextIO

import msgspec

from headrace.client.spec import BenchSpec, check_spec
from headrace.errors import ConfigError

MAX_SWEEP_POINTS = 64
"""Rates of one sweep; at five seconds each that is more than five minutes."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command does beside running the load."""

    spec: BenchSpec
    sweep: tuple[float, ...] | Literal["auto"] | None
    check: bool
    plot: Path | None
    json: Path | None
    quiet: bool
    unicode: bool


def read_options(args: argparse.Namespace) -> Options:
    """Flags as one checked value.

    Raises:
        ConfigError: a value is out of its bounds, or flags contradict each other.
    """
    sweep = _sweep(args.sweep)
    spec = _spec(args, sweep)
    if args.check and spec.slo_ms is None:
        raise ConfigError("--check needs something to check", hint="--slo-ms 50")
    if args.check and sweep == "auto":
        raise ConfigError(
            "--check contradicts --sweep auto, which goes on until the SLO is missed",
            hint="give the rates that must hold: --sweep 50,100",
        )
    if args.plot is not None and sweep is None:
        raise ConfigError("--plot shows a sweep", hint="--sweep 50,100,200 or --sweep auto")
    if sweep is not None and args.rate is not None:
        raise ConfigError("--sweep and --rate contradict each other", hint="leave --rate out")
    return Options(
        spec=spec,
        sweep=sweep,
        check=args.check,
        plot=args.plot,
        json=args.json,
        quiet=args.quiet,
        unicode=not args.ascii and speaks_unicode(sys.stdout),
    )


def _spec(args: argparse.Namespace, sweep: tuple[float, ...] | str | None) -> BenchSpec:
    open_loop = args.rate is not None or args.recording or sweep is not None
    arrivals = {
        "process": args.arrivals or ("recorded" if args.recording else None),
        # A sweep's rates come later, one by one; the first is checked like all others.
        "rate": sweep[0] if isinstance(sweep, tuple) else 1.0 if sweep else args.rate,
        "burst_scv": args.burst_scv,
        "on_s": args.on_s,
        "off_s": args.off_s,
        "recording": args.recording,
    }
    payload = {
        "wire": "binary" if args.binary else "openai" if args.openai else None,
        "input_file": args.input,
        "shapes": dict(_shape(text) for text in args.shape),
        "ranges": dict(_range(text) for text in args.range),
        "lengths": _lengths(args.text_lengths),
        "distinct": args.distinct,
        "samples": args.samples,
    }
    given = {
        "url": args.url,
        "model": args.model,
        "model_version": args.model_version,
        "scenario": args.scenario or ("server" if open_loop else "single-stream"),
        "arrivals": _without_none(arrivals),
        "payload": _without_none(payload),
        "connections": args.connections,
        "duration_s": args.duration,
        "requests": args.requests,
        "warmup_s": args.warmup,
        "slo_ms": args.slo_ms,
        "seed": args.seed,
        "max_outstanding": args.max_outstanding,
        "timeout_s": args.timeout_s,
        "headers": [_header(text) for text in args.header],
        "allow_remote": args.allow_remote,
        "ca_file": args.ca_file,
        "pid": args.pid,
    }
    try:
        spec = msgspec.convert(_without_none(given), BenchSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(_flag_error(str(error))) from error
    check_spec(spec)
    return spec


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


_FLAGS = {
    "duration_s": "--duration",
    "warmup_s": "--warmup",
    "lengths": "--text-lengths",
    "shapes": "--shape",
    "ranges": "--range",
    "rate": "--rate or --sweep",
}


def _flag_error(message: str) -> str:
    """``Expected `int` >= 1 - at `$.connections` `` -> ``--connections: expected int >= 1``."""
    what, _, path = message.partition(" - at `$.")
    keys = [key for key in re.findall(r"\w+", path) if key not in {"arrivals", "payload"}]
    name = keys[0] if keys else ""
    flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
    return f"{flag}: {what[:1].lower()}{what[1:].replace('`', '')}"


def _sweep(text: str | None) -> tuple[float, ...] | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    rates = _numbers("--sweep", text)
    if len(rates) > MAX_SWEEP_POINTS or not all(0 < rate <= 1_000_000 for rate in rates):
        raise ConfigError(
            f"--sweep {text}: expected 1 to {MAX_SWEEP_POINTS} rates above 0, at most 1000000",
            hint="--sweep 50,100,200 or --sweep auto",
        )
    return rates


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{flag} {text}: expected numbers with commas between them") from error
    if not all(math.isfinite(number) for number in numbers):
        raise ConfigError(f"{flag} {text}: expected finite numbers")
    return numbers


def _named(flag: str, text: str) -> tuple[str, tuple[float, ...]]:
    name, equals, numbers = text.rpartition("=")
    if not equals or not name:
        raise ConfigError(f"{flag} {text}: expected NAME=NUMBER,NUMBER", hint=f"{flag} x=1,16")
    return name, _numbers(flag, numbers)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, sizes = _named("--shape", text)
    if any(size < 0 or size != int(size) for size in sizes):
        raise ConfigError(f"--shape {text}: sizes are whole numbers", hint="--shape x=1,16")
    return name, tuple(int(size) for size in sizes)


def _range(text: str) -> tuple[str, tuple[float, float]]:
    name, bounds = _named("--range", text)
    if len(bounds) != 2 or not bounds[0] <= bounds[1]:
        raise ConfigError(f"--range {text}: expected LOW,HIGH", hint="--range x=0,1")
    return name, (bounds[0], bounds[1])


def _lengths(text: str | None) -> dict[str, float | int] | None:
    if text is None:
        return None
    numbers = _numbers("--text-lengths", text)
    if len(numbers) not in (2, 3):
        raise ConfigError(
            f"--text-lengths {text}: expected MEDIAN,SIGMA or MEDIAN,SIGMA,MAX",
            hint="--text-lengths 12,0.7,256",
        )
    values: dict[str, float | int] = {"median": numbers[0], "sigma": numbers[1]}
    if len(numbers) == 3:
        values["maximum"] = int(numbers[2])
    return values


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    token = name and all(c.isalnum() or c in "!#$%&'*+-.^_`|~" for c in name)
    if not colon or not token or not name.isascii() or not value.isprintable():
        raise ConfigError(
            f"--header {name or text!r}: expected 'Name: value' on one line",
            hint="--header 'Authorization: Bearer TOKEN'",
        )
    if name.lower() in {"host", "content-length", "content-type", "transfer-encoding"}:
        raise ConfigError(f"--header {name}: headrace bench sets this one itself")
    try:
        value.encode("latin-1")
    except UnicodeEncodeError as error:
        raise ConfigError(f"--header {name}: its value is not Latin-1 text") from error
    return name, value


def speaks_unicode(stream: TextIO) -> bool:
    """Whether this stream takes characters beyond ASCII."""
    return (stream.encoding or "").lower().replace("-", "") == "utf8"
