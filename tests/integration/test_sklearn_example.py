"""``examples/sklearn_churn.py`` does what its first line says, in a real server."""

from __future__ import annotations

import subprocess
import sys

from tests.tidy.source import ROOT


def test_from_notebook_to_url() -> None:
    script = ROOT / "examples" / "sklearn_churn.py"
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    score, unhappy, content, columns, refusal = ran.stdout.splitlines()
    assert float(score.rpartition(" ")[2]) > 0.65
    assert "'label': 'leaves'" in unhappy
    assert "'monthly': None" in content
    assert "'label': 'stays'" in content
    assert columns.startswith("{'label': ['leaves'], 'probabilities': [")
    assert refusal == "400: column 'plan' is 3 in row 0; expected a string"
