"""A wrong line in the scheduler does not go unnoticed: some are made wrong, and tests must fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

MUTATIONS = [
    # (file, as it is, as it must not be)
    ("scheduler.py", "if now_ns < self._next_expiry_ns:", "if now_ns <= self._next_expiry_ns:"),
    ("scheduler.py", "del self._live[victim.request_id]", "pass"),
    ("books.py", "model.running -= 1", "model.running -= 0"),
    ("batching.py", "if members and rows + request.rows > fits:", "if rows > fits:"),
    ("urgency.py", "if now_ns + alone_ns <= request.due_ns or", "if now_ns <= request.due_ns or"),
    ("admission.py", "start + cost.predict_ns(size)", "start"),
    ("fairness.py", "cost_ns / self.terms_of(tenant).share", "cost_ns"),
    ("latency.py", "self._level * (1.0 + weight * (bounded - 1.0))", "self._level"),
    ("queueing.py", "request.due_ns < entries[-1].due_ns", "False"),
    ("selection.py", "model.use(now_ns) / instances - model.limits.min_share", "0.0"),
]


def is_green(folder: Path, *tests: str) -> bool:
    """Whether these tests pass with the sources in ``folder``."""
    ran = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-n0", "-x", "-p", "no:cacheprovider",
            "--hypothesis-profile", "unshrunk",
            "--deselect", "tests/unit/core/test_mutations.py", *tests,
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode in {0, 1}, ran.stdout[-2000:]
    return ran.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("file", "before", "after"), MUTATIONS)
def test_a_wrong_line_is_caught(tmp_path, file, before, after):
    shutil.copytree(ROOT / "src" / "headrace", tmp_path / "headrace")
    path = tmp_path / "headrace" / "core" / file
    text = path.read_text()
    assert text.count(before) >= 1, "the line has changed: choose another"
    path.write_text(text.replace(before, after, 1))

    own = Path(f"tests/unit/core/test_{file}")  # mostly finds it, in a second
    caught = (ROOT / own).exists() and not is_green(tmp_path, str(own))
    assert caught or not is_green(tmp_path, "tests/unit/core", "tests/unit/simulate")
