"""Inputs, outputs, batch inputs and warm-up requests of a ``config.pbtxt``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from headrace.repository.triton.schema import Said
from headrace.types import DYNAMIC

Note = Callable[[str, str], None]

_BATCH_INPUT_TYPES = ("TYPE_INT32", "TYPE_FP32")


def datatype(said: Said, path: str, name: str) -> str:
    """The V2 protocol's name of a ``TYPE_...``.

    Raises:
        ConfigError: it was not said.
    """
    if name in ("", "TYPE_INVALID"):
        raise said.error(path, "must specify 'data_type', such as TYPE_FP32")
    return "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")


def tensors(said: Said, field: str, *, rows: bool, note: Note) -> list[dict[str, Any]]:
    """The tables of ``input`` or ``output``; ``rows``: the first axis counts them, unsaid.

    Raises:
        ConfigError: what Triton refuses (its ``ValidateIOShape``), or a name twice.
    """
    tables: list[dict[str, Any]] = []
    for number, tensor in enumerate(said.values[field]):
        at = f"{field}[{number}]"
        name = tensor.get("name", "")
        if not name:
            raise said.error(at, "must specify 'name'")
        if any(table["name"] == name for table in tables):
            raise said.error(f"{at}.name", f"{name!r} is there twice")
        dims = _dims(said, f"{at}.dims", tensor.get("dims", ()))
        if not dims:
            raise said.error(at, f"must specify 'dims' of {name!r}")
        lead = (DYNAMIC,) if rows else ()
        table: dict[str, Any] = {
            "name": name,
            "datatype": datatype(said, at, tensor.get("data_type", "")),
            "shape": (*lead, *dims),
        }
        if "reshape" in tensor:
            wanted = _dims(said, f"{at}.reshape.shape", tensor["reshape"].get("shape", ()))
            _check_reshape(said, f"{at}.reshape", dims, wanted, rows=rows)
            table["model_shape"] = (*lead, *wanted)
        table |= _flags(said, at, tensor, dims, note)
        tables.append(table)
    return tables


def _flags(
    said: Said, at: str, tensor: dict[str, Any], dims: Sequence[int], note: Note
) -> dict[str, Any]:
    table: dict[str, Any] = {}
    if tensor.get("optional"):
        table["optional"] = True
    if tensor.get("allow_ragged_batch"):
        table["ragged"] = True
    if tensor.get("label_filename"):
        table["labels"] = tensor["label_filename"]
    if tensor.get("is_shape_tensor"):
        raise said.error(f"{at}.is_shape_tensor", "shape tensors are TensorRT's only")
    if tensor.get("format", "FORMAT_NONE") != "FORMAT_NONE":
        if len(dims) != 3:
            raise said.error(f"{at}.dims", f"{tensor['format']} requires 3 of them")
        note(f"{at}.format", "tensors are handed on as they come")
    if tensor.get("is_non_linear_format_io"):
        note(f"{at}.is_non_linear_format_io", "it is TensorRT's")
    return table


def batch_inputs(said: Said) -> list[dict[str, Any]]:
    """The tables of ``batch_input``, one for each target.

    Raises:
        ConfigError: not one source, an unknown source, or neither INT32 nor FP32.
    """
    names = {tensor.get("name") for tensor in said.values.get("input", ())}
    tables = []
    for number, made in enumerate(said.values["batch_input"]):
        at = f"batch_input[{number}]"
        sources = made.get("source_input", ())
        if len(sources) != 1:
            raise said.error(f"{at}.source_input", f"expected 1 source input, got {len(sources)}")
        if sources[0] not in names:
            raise said.error(f"{at}.source_input", f"there is no input {sources[0]!r}")
        kind = made.get("data_type", "")
        if kind not in _BATCH_INPUT_TYPES:
            raise said.error(at, f"data_type must be one of {', '.join(_BATCH_INPUT_TYPES)}")
        tables += [
            {
                "name": target,
                "datatype": datatype(said, at, kind),
                "kind": made.get("kind", "BATCH_ELEMENT_COUNT"),
                "source": sources[0],
            }
            for target in made.get("target_name", ())
        ]
    return tables


def warmups(said: Said) -> list[dict[str, Any]]:
    """The tables of ``model_warmup``.

    Raises:
        ConfigError: an input without datatype or data.
    """
    tables = []
    for number, warmup in enumerate(said.values["model_warmup"]):
        at = f"model_warmup[{number}]"
        tables.append(
            {
                "name": warmup.get("name", ""),
                "rows": warmup.get("batch_size") or 1,
                "count": warmup.get("count") or 1,
                "inputs": {
                    name: _warmup_input(said, f"{at}.inputs[{name}]", made)
                    for name, made in warmup.get("inputs", {}).items()
                },
            }
        )
    return tables


def _warmup_input(said: Said, at: str, made: dict[str, Any]) -> dict[str, Any]:
    if made.get("input_data_file"):
        data = made["input_data_file"]
    elif made.get("random_data"):
        data = "random"
    elif made.get("zero_data"):
        data = "zero"
    else:
        raise said.error(at, "must specify one of zero_data, random_data, input_data_file")
    return {
        "datatype": datatype(said, at, made.get("data_type", "")),
        "shape": list(made.get("dims", ())),
        "data": data,
    }


def _dims(said: Said, path: str, dims: Sequence[int]) -> tuple[int, ...]:
    for size in dims:
        if size < 1 and size != DYNAMIC:
            raise said.error(path, f"expected sizes of 1 or more, or -1 for any, got {size}")
    return tuple(dims)


def _check_reshape(
    said: Said, path: str, dims: Sequence[int], wanted: Sequence[int], *, rows: bool
) -> None:
    """Between free sizes, both shapes must have the same number of elements."""
    if not wanted and not rows:
        raise said.error(path, "cannot be empty where max_batch_size is 0: there are no scalars")
    if _elements(dims) != _elements(wanted):
        raise said.error(
            path, f"has a different size: dims are {list(dims)}, shape is {list(wanted)}"
        )


def _elements(shape: Sequence[int]) -> list[int]:
    pieces = [1]
    for is_free, sizes in groupby(shape, lambda size: size == DYNAMIC):
        if is_free:
            pieces += [1] * len(list(sizes))
        else:
            pieces[-1] *= math.prod(sizes)
    return pieces
