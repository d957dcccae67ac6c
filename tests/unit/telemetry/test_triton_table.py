"""Every ``nv_*`` series with Triton's type and labels, as a Prometheus reads the page."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.telemetry.gpu import GpuReader
from headrace.telemetry.instruments import RequestRecord
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.prometheus import RenderOptions, TritonOptions, render

MODEL = {"model", "version"}

COUNTERS_PER_MODEL = (
    "nv_inference_request_success",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
    "nv_cache_num_hits_per_model",
    "nv_cache_num_misses_per_model",
    "nv_cache_hit_duration_per_model",
    "nv_cache_miss_duration_per_model",
)
SUMMARIES = (
    "nv_inference_request_summary_us",
    "nv_inference_queue_summary_us",
    "nv_inference_compute_input_summary_us",
    "nv_inference_compute_infer_summary_us",
    "nv_inference_compute_output_summary_us",
    "nv_cache_hit_summary_per_model",
    "nv_cache_miss_summary_per_model",
)
ALWAYS = {
    **dict.fromkeys(COUNTERS_PER_MODEL, ("counter", MODEL)),
    "nv_inference_request_failure": ("counter", MODEL | {"reason"}),
    "nv_inference_pending_request_count": ("gauge", MODEL),
    "nv_model_load_duration_secs": ("gauge", MODEL),
    "nv_pinned_memory_pool_total_bytes": ("gauge", set()),
    "nv_pinned_memory_pool_used_bytes": ("gauge", set()),
    "nv_cpu_utilization": ("gauge", set()),
    "nv_cpu_memory_total_bytes": ("gauge", set()),
    "nv_cpu_memory_used_bytes": ("gauge", set()),
}
GPU = {
    "nv_gpu_utilization": "gauge",
    "nv_gpu_memory_total_bytes": "gauge",
    "nv_gpu_memory_used_bytes": "gauge",
    "nv_gpu_power_usage": "gauge",
    "nv_gpu_power_limit": "gauge",
    "nv_energy_consumption": "counter",
}


class TwoGpus:
    """What the driver's library would say. The second one tells its name and nothing else."""

    def nvmlInit_v2(self) -> int:  # the library's own names
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetUUID(self, handle: ctypes.c_void_p, uuid: Any, size: int) -> int:
        uuid.value = f"GPU-{handle.value}".encode()
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p, into: Any) -> int:
        into._obj.gpu = 25 if handle.value == 1 else 0
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, into: Any) -> int:
        into._obj.total, into._obj.used = 1000, 10
        return 0

    def nvmlDeviceGetPowerUsage(self, handle: ctypes.c_void_p, into: Any) -> int:
        if handle.value == 2:
            return 3  # not supported
        into._obj.value = 70_500
        return 0

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: ctypes.c_void_p, into: Any) -> int:
        into._obj.value = 300_000
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, into: Any) -> int:
        into._obj.value = 5_000
        return 0


def a_broken_driver() -> TwoGpus:
    library = TwoGpus()
    library.nvmlInit_v2 = lambda: 9  # type: ignore[method-assign]
    return library


def families(page: bytes) -> dict[str, Any]:
    return {
        family.name: family
        for family in text_string_to_metric_families(page.decode())
        if family.name.startswith("nv_")
    }


def a_worker(gpus: GpuReader | None = None) -> Metrics:
    metrics = Metrics(gpus=gpus)
    metrics.model_loaded("m", "1", 1.0)
    return metrics


def labels(family: Any) -> set[str]:
    return {name for sample in family.samples for name in sample.labels}


@pytest.mark.parametrize("name", sorted(ALWAYS))
def test_a_series_has_its_type_and_labels(name: str) -> None:
    kind, expected = ALWAYS[name]
    family = families(render([a_worker().snapshot()]))[name]
    assert family.type == kind
    assert labels(family) == expected
    assert family.samples


def test_there_is_nothing_that_triton_would_not_have() -> None:
    old_names = {"nv_inference_compute_duration_us"}
    assert set(families(render([a_worker().snapshot()]))) == set(ALWAYS) | old_names


def test_every_reason_is_there_before_anything_failed() -> None:
    family = families(render([a_worker().snapshot()]))["nv_inference_request_failure"]
    assert {(sample.labels["reason"], sample.value) for sample in family.samples} == {
        (reason, 0.0) for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    }


@pytest.mark.parametrize("name", SUMMARIES)
def test_summaries_when_asked_for(name: str) -> None:
    options = RenderOptions(triton=TritonOptions(summary_latencies=True))
    family = families(render([a_worker().snapshot()], options))[name]
    assert family.type == "summary"
    assert labels(family) == MODEL | {"quantile"}


def test_the_histogram_of_first_responses_when_asked_for() -> None:
    options = RenderOptions(triton=TritonOptions(histogram_latencies=True))
    metrics = a_worker()
    record = RequestRecord("m", "1", arrived_ns=10**9)
    metrics.response_sent(record, 0, "success", 0, 10**9 + 200 * 10**6)
    metrics.response_sent(record, 1, "success", 0, 10**9 + 9 * 10**9)
    family = families(render([metrics.snapshot()], options))[
        "nv_inference_first_response_histogram_ms"
    ]
    assert family.type == "histogram"
    counts = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert counts == {"100": 0, "500": 1, "2000": 1, "5000": 1, "+Inf": 1}
    (total,) = [s.value for s in family.samples if s.name.endswith("_sum")]
    assert total == 200


def test_tags_of_a_model_are_labels_of_all_its_series() -> None:
    options = RenderOptions(
        triton=TritonOptions(
            histogram_latencies=True,
            summary_latencies=True,
            tags={("m", "1"): {"team": "search", "model": "not this"}},
        )
    )
    for family in families(render([a_worker().snapshot()], options)).values():
        for sample in family.samples:
            if "model" in sample.labels:
                assert (sample.labels["model"], sample.labels["team"]) == ("m", "search")


def test_gpus_where_there_are_some() -> None:
    metrics = a_worker(GpuReader(TwoGpus()))
    found = families(render([metrics.snapshot(), metrics.snapshot()]))  # two workers, one machine
    for name, kind in GPU.items():
        assert found[name].type == kind
        assert [s.labels for s in found[name].samples] == [
            {"gpu_uuid": "GPU-1"},
            {"gpu_uuid": "GPU-2"},
        ]
    first = {name: found[name].samples[0].value for name in GPU}
    assert first == {
        "nv_gpu_utilization": 0.25,
        "nv_gpu_memory_total_bytes": 1000,
        "nv_gpu_memory_used_bytes": 10,
        "nv_gpu_power_usage": 70.5,
        "nv_gpu_power_limit": 300,
        "nv_energy_consumption": 5,
    }
    assert found["nv_gpu_power_usage"].samples[1].value == 0


def test_a_driver_that_does_not_start_shows_no_gpu() -> None:
    assert GpuReader(a_broken_driver()).read() == []
