"""``examples/sklearn_churn.py`` does what its first line says, in a real server."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.tidy.source import ROOT

HANGS_AFTER_S = 300

RUN = (
    "import faulthandler, runpy, sys\n"
    f"faulthandler.dump_traceback_later({HANGS_AFTER_S}, exit=True)\n"
    "runpy.run_path(sys.argv[1], run_name='__main__')\n"
)
"""One that hangs says where."""


def test_from_notebook_to_url() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(ROOT / "examples" / "sklearn_churn.py")],
        capture_output=True,
        text=True,
        # Training waits in loops that spin, which takes minutes where others keep the cores busy.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    score, unhappy, content, columns, refusal = ran.stdout.splitlines()
    assert float(score.rpartition(" ")[2]) > 0.65
    assert "'label': 'leaves'" in unhappy
    assert "'monthly': None" in content
    assert "'label': 'stays'" in content
    assert columns.startswith("{'label': ['leaves'], 'probabilities': [")
    assert refusal == "400: column 'plan' is 3 in row 0; expected a string"
