"""No runtime library tells anybody what is served here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.repository.onnx_writer import Node, write_model
from headrace.types import TensorSpec

LOAD = """\
import pathlib, sys
from headrace.runtimes import registry
from headrace.runtimes.base import Artifact, InstanceConfig
path = pathlib.Path(sys.argv[2])
artifact = Artifact(name="m", version="1", path=path, folder=path.parent, format="onnx")
registry.create(sys.argv[1]).load(artifact, InstanceConfig()).unload()
"""


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_loading_a_model_leaves_no_trace_of_it(runtime: str, tmp_path: Path) -> None:
    """What reports must remember what it has to report, and by whom: it writes files."""
    pytest.importorskip(runtime)
    home, scratch, model = tmp_path / "home", tmp_path / "scratch", tmp_path / "m" / "model.onnx"
    for folder in (home, scratch, model.parent):
        folder.mkdir()
    inputs, outputs = [TensorSpec("x", "FP32", (-1, 4))], [TensorSpec("y", "FP32", (-1, 4))]
    write_model(model, [Node("Relu", ["x"], ["y"])], inputs=inputs, outputs=outputs)
    # Its makers' library stays silent in CI, where nobody would notice.
    env = {k: v for k, v in os.environ.items() if k not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    env |= {"HOME": str(home), "TMPDIR": str(scratch), "XDG_CACHE_HOME": ""}
    subprocess.run([sys.executable, "-c", LOAD, runtime, str(model)], env=env, check=True)
    assert [*home.rglob("*"), *scratch.rglob("*")] == []
