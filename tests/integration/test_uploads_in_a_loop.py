"""Load requests again and again, good, bad and endless ones: nothing of them stays behind."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.engine.load_threads import ABANDONED_MAX
from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess
from tests.integration.test_hostile_loads import HOSTILE

GOOD = onnx_models.mlp(0, widths=(4, 4, 2))
BAD = b"x" * (8 << 20)
WITHOUT_COLLECTOR = (
    "import gc; gc.disable(); from headrace.cli.main import main; raise SystemExit(main())"
)


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """Without a garbage collector, so that what an error holds stays held."""
    endless = tmp_path / "models" / "endless" / "1"
    endless.mkdir(parents=True)
    (endless / "model.onnx").write_bytes(HOSTILE["a loop at the first run"][0])
    (tmp_path / "tmp").mkdir()
    env = {
        "HEADRACE_CACHE_DIR": str(tmp_path / "cache"),
        "HEADRACE_SERVER__LOAD_TIMEOUT_S": getattr(request, "param", "600"),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    arguments = ("--port", "0", "--model-control-mode=explicit")
    with ServerProcess(
        tmp_path / "models", *arguments, env=env, script=WITHOUT_COLLECTOR
    ) as process:
        yield process.wait_ready()


def load(server: ServerProcess, name: str, model: bytes = b"") -> tuple[int, Any]:
    content = base64.b64encode(model).decode()
    files = {"config": "{}", "file:1/model.onnx": content} if model else {}
    path = f"/v2/repository/models/{name}/load"
    status, _, answer = server.request("POST", path, json.dumps({"parameters": files}).encode())
    return status, json.loads(answer)


def resident(server: ServerProcess) -> int:
    """In bytes."""
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def open_files(server: ServerProcess) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


@pytest.mark.slow
def test_loads_that_fail_or_are_unloaded_give_everything_back(
    server: ServerProcess, tmp_path: Path
) -> None:
    def round_of(number: int) -> None:
        assert load(server, f"bad{number}", BAD)[0] == 400
        if number in (0, 5):  # each is tried in a process of its own first, which takes seconds
            assert load(server, f"good{number}", GOOD)[0] == 200
            assert server.json("POST", f"/v2/repository/models/good{number}/unload", {})[0] == 200
        assert server.json("POST", f"/v2/repository/models/never{number}/unload", {})[0] == 200

    for number in range(2):
        round_of(number)
    memory, files = resident(server), open_files(server)
    for number in range(2, 10):
        round_of(number)
    assert resident(server) - memory < 5 * len(BAD), "8 bad loads"
    assert open_files(server) <= files + 3
    left = [each.name for each in (tmp_path / "tmp").glob("headrace-model-*")]
    assert len(left) <= 1, "the files of what was unloaded last may be going yet"


@pytest.mark.parametrize("name", ["%C3%A9" * 128, "x" * 256, "%2e%2e", "%00"])
def test_a_name_that_cannot_be_a_folder_s_is_the_callers_mistake(
    server: ServerProcess, name: str
) -> None:
    assert 400 <= load(server, name, GOOD)[0] < 500
    assert 400 <= load(server, name)[0] < 500


@pytest.mark.slow
@pytest.mark.parametrize("server", ["1"], indirect=True)
def test_an_endless_model_of_the_operator_is_ended_and_its_thread_with_it(
    server: ServerProcess,
) -> None:
    """With a thread left by each of so many, nothing further would be loaded (loads_hang)."""
    for _ in range(ABANDONED_MAX + 2):
        status, answer = load(server, "endless")
        assert (status, answer.get("reason_code")) == (400, "load_timeout"), answer
    assert server.stop() == 0
