"""``python -m conformance table | differential``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from conformance import table

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("what", choices=["table", "differential"])
    parser.add_argument("--server", choices=["headrace", "triton"], default="headrace")
    parser.add_argument("--only", default="", help="part of a feature's or client's name")
    parser.add_argument("--write", action="store_true", help="keep the report in results/")
    arguments = parser.parse_args()
    if arguments.what == "table":
        report, failed = table.make(arguments.server, arguments.only)
    else:
        from conformance import differential

        report, failed = differential.make()
    print(report)
    if arguments.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{arguments.what}.md").write_text(report + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
