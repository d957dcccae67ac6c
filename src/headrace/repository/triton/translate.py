"""What a ``config.pbtxt`` means here: the fields of :class:`headrace.config.ModelConfig`.

The result is a table as ``model.toml`` would hold it, so that it is laid over the defaults and
under a ``model.toml`` like any other. What means nothing here is said once, in ``notes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from headrace.limits import MetricLabel
from headrace.repository.triton.schema import Said
from headrace.repository.triton.sequences import sequence_table
from headrace.repository.triton.tensors import batch_inputs, tensors, warmups

Table = dict[str, Any]

_MAX_TIMEOUT_S = 86_400
"""The longest that ``queue.timeout_s`` may be."""

_NEVER_WAITS = "a batch never waits for more rows: it is as large as what is queued"

_ACCELERATORS = {"openvino": "openvino"}
"""``cpu_execution_accelerator`` -> the runtime that is the same thing here."""

_ONNX_SESSION = {
    "enable_mem_arena",
    "enable_mem_pattern",
    "memory.enable_memory_arena_shrinkage",
    "execution_mode",
    "inter_op_thread_count",
}
"""Parameters of Triton's ONNX Runtime backend that this server decides by itself."""


class Translation:
    """One configuration's table, and notes on what it says without effect."""

    def __init__(self, said: Said) -> None:
        self.said = said
        self.values = said.values
        self.most = said.values.get("max_batch_size", 0)
        self.table: Table = {}
        self.notes: list[str] = []
        if self.most < 0:
            raise said.error("max_batch_size", f"expected 0 or more, got {self.most}")

    def note(self, path: str, why: str) -> None:
        """Says that a field has no effect here."""
        self.notes.append(f"{self.said.place(path)}: {path} has no effect: {why}")


def translate(said: Said, *, stateless: bool) -> Translation:
    """The table for ``said``.

    Args:
        said: a configuration.
        stateless: rows of different requests may meet in a batch without being asked for
            (ONNX, OpenVINO): they cannot tell.

    Raises:
        ConfigError: a value that Triton would refuse too; with file, line and field.
    """
    made = Translation(said)
    for step in (_signature, _batching, _queue, _sequences, _instances, _versions, _behaviour):
        step(made)
    _ensemble(made)
    _optimization(made)
    _parameters(made)
    made.notes.extend(_without_effect(made))
    asked = "dynamic_batching" in said.values or "sequence_batching" in said.values
    left_open = stateless and "max_batch_size" not in said.values and not _is_declared(made)
    if not left_open and (made.most == 0 or not (asked or stateless)):
        made.table["batching"] = {"max_batch_size": 1}
    return made


def _is_declared(made: Translation) -> bool:
    """Whether the signature is said, and not left to be found in the model's file."""
    return bool(made.values.get("input") and made.values.get("output"))


def _signature(made: Translation) -> None:
    said, table = made.said, made.table
    for ours, theirs in (("inputs", "input"), ("outputs", "output")):
        if theirs in made.values:
            table[ours] = tensors(said, theirs, rows=made.most > 0, note=made.note)
    if "batch_input" in made.values:
        table["batch_inputs"] = batch_inputs(said)
    if "model_warmup" in made.values:
        table["warmup"] = warmups(said)


def _batching(made: Translation) -> None:
    if made.most > 0:
        made.table["batching"] = {"max_batch_size": made.most}
    batching = made.values.get("dynamic_batching", {})
    if batching.get("max_queue_delay_microseconds"):
        made.note("dynamic_batching.max_queue_delay_microseconds", _NEVER_WAITS)
    for size in batching.get("preferred_batch_size", ()):
        if not 0 < size <= made.most:
            raise made.said.error(
                "dynamic_batching.preferred_batch_size",
                f"expected 1 to max_batch_size ({made.most}), got {size}",
            )
    if batching.get("preferred_batch_size", [made.most]) != [made.most]:
        made.note("dynamic_batching.preferred_batch_size", _NEVER_WAITS)
    if batching.get("preserve_ordering"):
        made.note(
            "dynamic_batching.preserve_ordering",
            "answers leave when they are ready; those to one HTTP/1.1 connection are in order",
        )


def _queue(made: Translation) -> None:
    batching = made.values.get("dynamic_batching", {})
    queue: Table = {}
    levels = batching.get("priority_levels", 0)
    if levels:
        default = batching.get("default_priority_level", 0)
        if not 1 <= default <= levels:
            raise made.said.error(
                "dynamic_batching.default_priority_level",
                f"expected 1 to priority_levels ({levels}), got {default}",
            )
        made.table |= {"priority_levels": levels, "default_priority": default}
    policy = batching.get("default_queue_policy", {})
    at = "dynamic_batching.default_queue_policy"
    if timeout_us := policy.get("default_timeout_microseconds"):
        queue["timeout_s"] = min(timeout_us / 1e6, _MAX_TIMEOUT_S)
    if policy.get("max_queue_size"):
        queue["max_queue_size"] = policy["max_queue_size"]
    if policy.get("timeout_action") == "DELAY":
        made.note(f"{at}.timeout_action", "a request whose time ran out is refused, not put last")
    if policy and timeout_us and not policy.get("allow_timeout_override"):
        made.note(f"{at}.allow_timeout_override", "a request's own timeout always counts")
    if batching.get("priority_queue_policy"):
        made.note(
            "dynamic_batching.priority_queue_policy", "every level has the default queue policy"
        )
    if queue:
        made.table["queue"] = queue


def _sequences(made: Translation) -> None:
    if "sequence_batching" in made.values:
        made.table["sequence"] = sequence_table(made.said, rows=made.most > 0, note=made.note)


def _instances(made: Translation) -> None:
    count = 0
    for number, group in enumerate(made.values.get("instance_group", ())):
        at = f"instance_group[{number}]"
        if group.get("passive"):
            made.note(f"{at}.passive", "instances that run nothing are not made")
            continue
        if group.get("count", 0) < 0:
            raise made.said.error(f"{at}.count", f"expected 1 or more, got {group['count']}")
        count += group.get("count", 0)
        if group.get("kind") == "KIND_GPU":
            made.note(f"{at}.kind", "the model runs on the CPU; KIND_GPU is read as KIND_CPU")
        for name in ("gpus", "rate_limiter", "profile", "secondary_devices", "host_policy"):
            if group.get(name):
                made.note(f"{at}.{name}", "instances are threads or processes on the CPU")
    if count:
        made.table["instances"] = count


def _versions(made: Translation) -> None:
    policy = made.values.get("version_policy", {})
    if "all" in policy:
        made.table["versions"] = "all"
    elif "specific" in policy:
        numbers = policy["specific"].get("versions", ())
        if not numbers or min(numbers) < 1:
            raise made.said.error(
                "version_policy.specific.versions", "expected at least one number above 0"
            )
        made.table["versions"] = ",".join(map(str, numbers))
    elif "latest" in policy:
        made.table["versions"] = f"latest:{policy['latest'].get('num_versions') or 1}"


def _behaviour(made: Translation) -> None:
    table, values = made.table, made.values
    if values.get("model_transaction_policy", {}).get("decoupled"):
        table["decoupled"] = True
    if values.get("response_cache", {}).get("enable"):
        for field, stands in (
            ("sequence_batching", "sequence_batching" in values),
            ("model_transaction_policy.decoupled", table.get("decoupled", False)),
        ):
            if stands:
                raise made.said.error("response_cache.enable", f"cannot stand beside {field}")
        table["response_cache"] = True
    for tag, value in values.get("metric_tags", {}).items():
        try:
            table.setdefault("metric_tags", {})[msgspec.convert(tag, MetricLabel)] = value
        except msgspec.ValidationError:
            made.note(f"metric_tags[{tag!r}]", "Prometheus takes no such label name")


def _ensemble(made: Translation) -> None:
    scheduling = made.values.get("ensemble_scheduling")
    if scheduling is None:
        if made.values.get("platform") == "ensemble":
            raise made.said.error("platform", "an ensemble needs ensemble_scheduling { step ... }")
        return
    said, at = made.said, "ensemble_scheduling"
    if made.values.get("platform") != "ensemble":
        raise said.error(at, 'needs platform: "ensemble"')
    for name in ("instance_group", "optimization", "model_warmup"):
        if made.values.get(name):
            raise said.error(name, "cannot be said of an ensemble; say it of its steps")
    steps = []
    for number, step in enumerate(scheduling.get("step", ())):
        place = f"{at}.step[{number}]"
        for name in ("model_name", "input_map", "output_map"):
            if not step.get(name):
                raise said.error(place, f"must specify {name!r}")
        version = step.get("model_version", 0)
        steps.append(
            {
                "model": step["model_name"],
                "version": str(version) if version > 0 else "",
                "input_map": step["input_map"],
                "output_map": step["output_map"],
            }
        )
        if step.get("model_namespace"):
            made.note(f"{place}.model_namespace", "a model's name is unique here")
    if not steps:
        raise said.error(at, "must specify 'step'")
    if scheduling.get("max_inflight_requests"):
        made.note(f"{at}.max_inflight_requests", "the queues of the steps bound what is under way")
    made.table["ensemble"] = steps


def _optimization(made: Translation) -> None:
    optimization = made.values.get("optimization", {})
    accelerators = optimization.get("execution_accelerators", {})
    for number, wanted in enumerate(accelerators.get("cpu_execution_accelerator", ())):
        at = f"optimization.execution_accelerators.cpu_execution_accelerator[{number}]"
        runtime = _ACCELERATORS.get(wanted.get("name", ""))
        if runtime is None:
            made.note(at, "the runtime's own CPU kernels are used")
        else:
            made.table["runtime"] = runtime
    if accelerators.get("gpu_execution_accelerator"):
        at = "optimization.execution_accelerators.gpu_execution_accelerator"
        made.note(at, "the model runs on the CPU")
    whys = {
        "graph": "graphs are always optimised in full; runtime_options in model.toml says less",
        "priority": "models share the cores as they are asked",
        "cuda": "the model runs on the CPU",
        "gather_kernel_buffer_threshold": "the model runs on the CPU",
        "eager_batching": _NEVER_WAITS,
    }
    for name, why in whys.items():
        if optimization.get(name, "PRIORITY_DEFAULT") not in ("PRIORITY_DEFAULT", 0, {}):
            made.note(f"optimization.{name}", why)


def _parameters(made: Translation) -> None:
    parameters = made.values.get("parameters")
    if not parameters:
        return
    texts = {key: value.get("string_value", "") for key, value in parameters.items()}
    made.table["parameters"] = texts
    threads = texts.get("intra_op_thread_count") or texts.get("INFERENCE_NUM_THREADS")
    if threads is not None:
        if not threads.isdigit():
            raise made.said.error(
                "parameters", f"expected a whole number of threads, got {threads!r}"
            )
        made.table["threads"] = int(threads)
    for name in sorted(_ONNX_SESSION & texts.keys()):
        made.note(f"parameters[{name}]", "ONNX Runtime's session is set up by measurement")


def _without_effect(made: Translation) -> Iterator[str]:
    for name, why in _NO_MEANING.items():
        if made.values.get(name):
            yield f"{made.said.place(name)}: {name} has no effect: {why}"


_NO_MEANING: Mapping[str, str] = {
    "batch_output": "an output's rows are told apart by its first axis",
    "cc_model_filenames": "there is one file for every machine",
    "model_operations": "libraries with operators of their own are not loaded",
    "model_repository_agents": "files are served as they lie there",
    "model_metrics": "the buckets of the histograms are Triton's defaults",
    "runtime": "Python models run in this server's interpreter",
}
