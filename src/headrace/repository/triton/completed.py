"""The configuration as Triton's own ``/config`` route would show it: what was said, and defaults.

Follows ``NormalizeModelConfig``, ``NormalizeInstanceGroup`` and ``AutoCompleteBackendFields`` of
Triton 2.51. Where a model's inputs or outputs were left to be found in its file, and so its
``max_batch_size``, that field stays away: only the loaded model knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.repository.triton.backends import ENSEMBLE, Backend
from headrace.repository.triton.schema import with_defaults

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

SEQUENCE_IDLE_US = 1_000_000
"""Of a sequence whose configuration says 0."""

_ONNX_INSTANCES = 2
"""What Triton starts of an ONNX model on CPUs where nothing is said."""


def completed(
    said: dict[str, Any], descriptor: Descriptor, *, name: str, backend: Backend | None
) -> dict[str, Any]:
    """``said`` in full: every field with its value, as JSON.

    Args:
        said: the fields of ``config.pbtxt``.
        descriptor: of the message ``ModelConfig``.
        name: the model's, where the file has none.
        backend: what runs it; None where nobody said and the files do not tell.
    """
    values = dict(said)
    values["name"] = values.get("name") or name
    values.setdefault("version_policy", {"latest": {"num_versions": 1}})
    most = values.get("max_batch_size", 0)
    if (batching := values.get("dynamic_batching")) is not None:
        values["dynamic_batching"] = _with_preferred(batching, most)
    if (sequences := values.get("sequence_batching")) is not None:
        values["sequence_batching"] = _sequences(sequences, most)
    if backend is not None:
        _complete_backend(values, backend)
    if "ensemble_scheduling" not in values:
        values["optimization"] = {
            "input_pinned_memory": {"enable": True},
            "output_pinned_memory": {"enable": True},
            **values.get("optimization", {}),
        }
        values["instance_group"] = _instances(values, backend)
    full = with_defaults(values, descriptor)
    if not (values.get("input") and values.get("output")) and "max_batch_size" not in said:
        del full["max_batch_size"]
    return full


def _with_preferred(batching: dict[str, Any], most: int) -> dict[str, Any]:
    preferred = batching.get("preferred_batch_size") or ([most] if most > 0 else [])
    return {**batching, "preferred_batch_size": preferred}


def _sequences(sequences: dict[str, Any], most: int) -> dict[str, Any]:
    idle = sequences.get("max_sequence_idle_microseconds") or SEQUENCE_IDLE_US
    full = {**sequences, "max_sequence_idle_microseconds": idle}
    if "oldest" in sequences:
        full["oldest"] = _with_preferred(sequences["oldest"], most)
    return full


def _complete_backend(values: dict[str, Any], backend: Backend) -> None:
    if backend is ENSEMBLE:
        values["platform"] = backend.platform
        return
    values["backend"] = values.get("backend") or backend.name
    values["platform"] = values.get("platform") or backend.platform
    values["default_model_filename"] = values.get("default_model_filename") or backend.filename


def _instances(values: dict[str, Any], backend: Backend | None) -> list[dict[str, Any]]:
    default = _ONNX_INSTANCES if backend is not None and backend.name == "onnxruntime" else 1
    groups = [dict(group) for group in values.get("instance_group") or [{"name": values["name"]}]]
    for number, group in enumerate(groups):
        group["name"] = group.get("name") or f"{values['name']}_{number}"
        if group.get("kind", "KIND_AUTO") == "KIND_AUTO":
            group["kind"] = "KIND_CPU"
        if group.get("count", 0) < 1:
            group["count"] = default if group["kind"] == "KIND_CPU" else 1
    return groups
