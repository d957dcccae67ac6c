"""Statistics, settings and Triton's metrics of a real server, through Triton's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess, serving, traces_in, wait_until

CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
metric_tags { key: "team" value: "search" }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("control")
    version = folder / "repository" / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(onnx_models.mlp(0, widths=(4, 4, 2)))
    (version.parent / "config.pbtxt").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    env = {
        "HEADRACE_SERVER__TRACE__FILE": str(folder / "trace.json"),
        "HEADRACE_SERVER__METRICS_SUMMARIES": "true",
        "HEADRACE_SERVER__METRICS_HISTOGRAMS": "true",
        "HEADRACE_CACHE_DIR": str(folder / "cache"),
    }
    with serving(folder / "repository", "--watch", env=env) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def infer(client: triton.InferenceServerClient, rows: int, **fields: Any) -> None:
    x = triton.InferInput("x", [rows, 4], "FP32")
    x.set_data_from_numpy(np.zeros((rows, 4), np.float32))
    client.infer("m", [x], **fields)


def stats_of(client: triton.InferenceServerClient) -> dict[str, Any]:
    (stats,) = client.get_inference_statistics("m")["model_stats"]
    return dict(stats)


def test_statistics_are_what_was_sent(client: triton.InferenceServerClient) -> None:
    before = stats_of(client)
    for rows in (1, 3, 3):
        infer(client, rows)
    wrong = triton.InferInput("x", [1, 5], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 5), np.float32))
    with pytest.raises(InferenceServerException):
        client.infer("m", [wrong])
    after = stats_of(client)
    assert after["inference_count"] - before["inference_count"] == 7
    assert after["execution_count"] - before["execution_count"] == 3
    grown = {
        name: duration["count"] - before["inference_stats"][name]["count"]
        for name, duration in after["inference_stats"].items()
    }
    assert grown == {
        "success": 3,
        "fail": 1,
        "queue": 3,
        "compute_input": 3,
        "compute_infer": 3,
        "compute_output": 3,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    spent = {name: duration["ns"] for name, duration in after["inference_stats"].items()}
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert 0 < sum(spent[part] for part in parts) <= spent["success"]
    batches = {each["batch_size"]: each["compute_infer"] for each in after["batch_stats"]}
    assert batches[3]["count"] >= 2
    assert sum(each["ns"] for each in batches.values()) == spent["compute_infer"]
    assert after["last_inference"] > 1.5e12


def test_the_page_of_metrics_agrees(
    server: ServerProcess, client: triton.InferenceServerClient
) -> None:
    infer(client, 2)
    stats = stats_of(client)
    samples = server.metrics()
    labels = '{team="search",model="m",version="1"}'
    assert samples[f"nv_inference_count{labels}"] == stats["inference_count"]
    assert samples[f"nv_inference_exec_count{labels}"] == stats["execution_count"]
    infer_us = stats["inference_stats"]["compute_infer"]["ns"] // 1000
    assert samples[f"nv_inference_compute_infer_duration_us{labels}"] == infer_us
    count = stats["inference_stats"]["success"]["count"]
    assert samples[f"nv_inference_request_summary_us_count{labels}"] == count
    assert samples[f"nv_inference_first_response_histogram_ms_count{labels}"] == count


@pytest.mark.parametrize("target", [("nothing", ""), ("m", "9")])
def test_statistics_of_what_is_not_there(
    client: triton.InferenceServerClient, target: tuple[str, str]
) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model"):
        client.get_inference_statistics(*target)


def test_traces_by_command(client: triton.InferenceServerClient, folder: Path) -> None:
    file = folder / "trace.json"
    infer(client, 1, request_id="before")
    settings = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "2"}
    answer = client.update_trace_settings("m", settings)
    assert {name: answer[name] for name in settings} == settings
    for number in range(3):
        infer(client, 1, request_id=f"r{number}")
    assert client.get_trace_settings("m")["trace_count"] == "0"
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    wait_until(lambda: len(traces_in(file)) == 2, "both are there")
    assert [trace["request_id"] for trace in traces_in(file)] == ["r0", "r1"]
    cleared = client.update_trace_settings("m", dict.fromkeys(settings))
    assert cleared == client.get_trace_settings()
    with pytest.raises(InferenceServerException, match="trace file location can not be updated"):
        client.update_trace_settings(settings={"trace_file": "elsewhere"})
    with pytest.raises(InferenceServerException, match="Request for unknown model : nothing"):
        client.get_trace_settings("nothing")


def test_tensors_in_a_trace(client: triton.InferenceServerClient, folder: Path) -> None:
    file = folder / "trace.json"
    settings = {"trace_level": ["TENSORS"], "trace_rate": "1"}
    client.update_trace_settings("m", settings)
    infer(client, 1, request_id="seen")
    client.update_trace_settings("m", dict.fromkeys(settings))

    def traces() -> list[dict[str, Any]]:
        return [each for each in traces_in(file) if each["request_id"] == "seen"]

    wait_until(traces, "it is there")
    (trace,) = traces()
    assert [(t["activity"], t["name"], t["shape"]) for t in trace["tensors"]] == [
        ("TENSOR_QUEUE_INPUT", "x", "1,4"),
        ("TENSOR_BACKEND_OUTPUT", "y", "1,2"),
    ]
    assert trace["tensors"][0]["data"] == "0.0,0.0,0.0,0.0"


def test_the_log_by_command(client: triton.InferenceServerClient) -> None:
    before = client.get_log_settings()
    assert before["log_verbose_level"] == 0
    answer = client.update_log_settings({"log_verbose_level": 4, "log_info": False})
    assert answer == {**before, "log_verbose_level": 4, "log_info": False}
    client.update_log_settings({"log_verbose_level": 0, "log_info": True})
    assert client.get_log_settings() == before
    with pytest.raises(InferenceServerException, match="log file location can not be updated"):
        client.update_log_settings({"log_file": "elsewhere"})


def test_the_log_in_a_file(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    env = {"HEADRACE_SERVER__LOG_FILE": str(log), "HEADRACE_CACHE_DIR": str(folder / "cache")}
    with ServerProcess(folder / "repository", "--port", "0", env=env) as server:
        wait_until(lambda: log.exists() and "ready on http" in log.read_text(), "it is ready")
        assert server.stop() == 0
        assert server.lines == []
