"""Tests that fail are run once more, alone: a plugin that notes them, a command that runs them.

``pytest -p tests.rerun --failures FILE`` writes the exit status and the failed tests to FILE.
``python -m tests.rerun FILE`` runs each of them in a pytest process of its own. One that passes is
printed as FLAKY and has to be mended in the next change; one that fails again fails the command.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MOST = 20
"""More failures than this are no chance: nothing is run again."""


class Failures:
    """Notes the tests of one session that failed in any phase."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed[report.nodeid] = None

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        noted = {"exit": int(exitstatus), "failed": list(self._failed)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(noted))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--failures", type=Path, help="write the tests that failed to this file")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--failures")
    if path is not None and not hasattr(config, "workerinput"):  # xdist's workers report to us
        config.pluginmanager.register(Failures(path), "failures")


def passes(test: str) -> bool:
    """Runs one test in a process of its own, whatever its markers."""
    command = [sys.executable, "-m", "pytest", "-m", "", "-n0", test]
    return subprocess.run(command, check=False).returncode == 0


def main(path: Path) -> int:
    """Returns 0 if every test noted in ``path`` passes now, and nothing but tests failed."""
    if not path.exists():
        print("the test run ended before it could say which tests failed")
        return 1
    noted = json.loads(path.read_text())
    failed = noted["failed"]
    if noted["exit"] != pytest.ExitCode.TESTS_FAILED or len(failed) > MOST:
        print(f"pytest ended with status {noted['exit']} and {len(failed)} failures: no second try")
        return 1
    again = {test: passes(test) for test in failed}
    for test, passed in again.items():
        print(f"{'FLAKY' if passed else 'FAILED TWICE'} {test}")
    return 0 if all(again.values()) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
