"""What a running server has learnt, and the command that tells it."""

from __future__ import annotations

import json

import pytest

from headrace.cli.main import main
from headrace.engine.explain import Curve, Explanation
from headrace.testing import onnx_models
from tests.integration.server_process import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    model = folder / "echo.onnx"
    model.write_bytes(onnx_models.identity("FP32"))
    with serving(model, "--slo", "50ms") as server:
        yield server


def url_of(server) -> str:
    return f"http://127.0.0.1:{server.port}"


def explained(server, capsys, *flags) -> str:
    assert main(["explain", "echo", "--url", url_of(server), *flags]) == 0
    return capsys.readouterr().out


def test_in_words_and_as_a_chart(server, capsys):
    for _ in range(5):
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        status, _ = server.json("POST", "/v2/models/echo/infer", {"inputs": [tensor]})
        assert status == 200
    text = explained(server, capsys, "--ascii")

    assert "model echo version 1 on onnxruntime" in text
    assert "learnt from" in text
    assert "SLO 50 ms: a batch that starts at once may have" in text
    assert "so far: 5 answered" in text
    assert "rows in a batch" in text


def test_as_the_server_says_it(server, capsys):
    told = json.loads(explained(server, capsys, "--json"))

    assert (told["model"], told["slo_ms"], told["unit"]) == ("echo", 50.0, "row")
    assert told["curves"][0]["points"]


def test_a_model_that_is_not_there(server, capsys):
    assert main(["explain", "nothing", "--url", url_of(server)]) == 1
    assert "Request for unknown model: 'nothing' is not found" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["ftp://x", "http://127.0.0.1:1", "http://nowhere.invalid"])
def test_no_server(url, capsys):
    assert main(["explain", "echo", "--url", url]) == 2
    assert url in capsys.readouterr().err


def a_model(**more) -> Explanation:
    plain = {
        "model": "m", "version": "1", "runtime": "openvino", "unit": "token", "largest": 512,
        "instances": 2, "slo_ms": 20.0, "strict": False, "timeout_ms": 60_000.0,
        "priority_levels": 3, "waiting": 1, "running": 2, "batches": 0, "rows": 0, "completed": 0,
        "late": 0, "refused": 9, "given_up": 4, "unattainable": 7,
        "curves": [Curve(0, [(32.0, 4.0), (512.0, 16.0)], 1.5, 1.2, 0, 400.0)],
    }  # fmt: skip
    return Explanation(**plain | more)


def test_the_words():
    from headrace.cli.explain import told

    text = "\n".join(told(a_model()))
    for words in (
        "batches of at most 512 tokens",
        "a batch of 32 tokens takes 4 ms, of 512 16 ms: 0.025 ms for each token more, and 4.0 x",
        "measured at load",
        "1.5 x slower now",
        "20 % longer",
        "may have 400 tokens",
        "an instance waits for company",
        "3 levels of priority",
        "9 refused (4 of them after waiting); now 1 wait and 2 run",
        "7 were wanted sooner",
    ):
        assert words in text
    assert "below the cost of a single request" in "\n".join(told(a_model(slo_ms=3.0)))
    assert "all are refused" in "\n".join(told(a_model(slo_ms=3.0, strict=True)))
    assert "no SLO" in "\n".join(told(a_model(slo_ms=0.0)))
