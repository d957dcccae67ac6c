"""Which fields of its configuration a model from a store or a load request may set.

Such a model is data: it may be served, and it must not choose what runs. So its ``model.toml`` and
its ``config.pbtxt`` may set the fields of :data:`ALLOWED` and no others. The operator can set all
fields, in ``[models.NAME]`` of the server's configuration.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.config import ModelConfig
from headrace.errors import ModelLoadError
from headrace.limits import GIB
from headrace.machine import usable_cores

ALLOWED = frozenset(
    {
        # What the model is: its signature, its task, its versions.
        "task", "task_options", "inputs", "outputs", "batch_inputs", "ensemble", "sequence",
        "decoupled", "versions", "aliases", "parameters", "metric_tags", "triton_config",
        "runtime_options.optional_inputs", "runtime_options.graph_optimization",
        # How its own requests are treated.
        "allow_nonfinite", "batching", "queue", "slo", "priority_levels", "default_priority",
        "response_cache", "cache.ttl", "cache.max_entry_bytes", "cache.semantic_model",
        "cache.semantic_threshold", "cache.semantic_verify", "cache.semantic_entries",
        "warmup", "residency.load", "residency.idle_unload", "rollout",
        # Within the limits below.
        "instances", "threads",
    }
)  # fmt: skip
"""Fields of :class:`headrace.config.ModelConfig`; a table stands for everything in it.

Left out is what selects or configures code (``runtime``, ``isolation``, the other
``runtime_options``, which name execution providers, paths and properties such as ``CACHE_DIR``),
what takes from other models (``min_share``, ``residency.pinned`` and the cold-start queue), what
keeps a hung execution (``execution_timeout``), and what gives one tenant's answers to another
(``cache.shared_between_tenants``).
"""

REFUSED_KEYS = frozenset({"task_options.tokenizer"})
"""Keys of tables in :data:`ALLOWED` that name a path anywhere on this machine."""

INSTANCES_PER_CORE = 4
"""Instances that a model may ask for: more than cores, because a Python model may wait."""

MOST = {
    "batching.max_batch_size": 4096,
    "queue.max_queue_size": 16_384,
    "queue.max_queue_bytes": 1 * GIB,
    "priority_levels": 16,
    "sequence.max_sequences": 1024,
    "ensemble": 32,
    "warmup.count": 1000,
    "warmup.rows": 100_000,
}
"""What such a model may ask for: four times the default, or more than models are seen to need.
``ensemble`` counts steps; ``warmup.count`` is all runs together, ``warmup.rows`` all their rows."""

_ZERO_IS_UNBOUNDED = frozenset({"queue.max_queue_bytes"})

UNTRUSTED_VERSIONS = 8
"""Versions of such a model that are served together: each is a model in memory."""


def check_untrusted(
    before: ModelConfig, after: ModelConfig, *, where: str, may_set_runtime: bool = False
) -> None:
    """Checks what an untrusted file changed in a model's configuration.

    Args:
        before: the configuration without the file.
        after: the configuration with it.
        where: names the file in errors.
        may_set_runtime: for ``config.pbtxt``, where ``backend`` is how a model says its format.
            Whether that runtime may run the model is decided when the model is opened.

    Raises:
        ModelLoadError: the file sets a field that is not in :data:`ALLOWED`, or asks for more
            than :data:`MOST`, or more instances or threads than the machine's cores allow.
    """
    for path in _changed(before, after):
        if may_set_runtime and path == ("runtime",):
            continue
        name = ".".join(path)
        tables = {".".join(path[:depth]) for depth in range(1, len(path) + 1)}
        if not tables & ALLOWED or name in REFUSED_KEYS:
            raise ModelLoadError(
                f"{where}: {name} cannot be set by a model from a store or a load request",
                code="field_refused",
                hint="set it in [models.NAME] of the server's configuration; or set "
                'server.code_from = "anywhere" if you trust its authors',
                field=name,
            )
    was, asked = _counts(before), _counts(after)
    cores = usable_cores()
    most = {**MOST, "instances": INSTANCES_PER_CORE * cores, "threads": cores}
    for name, limit in most.items():
        unbounded = name in _ZERO_IS_UNBOUNDED and not asked[name]
        if asked[name] != was[name] and (asked[name] > limit or unbounded):
            on = f" on this machine of {cores} cores" if name in ("instances", "threads") else ""
            raise ModelLoadError(
                f"{where}: {name} = {asked[name]} is more than a model from a store or a load "
                f"request may ask for: {limit}{on}",
                code="field_refused",
                hint=f"ask for less, or set {name} in [models.NAME] of the server's configuration",
                field=name,
            )


def _counts(config: ModelConfig) -> dict[str, int]:
    queue, batching, sequence = config.queue, config.batching, config.sequence
    return {
        "instances": config.instances,
        "threads": config.threads,
        "batching.max_batch_size": batching.max_batch_size,
        "queue.max_queue_size": queue.max_queue_size,
        "queue.max_queue_bytes": queue.max_queue_bytes,
        "priority_levels": config.priority_levels,
        "sequence.max_sequences": 0 if sequence is None else sequence.max_sequences,
        "ensemble": len(config.ensemble),
        "warmup.count": sum(each.count for each in config.warmup),
        "warmup.rows": sum(each.count * each.rows for each in config.warmup),
    }


def _changed(before: object, after: object, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where values differ: the field, then the field or the key in it, and so on."""
    if isinstance(before, msgspec.Struct) and isinstance(after, type(before)):
        for field in before.__struct_fields__:
            yield from _changed(getattr(before, field), getattr(after, field), (*at, field))
    elif isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            if key not in before or key not in after or before[key] != after[key]:
                yield (*at, key)
    elif before != after:
        yield at
