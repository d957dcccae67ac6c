"""One version of one model, as the engine serves it."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.config import ModelConfig
from headrace.runtimes.base import LoadedModel
from headrace.tasks.base import Task
from headrace.types import DYNAMIC, ModelMetadata, TensorSpec


class Profile(msgspec.Struct, frozen=True):
    """What was measured about a model on this machine. Remembered between starts.

    max_rows        rows in a batch beyond which the cost per row no longer falls
    inline_rows     batches up to this many rows cost less than a hop to a thread; 0: none
    batch_tokens    rows x longest beyond which the cost per token no longer falls; 0: no length
    overhead_tokens what one more execution costs, in tokens
    row_ns          cost of the smallest execution
    batchable       rows do not influence one another (checked, not assumed)
    reason          why it is not batchable, or why something was not measured; "" if all is well
    """

    max_rows: int = 1
    inline_rows: int = 0
    batch_tokens: int = 0
    overhead_tokens: int = 0
    row_ns: int = 0
    batchable: bool = False
    reason: str = ""


class InputCheck(msgspec.Struct, frozen=True):
    """One input of the public signature, laid out for the check of every request."""

    index: int
    datatype: str
    shape: tuple[int, ...]
    rank: int
    fixed: tuple[tuple[int, int], ...]  # (axis, size) of the dimensions the model decides


class ServedModel:
    """A loaded version with everything a request needs, resolved once.

    Owned by the engine; ``number`` is the core's name for it.
    """

    __slots__ = (
        "batchable",
        "checks",
        "config",
        "input_count",
        "loaded",
        "metadata",
        "name",
        "nonfinite_refused",
        "number",
        "output_index",
        "padding",
        "preparing",
        "profile",
        "required",
        "rows_sent",
        "runtime",
        "sole_output",
        "task",
        "timeout_ns",
        "uniform_rows",
        "version",
    )

    def __init__(
        self,
        *,
        metadata: ModelMetadata,
        version: str,
        loaded: LoadedModel,
        task: Task | None,
        runtime: str,
        config: ModelConfig,
    ) -> None:
        self.name = metadata.name
        self.version = version
        self.metadata = metadata
        self.loaded = loaded
        self.task = task
        self.runtime = runtime
        self.config = config
        self.number = 0
        self.profile = Profile()
        self.batchable = False
        self.rows_sent = False  # the caller's first axis counts rows, with no task in between
        self.preparing = 0  # requests that a task is turning into items right now
        self.padding = task.padding if task is not None else None
        # The answer itself, where there is one output and no task makes something of it.
        self.sole_output = loaded.outputs[0] if task is None and len(loaded.outputs) == 1 else None
        self.timeout_ns = int(config.queue.timeout_s * 1e9)
        self.nonfinite_refused = not config.allow_nonfinite
        inputs = metadata.inputs
        self.input_count = len(inputs)
        self.required = frozenset(spec.name for spec in inputs if not spec.optional)
        self.checks = {spec.name: _check_of(i, spec) for i, spec in enumerate(inputs)}
        # Nothing but the rows is free: all requests fit one another.
        self.uniform_rows = task is None and all(
            not spec.optional and DYNAMIC not in spec.shape[1:] for spec in inputs
        )
        self.output_index = {spec.name: i for i, spec in enumerate(metadata.outputs)}

    def triton_config(self) -> dict[str, Any]:
        """Triton's ModelConfig as its JSON: protobuf field names, enum names.

        ``dims`` leave out the batch dimension where ``max_batch_size`` is above zero, as
        model_config.proto defines it.
        """
        batched = self.batchable and self.padding is None
        return {
            "name": self.name,
            "platform": self.metadata.platform,
            "backend": self.runtime,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.profile.max_rows if batched else 0,
            "input": [
                _triton_io(spec, batched=batched) | {"optional": spec.optional}
                for spec in self.metadata.inputs
            ],
            "output": [_triton_io(spec, batched=batched) for spec in self.metadata.outputs],
            "instance_group": [
                {"name": self.name, "kind": "KIND_CPU", "count": self.loaded.concurrency}
            ],
            "dynamic_batching": {"max_queue_delay_microseconds": 0},
            "parameters": {},
        }


def _check_of(index: int, spec: TensorSpec) -> InputCheck:
    fixed = tuple((axis, size) for axis, size in enumerate(spec.shape) if size != DYNAMIC)
    return InputCheck(index, spec.datatype, spec.shape, len(spec.shape), fixed)


def _triton_io(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    dims = spec.shape[1:] if batched else spec.shape
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": [str(size) for size in dims]}
