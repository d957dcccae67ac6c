"""A model's metadata -> arrays it accepts, at random but reproducibly.

Shapes: the first dimension, where it is free, is the number of rows; other free dimensions
get the request's length; fixed ones stay. Values: what the name and the datatype suggest
(see ``_values``), or what ``--range`` says.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from headrace.client.spec import PayloadSpec
from headrace.client.text import make_text
from headrace.errors import ConfigError
from headrace.types import DTYPE_OF, DYNAMIC, Tensor, TensorSpec

DEFAULT_LENGTH = 16
"""Of free dimensions after the first, where neither ``--shape`` nor lengths were given."""

MAX_ELEMENTS = 64 * 1024 * 1024
"""Of one tensor; as FP32 that is a body of 256 MiB, above any server's default limit."""

_INTEGER_KINDS = "iu"

_MAX_INTEGER = 100
"""Integers are drawn below this: inside every vocabulary and category table."""


class Row(msgspec.Struct, frozen=True):
    """What one request is to be: ``rows`` samples of ``length`` words (or free elements)."""

    rows: int
    length: int


def check_overrides(specs: tuple[TensorSpec, ...], payload: PayloadSpec) -> None:
    """Refuses shapes and ranges that do not fit the model.

    Raises:
        ConfigError: an unknown input, or a shape the metadata excludes.
    """
    by_name = {spec.name: spec for spec in specs}
    for option, names in (("--shape", payload.shapes), ("--range", payload.ranges)):
        for name in names:
            if name not in by_name:
                raise ConfigError(
                    f"{option} names the input {name!r}, which the model does not have",
                    hint=f"its inputs are {', '.join(by_name)}",
                )
    for name, shape in payload.shapes.items():
        expected = by_name[name].shape
        fits = len(shape) == len(expected) and all(
            wanted in (DYNAMIC, given) for wanted, given in zip(expected, shape, strict=True)
        )
        if not fits:
            raise ConfigError(
                f"--shape {name}={','.join(map(str, shape))} does not fit "
                f"the model's {list(expected)}",
                hint="-1 stands for any size; the rest must be equal",
            )


def rows_per_request(specs: tuple[TensorSpec, ...], payload: PayloadSpec) -> int | None:
    """Rows that one request has, or None where it can have any number.

    It can where the first dimension of every input is free and no ``--shape`` decides it;
    where one is fixed by the model, the whole request is one sample.

    Raises:
        ConfigError: two shapes disagree about the rows.
    """
    if not all(spec.shape and spec.shape[0] == DYNAMIC for spec in specs):
        return 1
    given = {shape[0] for shape in payload.shapes.values()}
    if len(given) > 1:
        raise ConfigError(
            f"the shapes have different numbers of rows: {sorted(given)}",
            hint="their first dimensions must be equal",
        )
    return max(1, given.pop()) if given else None


def make_inputs(
    random: np.random.Generator, specs: tuple[TensorSpec, ...], payload: PayloadSpec, row: Row
) -> list[Tensor]:
    """One tensor for every input that is not optional.

    Raises:
        ConfigError: an unknown datatype, or more than ``MAX_ELEMENTS``.
    """
    tensors = []
    for spec in specs:
        if spec.optional and spec.name not in payload.shapes:
            continue
        shape = payload.shapes.get(spec.name) or _shape(spec, row)
        if math.prod(shape) > MAX_ELEMENTS:
            raise ConfigError(
                f"input {spec.name!r} of shape {list(shape)} has more than {MAX_ELEMENTS:,} "
                "elements",
                hint=f"give a smaller one: --shape {spec.name}=1,16",
            )
        data = _values(random, spec, shape, payload.ranges.get(spec.name), row.length)
        tensors.append(Tensor(spec.name, spec.datatype, shape, data))
    return tensors


def _shape(spec: TensorSpec, row: Row) -> tuple[int, ...]:
    sizes = [row.length if size == DYNAMIC else size for size in spec.shape]
    if spec.shape and spec.shape[0] == DYNAMIC:
        sizes[0] = row.rows
    return tuple(sizes)


def _values(
    random: np.random.Generator,
    spec: TensorSpec,
    shape: tuple[int, ...],
    bounds: tuple[float, float] | None,
    length: int,
) -> np.ndarray[Any, Any]:
    dtype = DTYPE_OF.get(spec.datatype)
    if dtype is None:
        raise ConfigError(
            f"input {spec.name!r} has the datatype {spec.datatype!r}, which V2 does not know",
            hint="give whole bodies with --input FILE.json",
        )
    if spec.datatype == "BYTES":
        texts = np.empty(math.prod(shape), dtype)
        texts[:] = [make_text(random, length).encode() for _ in range(texts.size)]
        return texts.reshape(shape)
    if spec.datatype == "BOOL":
        return random.random(shape) < 0.5
    if dtype.kind in _INTEGER_KINDS and spec.datatype != "BF16":
        return _integers(random, spec, shape, dtype, bounds)
    floats = random.standard_normal(shape) if bounds is None else random.uniform(*bounds, shape)
    if spec.datatype == "BF16":  # the upper half of an FP32
        return (floats.astype(np.float32).view(np.uint32) >> 16).astype(dtype)
    return floats.astype(dtype)


def _integers(
    random: np.random.Generator,
    spec: TensorSpec,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    bounds: tuple[float, float] | None,
) -> np.ndarray[Any, Any]:
    """Masks are ones, segment and token types zeros, bytes anything, the rest below 100."""
    if bounds is not None:
        low, high = int(bounds[0]), int(bounds[1])
    elif "mask" in spec.name.lower():
        low, high = 1, 1
    elif "type" in spec.name.lower() or "segment" in spec.name.lower():
        low, high = 0, 0
    else:
        low, high = 0, 255 if spec.datatype == "UINT8" else _MAX_INTEGER - 1
    limits = np.iinfo(dtype)
    if low < limits.min or high > limits.max or low > high:
        raise ConfigError(
            f"--range {spec.name}={low},{high} is not a range of {spec.datatype}",
            hint=f"{limits.min} to {limits.max}, the smaller first",
        )
    return random.integers(low, high, shape, dtype, endpoint=True)
