"""``headrace replay``: the same events to the same code, and whether the decisions are the same."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds ``replay`` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "replay",
        help="decide a recording of a server once more and show what is different",
        description="Feeds what headrace serve --record wrote to a fresh scheduler and compares "
        "the decisions. Exit codes: 0 all the same; 1 a difference; 2 no recording.",
    )
    parser.add_argument("recording", type=Path, help="made by headrace serve --record FILE")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs it.

    Raises:
        ConfigError: the recording cannot be read.
    """
    from headrace.simulate.replay import replay

    told = replay(args.recording)
    if not told.differences:
        print(f"the same decisions: {told.events:,} events, {told.actions:,} actions")
        return 0
    for difference in told.differences:
        print(difference)
    print(f"different: {told.events:,} events, the first differences are shown")
    return 1
