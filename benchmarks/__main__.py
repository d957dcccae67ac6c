"""``python -m benchmarks [NAME ...]``: runs them, prints tables, appends JSON lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.results import Result, save
from benchmarks.settings import Settings
from benchmarks.tables import render

BENCHMARKS = (
    "startup",
    "coldstart",
    "lifecycle",
    "faults",
    "attacks",
    "mutated",
    "core",
    "goodput",
    "slo",
    "python_path",
    "overhead",
    "lone_request",
    "grpc_lane",
    "shared_memory",
    "isolation",
    "cache",
    "embedding",
    "memory",
    "load_curve",
)

QUICK = {"rounds": 3, "seconds": 1, "scale": 0.1}
"""To see that it runs; its figures are too noisy to quote."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the named benchmarks. 1 where ``--check`` was given and a goal was missed."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    args = _parser().parse_args(given)
    settings = _settings(args)
    missed = False
    for name in args.names or BENCHMARKS:
        print(f"== {name}", flush=True)
        results: list[Result] = []
        for result in import_module(f"benchmarks.{name}").run(settings):
            results.append(result)
            print(f"   {result.case}", file=sys.stderr, flush=True)
        print(render(results), end="\n\n", flush=True)
        save(settings.out / f"{name}.jsonl", results, seed=settings.seed, arguments=given)
        missed = missed or any(not goal.met for result in results for goal in result.goals)
    return 1 if args.check and missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"all of them unless named: {', '.join(BENCHMARKS)}",
    )
    parser.add_argument("--quick", action="store_true", help="a few short rounds of a tenth of it")
    parser.add_argument("--rounds", type=int, help="pairs of measurements (8)")
    parser.add_argument("--seconds", type=int, help="of load in one measurement (2)")
    parser.add_argument("--scale", type=float, help="share of texts, requests and events (1.0)")
    parser.add_argument("--seed", type=int, help="of weights, texts and arrivals (20)")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2, if you have it")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), help="of embedding")
    parser.add_argument("--work", type=Path, help="where models and caches go (build/bench)")
    parser.add_argument("--out", type=Path, help="where JSON lines go (benchmarks/results)")
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal was missed")
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    unknown = [name for name in args.names if name not in BENCHMARKS]
    if unknown:
        _parser().error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    values: dict[str, Any] = dict(QUICK) if args.quick else {}
    given = {name: getattr(args, name) for name in Settings.__struct_fields__}
    for name, value in given.items():
        if value is not None:  # children run elsewhere, so paths are made absolute
            values[name] = value.resolve() if isinstance(value, Path) else value
    return Settings(**values)


if __name__ == "__main__":
    raise SystemExit(main())
