"""How much memory a runtime holds, measured in a process that does nothing else."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

_HEAD = """
import gc, os, sys
from pathlib import Path
import numpy as np
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.runtimes import registry

path = Path(sys.argv[2])
artifact = Artifact("m", "1", path, path.parent, "onnx")
model = registry.create(sys.argv[1]).load(artifact, InstanceConfig())
rng = np.random.default_rng(0)

def resident_mb():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
"""


def growth_mb(runtime: str, path: Path, script: str) -> float:
    """Has ``script`` run ``model``; returns the number that it prints."""
    command = [sys.executable, "-c", _HEAD + textwrap.dedent(script), runtime, str(path)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return float(ran.stdout)
