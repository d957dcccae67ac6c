"""One version of one model, as the engine serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from headrace.config import ModelConfig
from headrace.core.events import LearntCost
from headrace.core.overtime import FLOOR_NS
from headrace.engine.health import Health
from headrace.engine.sequence_inputs import SequenceInputs
from headrace.engine.signature import InputCheck, Signature, check_of
from headrace.errors import HeadraceError, InstanceDied, RequestError
from headrace.runtimes.base import LoadedModel
from headrace.tasks.base import Task
from headrace.types import DTYPE_OF, DYNAMIC, ModelMetadata, Tensor, TensorSpec

if TYPE_CHECKING:
    from headrace.engine.inflight import Member, Ticket

Intake = Callable[["Ticket"], None]
"""What becomes of a request that was checked, where it is not queued at once: a task prepares
it, an ensemble runs its steps, a sequence waits for its turn, a cache answers. It never calls
the reply before it returns."""

Collate = Callable[[Sequence["Member"]], tuple[list["np.ndarray | None"], int]]
"""Replaces ``collate.collate``: the batch's arrays as the model takes them, and its rows."""

Finish = Callable[["Ticket"], list[Tensor]]
"""Makes the public outputs of a ticket's results, where they are not simply the model's own."""


class SequenceHooks(Protocol):
    """What the engine tells the sequences of a model; see ``engine.sequences``."""

    def begin(self, parts: Sequence[Member]) -> None:
        """A batch of these is handed to its instance."""
        ...

    def again(self, ticket: Ticket) -> bool:
        """Its batch is over and its answer is not final: whether it is run again."""
        ...

    def failed(self, lane: ServedModel, parts: Sequence[Member], error: HeadraceError) -> bool:
        """A batch failed: whether its requests are not to be run again, one by one."""
        ...

    def close(self) -> None:
        """The model is being removed."""
        ...


class Profile(msgspec.Struct, frozen=True):
    """What was measured about a model on this machine. Remembered between starts.

    max_rows        rows in a batch beyond which the cost per row no longer falls
    inline_rows     batches up to this many rows cost less than a hop to a thread; 0: none
    batch_tokens    rows x longest beyond which the cost per token no longer falls; 0: no length
    overhead_tokens what one more execution costs, in tokens
    row_ns          cost of the smallest execution
    batchable       rows do not influence one another (checked, not assumed)
    reason          why it is not batchable, or why something was not measured; "" if all is well
    costs           what batches take, by kind of instance: measured here at first, then learnt
                    from every batch that ran
    """

    max_rows: int = 1
    inline_rows: int = 0
    batch_tokens: int = 0
    overhead_tokens: int = 0
    row_ns: int = 0
    batchable: bool = False
    reason: str = ""
    costs: dict[int, LearntCost] = {}


class ServedModel:
    """A loaded version with everything a request needs, resolved once.

    Owned by the engine; ``number`` is the core's name for it.
    """

    __slots__ = (
        "answer_row_bytes",
        "batchable",
        "busy",
        "checks",
        "collate",
        "config",
        "decoupled",
        "fingerprint",
        "finish",
        "health",
        "input_count",
        "intake",
        "labels",
        "lanes",
        "loaded",
        "look_ns",
        "metadata",
        "name",
        "nonfinite_refused",
        "notice",
        "number",
        "on_idle",
        "output_index",
        "output_row_values",
        "padding",
        "preparing",
        "profile",
        "ragged",
        "required",
        "row_bytes",
        "rows_declared",
        "rows_sent",
        "runtime",
        "sequence_inputs",
        "sequences",
        "signature",
        "size_bytes",
        "slo_ns",
        "slots",
        "sole_output",
        "steps",
        "stuck",
        "takes_requests",
        "task",
        "timeout_ns",
        "uniform_rows",
        "version",
        "whole",
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
        self.name, self.version = metadata.name, version
        self.metadata = metadata
        self.loaded = loaded
        self.task = task
        self.runtime = runtime
        self.config = config
        self.number, self.profile = 0, Profile()
        self.batchable = False
        self.rows_sent = False  # the caller's first axis counts rows, with no task in between
        self.rows_declared = False  # the same, said by its configuration and perhaps not proved
        self.preparing = 0  # requests that a task is turning into items right now
        self.health = Health()
        self.size_bytes = 0  # in memory, as measured when it was loaded; 0: it was not
        self.busy = 0  # requests that have not ended and batches that run, together
        self.on_idle: Callable[[], None] | None = None  # called when busy has become 0
        self.padding = task.padding if task is not None else None
        # The answer itself, where there is one output and no task makes something of it.
        self.sole_output = loaded.outputs[0] if task is None and len(loaded.outputs) == 1 else None
        self.takes_requests = getattr(loaded, "takes_requests", False)
        self.decoupled = getattr(loaded, "decoupled", False)
        self.intake: Intake | None = None
        self.collate: Collate | None = None
        self.finish: Finish | None = None
        self.steps = tuple([step.model for step in config.ensemble])  # of an ensemble
        self.sequence_inputs: SequenceInputs | None = None  # of a stateful model
        self.sequences: SequenceHooks | None = None
        self.lanes: tuple[ServedModel, ...] = ()  # its instances, where they are told apart
        self.whole: ServedModel | None = None  # the model that a lane is an instance of
        self.signature: Signature | None = None  # where it is declared
        self.labels: dict[str, tuple[str, ...]] = {}  # of outputs, for the classification
        self.ragged: frozenset[int] = frozenset()  # inputs of any size, run without padding
        self.stuck = 0  # executions that cannot be ended
        self.notice: Callable[[str], None] = _unheard  # told what belongs into its history
        self.timeout_ns = int(config.queue.timeout_s * 1e9)
        self.look_ns = config.execution_timeout_ns or FLOOR_NS  # before that no execution hangs
        self.slo_ns = config.slo.target_ns
        self.fingerprint = ""  # of its content, where answers are shared with other processes
        self.row_bytes = 0  # of all inputs, where every row has as many
        self.nonfinite_refused = not config.allow_nonfinite
        self.input_count = self.slots = len(inputs := metadata.inputs)
        self.answer_row_bytes = sum(map(_answer_row_bytes, metadata.outputs))
        self.required = frozenset(spec.name for spec in inputs if not spec.optional)
        self.checks: dict[str, InputCheck] = {}
        self.uniform_rows = False
        self.set_checks({s.name: check_of(i, s.datatype, s.shape) for i, s in enumerate(inputs)})
        self.output_index = {spec.name: i for i, spec in enumerate(metadata.outputs)}
        # Elements of all outputs for one row; open dimensions count as 1.
        self.output_row_values = sum(
            prod([abs(size) for size in spec.shape]) for spec in metadata.outputs
        )

    @property
    def places(self) -> int:
        """Executions at one time."""
        return max(1, self.loaded.concurrency)

    @property
    def unavailable(self) -> str:
        """Why no instance of it can run anything now; "": one can."""
        if self.stuck >= self.places:
            return f"{self.stuck} of {self.places} instances are in executions that do not end"
        if not getattr(self.loaded, "serving", True):
            return "none of its processes is alive"
        return ""

    @property
    def serving(self) -> bool:
        """Whether an instance of it can run."""
        return not self.unavailable

    def batch_begins(self, parts: Sequence[Member]) -> None:
        """A batch of it is handed to an instance."""
        (self.whole or self).busy += 1
        if self.sequences is not None:
            self.sequences.begin(parts)

    def batch_failed(self, parts: Sequence[Member], error: HeadraceError) -> bool:
        """A batch of it failed: whether its requests may be run again, one by one."""
        if isinstance(error, RequestError):
            return True  # found before the model ran: the request at fault fails alone
        kept = self.sequences is not None and self.sequences.failed(self, parts, error)
        # A model that is given requests may have answered some, or asked other models for them.
        return not (kept or self.takes_requests or isinstance(error, InstanceDied))

    def set_checks(self, checks: dict[str, InputCheck]) -> None:
        """What requests are held against: one for each public input, by its name."""
        self.checks = checks
        # Nothing but the rows is free: all requests fit one another.
        self.uniform_rows = self.task is None and all(
            name in self.required and (check.index in self.ragged or DYNAMIC not in check.shape[1:])
            for name, check in checks.items()
        )
        if self.uniform_rows and not self.ragged:
            self.row_bytes = sum(
                [
                    prod(check.shape[1:]) * DTYPE_OF[check.datatype].itemsize
                    for check in checks.values()
                ]
            )

    def triton_config(self) -> dict[str, Any]:
        """Triton's ModelConfig as its JSON: protobuf field names, enum names.

        ``dims`` leave out the batch dimension where ``max_batch_size`` is above zero, as
        model_config.proto defines it. What the model's ``config.pbtxt`` said is shown as it was
        said, and the rest is what is true here.
        """
        batched = self.batchable and self.padding is None
        parameters = self.config.parameters.items()
        config: dict[str, Any] = {
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
            "parameters": {name: {"string_value": value} for name, value in parameters},
        }
        said = self.config.triton_config
        if said:
            del config["dynamic_batching"]  # one of three ways of scheduling, or none
            # What was left to us is shown as we have it.
            left_out = ("input", "output") if said.get("backend") else tuple(config)
            config |= {k: v for k, v in said.items() if v or k not in left_out}
        elif self.config.sequence is not None or self.config.ensemble:
            del config["dynamic_batching"]
        if self.config.ensemble:
            config |= {"backend": "", "instance_group": []}
            config["model_transaction_policy"] = {"decoupled": self.decoupled}
        return config


def _unheard(text: str) -> None:
    del text


def _answer_row_bytes(spec: TensorSpec) -> int:
    """What one row of an output takes at least, as a tensor and as it is sent.

    Dimensions that are not known count as 1.
    """
    size = DTYPE_OF[spec.datatype].itemsize
    return 2 * size * prod([axis for axis in spec.shape if axis != DYNAMIC])


def _triton_io(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    dims = spec.shape[1:] if batched else spec.shape
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(dims)}
