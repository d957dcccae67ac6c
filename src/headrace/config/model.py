"""Settings of one model: runtime, batching, queue, signature, sequences, caching, warm-up."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from headrace.lifetimes import ResidencyConfig, RolloutConfig
from headrace.limits import (
    GIB,
    MANY,
    SEVERAL,
    Levels,
    MetricLabel,
    NotNegative,
    Rows,
    Runs,
    Seconds,
    Shape,
    Workers,
)
from headrace.units import Duration, duration_ns


class BatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests of one model may be put together. 0 = measured at load."""

    max_batch_size: Rows = 0
    """Rows in one execution. 0: the smallest size whose measured cost per row is near the
    best. 1 switches batching off."""

    max_batch_tokens: NotNegative = 0
    """For models with a length: rows x longest row, padding included. 0: measured."""


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may wait. What one request alone exceeds lets it in when nothing else waits."""

    max_queue_size: Annotated[int, Meta(ge=1, le=1_000_000)] = 4096
    """Requests waiting for one model. At 1 ms each the last would wait 4 s, which nobody
    does; beyond it the answer is 503 with Retry-After."""

    max_queue_rows: NotNegative = 0
    """Rows waiting; 0: no bound of its own."""

    max_queue_tokens: NotNegative = 0
    """For models with a length: rows x length waiting; 0: no bound of its own."""

    max_queue_bytes: NotNegative = 1 * GIB
    """Of input tensors waiting: sixteen requests of the largest size. 0: no bound of its own."""

    timeout_s: Seconds = 60.0
    """A request without a timeout of its own is answered 504 after so long."""


class SloConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Within what time answers are wanted; the one number that batching is decided by."""

    p99: Duration = ""
    """From arrival to answer, for nearly all requests: ``"50ms"``. What is predicted to take
    longer is refused at once, with the time predicted and when to come back. "": no target."""

    strict: bool = False
    """True: where not even one request by itself can be so quick, all are refused. False: they
    run all the same, one after another, with a warning in the log."""

    @property
    def target_ns(self) -> int:
        """``p99`` in nanoseconds; 0: no target."""
        return duration_ns(self.p99) if self.p99 else 0


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How answers are kept, for a model with ``response_cache = true``."""

    ttl: Duration = ""
    """How long an answer may be given again: ``"10m"``. "": as long as there is room."""

    shared_between_tenants: bool = False
    """True: what one tenant asked answers another too. False: each has answers of its own."""

    max_entry_bytes: NotNegative = 0
    """Larger answers are not kept; 0: none is too large but for the cache itself."""

    semantic_model: str = ""
    """A text embedding model served here: texts that mean the same by it have the same answer.
    "": only equal requests have. For models whose one input is a text."""

    semantic_threshold: Annotated[float, Meta(gt=0, le=1)] = 0.97
    """Cosine of two embeddings from which on they mean the same."""

    semantic_verify: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """Part of such hits that is run all the same and compared, so that the rate of false ones is
    known (``headrace_cache_semantic_false_total``)."""

    semantic_entries: Annotated[int, Meta(ge=1, le=100_000)] = 10_000
    """Embeddings kept; the oldest goes first. All are compared with each request."""

    @property
    def ttl_ns(self) -> int:
        """``ttl`` in nanoseconds; 0: none."""
        return duration_ns(self.ttl) if self.ttl else 0


class TensorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input or output as it is to be seen from outside. Shapes count rows first."""

    name: str
    datatype: str
    shape: Shape
    optional: bool = False

    model_shape: Shape | None = None
    """What the model itself is given or gives, where that differs (Triton's ``reshape``)."""

    ragged: bool = False
    """Rows of different size run together, one after another, without padding (Triton's
    ``allow_ragged_batch``)."""

    labels: str = ""
    """File in the model's folder with one name a line, for the classification extension."""


class BatchInputConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input that tells the model where one ragged row ends (Triton's ``batch_input``)."""

    name: str
    datatype: str
    kind: str
    source: str


class ControlConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input through which a model is told where in its sequence a request stands."""

    name: str
    kind: Literal["start", "end", "ready", "corrid"]
    datatype: str
    false_value: float = 0
    true_value: float = 1


class StateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An output that is fed back as an input to the next request of the same sequence."""

    input_name: str
    output_name: str
    datatype: str
    shape: Shape
    """As the model has it, rows first where it has rows; free dimensions are 1 at first."""

    initial_file: str = ""
    """File in the model's folder with the raw bytes of the first value; "": zeros."""


class SequenceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests of one sequence meet one instance, one after another, in order."""

    strategy: Literal["direct", "oldest"] = "direct"
    """``direct``: a sequence keeps its row in every batch. ``oldest``: rows are put
    together as they come, at most one of each sequence."""

    max_sequences: Rows = 0
    """Under way in one instance; more wait. 0: as many as there are rows in a batch."""

    max_per_caller: NotNegative = 0
    """Of all sequences under way, how many may be of one caller (tenant and address); more wait.
    0: all that are free; while several callers wait, those with the fewest are served first."""

    idle_timeout_s: Seconds = 1.0
    """A sequence without a request for so long is over; Triton's default."""

    iterative: bool = False
    """A request is run again until the model gives its final answer (Triton's
    ``iterative_sequence``)."""

    controls: Annotated[tuple[ControlConfig, ...], SEVERAL] = ()
    states: Annotated[tuple[StateConfig, ...], MANY] = ()


class EnsembleStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of an ensemble. The maps go from its own names to those of the ensemble."""

    model: str
    version: str = ""
    input_map: dict[str, str]
    output_map: dict[str, str]


class WarmupConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A made-up request that runs before the model is ready."""

    name: str = ""
    rows: Annotated[int, Meta(ge=1, le=65_536)] = 1
    count: Runs = 1
    inputs: dict[str, dict[str, Any]] = {}
    """Name -> ``{datatype, shape, data}``; ``data`` is "zero", "random" or a file in the
    model's folder ``warmup``."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. Everything has a measured or detected default; everything can be said.

    The same fields stand in ``[models.NAME]`` of ``headrace.toml`` and in ``model.toml``
    inside a model's folder.
    """

    runtime: str = "auto"
    """``auto`` measures the installed runtimes that can run the format and keeps the
    faster; or ``onnxruntime``, ``openvino``, ``python``, ``null``."""

    task: str = "auto"
    """``auto`` detects it from the folder; or a name of ``tasks/registry.py``."""

    versions: str = "latest"
    """``latest``, ``latest:N``, ``all``, or numbers: ``"1,3"``."""

    aliases: dict[str, str] = {}
    """Names for versions, which requests may say instead of a number; they are served whatever
    ``versions`` says. ``stable`` answers requests that name none: ``{ stable = "3" }``."""

    residency: ResidencyConfig = ResidencyConfig()
    rollout: RolloutConfig = RolloutConfig()

    instances: Workers = 0
    """Executions of this model at one time. 0 = number of cores for runtimes that can
    share one copy of the weights, 1 for the rest."""

    threads: Workers = 0
    """Threads inside one execution; 0 = cores / instances, at least 1."""

    isolation: Literal["auto", "process", "thread"] = "auto"
    """``process``: in child processes, one for each of ``instances`` (one by default). What
    crashes there costs one batch, and unloading gives all memory back, for a hop to another
    process per batch. ``thread``: inside the server. ``auto``: inside, where our own runtimes
    use the CPU alone, which has not been seen to crash; in processes where other code comes in
    (other execution providers, custom operators, runtimes of other packages, Python models),
    or where a large model must give its memory back."""

    execution_timeout: Duration = ""
    """An execution that takes longer counts as hung: its requests fail with 500, and where it ran
    is ended (a child process, a run of ONNX Runtime) or given up (a thread). "": 20 times what
    nearly all executions of the size take, and at least ``queue.timeout_s`` or 60 s; an hour as
    long as fewer than 32 executions have been seen."""

    slo: SloConfig = SloConfig()
    """Within what time answers are wanted: ``{ p99 = "50ms" }``."""

    priority_levels: Levels = 0
    """A request's ``priority`` may be 1 (the first) to this; 0: it has no effect."""

    default_priority: Levels = 0
    """Of requests that say none; 0: the last level."""

    min_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Part of the instances' time that this model has before others while it has work."""

    batching: BatchConfig = BatchConfig()
    queue: QueueConfig = QueueConfig()

    allow_nonfinite: bool = True
    """False refuses NaN and infinity in floating-point inputs with a 400. True because
    NaN is how tree models spell "missing"."""

    runtime_options: dict[str, Any] = {}
    """Handed to the runtime as they are."""

    task_options: dict[str, Any] = {}
    """Handed to the task as they are (column names, labels, pooling, max_tokens ...)."""

    inputs: Annotated[tuple[TensorConfig, ...], MANY] = ()
    """The signature as it is to be seen; () = as the model has it. Needed by Triton's
    Python models and ensembles, which have none of their own."""

    outputs: Annotated[tuple[TensorConfig, ...], MANY] = ()
    """The same for the outputs; those of the model that are not named here are not served."""

    batch_inputs: Annotated[tuple[BatchInputConfig, ...], SEVERAL] = ()
    ensemble: Annotated[tuple[EnsembleStep, ...], SEVERAL] = ()
    """The steps of a model made of other models."""

    sequence: SequenceConfig | None = None
    """For models that keep a state between requests."""

    decoupled: bool = False
    """A request may have any number of answers (over gRPC's stream and ``generate_stream``)."""

    response_cache: bool = False
    """Equal requests are answered from memory; see ``server.response_cache_bytes``."""

    cache: CacheConfig = CacheConfig()

    warmup: Annotated[tuple[WarmupConfig, ...], SEVERAL] = ()
    parameters: dict[str, str] = {}
    """For the model's own use, and shown by its configuration route."""

    metric_tags: dict[MetricLabel, str] = {}
    """Labels of the model's ``nv_*`` series."""

    triton_config: dict[str, Any] = {}
    """What the model's ``config.pbtxt`` said, as JSON; shown by its configuration route."""

    @property
    def execution_timeout_ns(self) -> int:
        """``execution_timeout`` in nanoseconds; 0: automatic."""
        return duration_ns(self.execution_timeout) if self.execution_timeout else 0
