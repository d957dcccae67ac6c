"""``sequence_batching`` of a ``config.pbtxt``: strategy, controls, states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.repository.triton.schema import Said
from headrace.repository.triton.tensors import datatype
from headrace.types import DYNAMIC

Note = Callable[[str, str], None]

_AT = "sequence_batching"

STATE_FOLDER = "initial_state"
"""Where, in a model's folder, the files of first states lie."""

_KINDS = {
    "CONTROL_SEQUENCE_START": "start",
    "CONTROL_SEQUENCE_READY": "ready",
    "CONTROL_SEQUENCE_END": "end",
    "CONTROL_SEQUENCE_CORRID": "corrid",
}
_FALSE_TRUE = {"int32_false_true": "INT32", "fp32_false_true": "FP32", "bool_false_true": "BOOL"}
_ID_TYPES = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")


def sequence_table(said: Said, *, rows: bool, note: Note) -> dict[str, Any]:
    """The table of ``sequence``.

    Raises:
        ConfigError: a control that is there twice or has not exactly one pair of values, or a
            state without name or datatype; with file, line and field.
    """
    batching = said.values["sequence_batching"]
    oldest = batching.get("oldest")
    table: dict[str, Any] = {"strategy": "direct" if oldest is None else "oldest"}
    if oldest is not None and oldest.get("max_candidate_sequences"):
        table["max_sequences"] = oldest["max_candidate_sequences"]
    for strategy in ("direct", "oldest"):
        for name in ("max_queue_delay_microseconds", "minimum_slot_utilization"):
            if batching.get(strategy, {}).get(name):
                note(f"{_AT}.{strategy}.{name}", "a batch never waits for more rows")
        for name in ("preferred_batch_size", "preserve_ordering"):
            value = batching.get(strategy, {}).get(name)
            if value and value != [said.values.get("max_batch_size")]:  # Triton's default
                note(f"{_AT}.{strategy}.{name}", "rows run as they come; a sequence's in order")
    if idle_us := batching.get("max_sequence_idle_microseconds"):
        table["idle_timeout_s"] = min(idle_us / 1e6, 86_400)
    if batching.get("iterative_sequence"):
        table["iterative"] = True
    table["controls"] = _controls(said, batching)
    table["states"] = [
        _state(said, f"{_AT}.state[{number}]", state, rows=rows, note=note)
        for number, state in enumerate(batching.get("state", ()))
    ]
    return table


def _controls(said: Said, batching: dict[str, Any]) -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = []
    for number, tensor in enumerate(batching.get("control_input", ())):
        at = f"{_AT}.control_input[{number}]"
        if not tensor.get("name"):
            raise said.error(at, "must specify 'name'")
        for place, control in enumerate(tensor.get("control", ())):
            table = _control(said, f"{at}.control[{place}]", tensor["name"], control)
            if any(table["kind"] == other["kind"] for other in tables):
                raise said.error(at, f"a control of kind {table['kind']!r} is there twice")
            tables.append(table)
    return tables


def _control(said: Said, at: str, name: str, control: dict[str, Any]) -> dict[str, Any]:
    kind = _KINDS[control.get("kind", "CONTROL_SEQUENCE_START")]
    pairs = [field for field in _FALSE_TRUE if control.get(field)]
    if kind == "corrid":
        id_type = datatype(said, at, control.get("data_type", ""))
        if id_type not in _ID_TYPES:
            raise said.error(f"{at}.data_type", f"expected one of {', '.join(_ID_TYPES)}")
        if pairs:
            raise said.error(f"{at}.{pairs[0]}", "cannot be said of CONTROL_SEQUENCE_CORRID")
        return {"name": name, "kind": kind, "datatype": id_type}
    if len(pairs) != 1:
        raise said.error(at, f"must specify exactly one of {', '.join(_FALSE_TRUE)}")
    values = control[pairs[0]]
    if len(values) != 2:
        raise said.error(f"{at}.{pairs[0]}", f"expected two values, got {len(values)}")
    return {
        "name": name,
        "kind": kind,
        "datatype": _FALSE_TRUE[pairs[0]],
        "false_value": float(values[0]),
        "true_value": float(values[1]),
    }


def _state(said: Said, at: str, state: dict[str, Any], *, rows: bool, note: Note) -> dict[str, Any]:
    for name in ("input_name", "output_name"):
        if not state.get(name):
            raise said.error(at, f"must specify {name!r}")
    dims = state.get("dims", ())
    if not dims:
        raise said.error(at, "must specify 'dims'")
    table: dict[str, Any] = {
        "input_name": state["input_name"],
        "output_name": state["output_name"],
        "datatype": datatype(said, at, state.get("data_type", "")),
        "shape": [DYNAMIC, *dims] if rows else list(dims),
    }
    initial = state.get("initial_state", ())
    if len(initial) > 1:
        raise said.error(f"{at}.initial_state", f"expected one, got {len(initial)}")
    for first in initial:
        # The first value has a size of its own where the state's is free.
        sizes = first.get("dims") or dims
        if len(sizes) != len(dims):
            raise said.error(f"{at}.initial_state[0].dims", f"expected {len(dims)} of them")
        table["shape"] = [DYNAMIC, *sizes] if rows else list(sizes)
        if first.get("data_file"):
            table["initial_file"] = f"{STATE_FOLDER}/{first['data_file']}"
    for name in ("use_same_buffer_for_input_output", "use_growable_memory"):
        if state.get(name):
            note(f"{at}.{name}", "memory of states is managed by the server")
    return table
