"""``headrace import``: other servers' configurations, as far as they can be carried over."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.repository.importing.plan import ModelPlan, Plan

_EPILOG = """\
What is read: MLServer's model-settings.json and settings.json, TorchServe's config.properties
and .mar archives, TensorFlow Serving's models.config. Triton's repositories need no importing;
what of them would be served, and what would have no effect, is listed.

Without --out nothing is written. The exit status is 0 where at least one model could be served.

examples:
  headrace import ./mlserver-models                what would come of it
  headrace import ./model-store --out ./models     write it, then: headrace serve ./models
"""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "import",
        help="make a repository of another server's",
        description="Reads the configuration and models of another server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="a folder or configuration file")
    parser.add_argument("--out", metavar="FOLDER", help="the repository to make")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Prints what can be served and what was not carried over; writes where told to.

    Returns:
        0 where at least one model can be served, else 1.

    Raises:
        ConfigError, ModelLoadError: the path is not understood, or ``--out`` cannot be written.
    """
    from headrace.repository.importing.detect import read
    from headrace.repository.importing.plan import write

    plan = read(Path(args.path))
    if args.out and plan.as_it_is:
        raise ConfigError(
            f"{args.path} is served as it is; nothing has to be written", hint=plan.as_it_is
        )
    for line in report(plan):
        print(line)
    if not plan.servable:
        print("nothing of it can be served")
        return 1
    if plan.as_it_is:
        print(f"serve it: {plan.as_it_is}")
    elif not args.out:
        print("nothing was written: --out FOLDER makes a repository of it")
    else:
        out = Path(args.out)
        write(plan, out)
        config = f" --config {out / 'headrace.toml'}" if plan.server else ""
        print(f"written to {out}; serve it: headrace serve {out}{config}")
    return 0


def report(plan: Plan) -> Iterator[str]:
    """The lines that tell what was found."""
    yield f"{plan.kind}: {plan.root}"
    for note in plan.notes:
        yield f"  {note}"
    for model in plan.models:
        yield from _of_model(model)


def _of_model(model: ModelPlan) -> Iterator[str]:
    if model.obstacle:
        yield f"  {model.name}: cannot be served: {model.obstacle}"
        if model.hint:
            yield f"    {model.hint}"
    else:
        yield f"  {model.name}: version {model.version}, {model.source}"
    for note in model.notes:
        yield f"    {note}"
