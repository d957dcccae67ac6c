"""Where a model runs: inside the server or in child processes. A pure choice, with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from headrace.config import ModelConfig
from headrace.limits import MIB
from headrace.runtimes.python.options import isolation_of

LARGE_MODEL_BYTES = 256 * MIB
"""Files of a model that is worth a process for its memory alone. A library that unloads gives
back what it allocated, but not always to the kernel: tens of megabytes may stay with the
allocator. A process has 40 MB of its own, so below this it would cost more than it returns."""

_OURS = frozenset({"onnxruntime", "openvino"})
_CPU_PROVIDER = "CPUExecutionProvider"
_CODE_OPTIONS = ("custom_op_libraries", "extensions")
"""``runtime_options`` by which a runtime is handed code that is not its own."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice depends on beside the model's configuration.

    ``model_bytes``: of the files it is loaded from. ``memory_budget``: bytes that all models
    together are to keep within, by unloading; 0: there is none. ``triton``: a model of Triton's
    Python backend.
    """

    runtime: str
    model_bytes: int = 0
    memory_budget: int = 0
    triton: bool = False

    @property
    def must_return_memory(self) -> bool:
        """Whether unloading it has to be seen in the memory of the server."""
        return self.memory_budget > 0 and self.model_bytes >= LARGE_MODEL_BYTES


class Isolation(NamedTuple):
    """The choice, and why in a few words."""

    kind: Literal["process", "thread"]
    reason: str


def choose_isolation(config: ModelConfig, facts: Facts) -> Isolation:
    """``config.isolation``, and for ``auto`` the cheaper one that can be trusted."""
    options = config.runtime_options
    if facts.runtime == "python":
        return _of_python(config, facts)
    if facts.runtime in {"null", "ensemble"}:
        return Isolation("thread", "it has no code that could fail")
    if config.isolation != "auto":
        return Isolation(config.isolation, "as configured")
    if facts.runtime not in _OURS:
        return Isolation("process", f"the runtime {facts.runtime} is another package's")
    for name in _CODE_OPTIONS:
        if options.get(name):
            return Isolation("process", f"runtime_options.{name} brings code of its own")
    device = _device(options)
    if device:
        return Isolation("process", f"{device} has a driver that can fail")
    if facts.must_return_memory:
        size = facts.model_bytes // MIB
        return Isolation("process", f"unloading it must give its {size} MiB back")
    return Isolation("thread", "our own runtime on the CPU, where a hop is all that costs")


def _of_python(config: ModelConfig, facts: Facts) -> Isolation:
    if facts.triton:
        return Isolation("process", "Triton's Python models always have processes")
    kind = isolation_of(config.runtime_options, config.isolation)
    if config.runtime_options.get("isolation") or config.isolation != "auto":
        reason = "as configured"
    else:
        reason = "Python code can hold the interpreter lock"
    return Isolation("thread" if kind == "thread" else "process", reason)


def _device(options: Mapping[str, Any]) -> str:
    """What computes beside the CPU: an execution provider, a device of OpenVINO's; or ""."""
    providers = options.get("providers")
    for provider in providers if isinstance(providers, list | tuple) else ():
        name = provider if isinstance(provider, str) else str(next(iter(provider), ""))
        if name != _CPU_PROVIDER:
            return name
    device = str(options.get("device") or "CPU")
    return "" if device == "CPU" else device
