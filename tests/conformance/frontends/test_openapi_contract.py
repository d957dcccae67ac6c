"""schemathesis reads our own /openapi.json and tries everything it says, and what it does not."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

from headrace.testing import onnx_models
from tests.integration.server_process import serving
from tests.unit.repository.bert_models import TinyBert

SETTINGS = """\
seed = 1
[generation]
max-examples = 30
# A model's own shapes, and bytes that fit the header of another part, are more than a schema
# can say.
[checks.positive_data_acceptance]
enabled = false
# Full, and a timeout of a microsecond, are answers too.
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "501", "503", "504"]
"""


@pytest.mark.slow
def test_the_server_does_what_its_document_says(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    path = repository / "mlp" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(onnx_models.mlp())
    TinyBert().save(repository / "bert")
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    schemathesis = Path(sysconfig.get_path("scripts"), "schemathesis")
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    with serving(repository, "--runtime", "onnxruntime", env=env) as server:
        ran = subprocess.run(
            [schemathesis, "run", server.url + "/openapi.json"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout[-5000:]
        assert server.json("GET", "/v2/health/ready") == (200, {"ready": True})
        server.stop()
        assert not [line for line in server.lines if '"level":"error"' in line]
