"""Which fields somebody else's file may set."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.config import Config, ModelConfig
from headrace.errors import ConfigError, ModelLoadError
from headrace.machine import usable_cores
from headrace.repository.folders import MIRROR_MARK, is_mirrored
from headrace.repository.layout import scan
from headrace.repository.model_toml import overlay
from headrace.repository.selection import select
from headrace.repository.untrusted import ALLOWED, INSTANCES_PER_CORE, check_untrusted
from headrace.repository.versions import VersionPolicy


def check(table: dict[str, Any], base: ModelConfig | None = None, **options: Any) -> None:
    base = base or ModelConfig()
    check_untrusted(base, overlay(base, table, where="x"), where="x", **options)


def test_allowed_fields_exist() -> None:
    for name in ALLOWED:
        field, _, inner = name.partition(".")
        value = getattr(ModelConfig(), field)
        assert not inner or isinstance(value, dict) or hasattr(value, inner)


def test_each_field_is_allowed_or_refused_on_purpose() -> None:
    """A new field of a model's configuration is refused until somebody decides."""
    tables = {name.partition(".")[0] for name in ALLOWED}
    refused = {"runtime", "isolation", "min_share", "execution_timeout"}
    assert set(ModelConfig.__struct_fields__) - tables == refused


@pytest.mark.parametrize(
    "table",
    [
        {"task": "tensor", "versions": "all", "decoupled": True},
        {"task_options": {"labels": ["a", "b"]}},
        {"runtime_options": {"graph_optimization": "off", "optional_inputs": ["b"]}},
        {"cache": {"ttl": "1m"}, "response_cache": True},
        {"rollout": {"guard": "1m"}, "queue": {"max_queue_size": 3}},
        {"instances": INSTANCES_PER_CORE * usable_cores(), "threads": usable_cores()},
        {"runtime": "auto"},
    ],
)
def test_what_may_be_said(table: dict[str, Any]) -> None:
    check(table)


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"runtime": "python"}, "runtime"),
        ({"isolation": "process"}, "isolation"),
        ({"runtime_options": {"isolation": "thread"}}, "runtime_options.isolation"),
        ({"runtime_options": {"threads": 1}}, "runtime_options.threads"),
        ({"runtime_options": {"optional_inputs.x": 1}}, "runtime_options.optional_inputs.x"),
        ({"task_options": {"tokenizer": "/x"}}, "task_options.tokenizer"),
        ({"cache": {"shared_between_tenants": True}}, "cache.shared_between_tenants"),
        ({"residency": {"max_waiting": 1}}, "residency.max_waiting"),
        ({"instances": INSTANCES_PER_CORE * usable_cores() + 1}, "instances"),
        ({"threads": usable_cores() + 1}, "threads"),
    ],
)
def test_what_may_not(table: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelLoadError, match=f"^x: {field}") as caught:
        check(table)
    assert caught.value.code == "field_refused"
    assert caught.value.details["field"] == field


def test_a_key_of_the_operator_s_is_not_changed() -> None:
    base = ModelConfig(runtime_options={"device": "CPU"}, threads=500)
    check({"threads": 500, "runtime_options": {"device": "CPU"}}, base)  # as it is
    with pytest.raises(ModelLoadError, match="device"):
        check({"runtime_options": {"device": "GPU"}}, base)


def test_config_pbtxt_says_its_backend() -> None:
    check({"runtime": "openvino"}, may_set_runtime=True)
    with pytest.raises(ModelLoadError):
        check({"isolation": "thread"}, may_set_runtime=True)


def test_a_link_into_a_mirror_is_in_it(tmp_path) -> None:
    (tmp_path / "mirror" / MIRROR_MARK).mkdir(parents=True)
    (tmp_path / "mirror" / "m" / "1").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "mirror" / "m")
    (tmp_path / "all").symlink_to(tmp_path / "mirror")
    for path in ("mirror", "mirror/m", "mirror/m/1", "link", "link/1", "all", "all/m"):
        assert is_mirrored(tmp_path / path), path
    assert not is_mirrored(tmp_path)


def test_a_link_to_a_file_of_a_mirror_is_no_better(tmp_path) -> None:
    """The operator's own links inside a repository, to what came from a store."""
    code = tmp_path / "mirror" / "m" / "1"
    code.mkdir(parents=True)
    (tmp_path / "mirror" / MIRROR_MARK).mkdir()
    (code / "model.py").write_text("def predict(x: list[int]) -> list[int]: return x")
    (code / "model.toml").write_text("min_share = 0.5")
    for name in ("file", "own"):
        (tmp_path / name / "1").mkdir(parents=True)
    (tmp_path / "own" / "1" / "model.py").write_bytes((code / "model.py").read_bytes())
    (tmp_path / "file" / "1" / "model.py").symlink_to(code / "model.py")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1").symlink_to(code)
    found = scan([tmp_path], config=Config())
    may = {source.name: source.may_run_code for source in found.models}
    assert may == {"file": False, "own": True}
    codes = {problem.name: problem.error.code for problem in found.problems}
    assert codes.get("folder") == "field_refused"


def test_an_archive_s_settings_are_not_taken_unasked() -> None:
    files = {"m/model.onnx": 1, "m/model.toml": 1, "m/labels.txt": 1}
    assert set(select(files, {}, ())) == {"m/model.onnx", "m/labels.txt"}
    assert "m/model.toml" in select(files, {}, ["m/*"])


MANY_WARMUPS = [{"rows": 1, "count": 10}] * 101
STEP = {"model": "a", "input_map": {}, "output_map": {}}


@pytest.mark.parametrize(
    ("table", "field", "told"),
    [
        ({"instances": 1025}, "instances", "1024"),
        ({"threads": 1025}, "threads", "1024"),
        ({"priority_levels": 101}, "priority_levels", "100"),
        ({"default_priority": 101}, "default_priority", "100"),
        ({"batching": {"max_batch_size": 65_537}}, "batching.max_batch_size", "65536"),
        ({"queue": {"max_queue_size": 1_000_001}}, "queue.max_queue_size", "1000000"),
        ({"residency": {"max_waiting": 1_000_001}}, "residency.max_waiting", "1000000"),
        ({"sequence": {"max_sequences": 65_537}}, "sequence.max_sequences", "65536"),
        ({"cache": {"semantic_entries": 100_001}}, "cache.semantic_entries", "100000"),
        ({"warmup": [{"rows": 65_537}]}, "warmup[0].rows", "65536"),
        ({"warmup": [{"count": 10_001}]}, "warmup[0].count", "10000"),
        ({"warmup": MANY_WARMUPS}, "warmup", "100"),
        ({"ensemble": [STEP] * 101}, "ensemble", "100"),
    ],
)
def test_no_count_is_without_a_maximum(table: dict[str, Any], field: str, told: str) -> None:
    """The field, the value and the maximum are named."""
    with pytest.raises(ConfigError, match=told) as caught:
        overlay(ModelConfig(), table, where="x")
    assert caught.value.details["field"] == field
    if field not in ("warmup", "ensemble"):
        assert f"got {int(told) + 1}" in caught.value.message


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"batching": {"max_batch_size": 4097}}, "batching.max_batch_size"),
        ({"queue": {"max_queue_size": 16_385}}, "queue.max_queue_size"),
        ({"queue": {"max_queue_bytes": 2**30 + 1}}, "queue.max_queue_bytes"),
        ({"queue": {"max_queue_bytes": 0}}, "queue.max_queue_bytes"),
        ({"priority_levels": 17}, "priority_levels"),
        ({"sequence": {"max_sequences": 1025}}, "sequence.max_sequences"),
        ({"ensemble": [STEP] * 33}, "ensemble"),
        ({"warmup": [{"count": 501}, {"count": 500}]}, "warmup.count"),
        ({"warmup": [{"rows": 1001, "count": 100}]}, "warmup.rows"),
    ],
)
def test_untrusted_models_ask_for_less(table: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelLoadError, match=field) as caught:
        check(table)
    assert (caught.value.code, caught.value.details["field"]) == ("field_refused", field)


def test_a_hundred_versions_are_served_together() -> None:
    VersionPolicy("all", model="words").check(range(1, 101))
    VersionPolicy("latest", model="words").check(range(1, 1000))
    for text in ("all", "latest:101", ",".join(map(str, range(1, 102)))):
        with pytest.raises(ConfigError, match="at most 100"):
            VersionPolicy(text, model="words").check(range(1, 200))
