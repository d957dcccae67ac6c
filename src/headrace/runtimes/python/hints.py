"""One type hint -> the datatype and shape of one tensor.

The vocabulary is described where users look for it, in :mod:`headrace.runtimes.python`.
"""

from __future__ import annotations

import re
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from headrace.types import DATATYPE_OF, DTYPE_OF, DYNAMIC

Container = Literal["array", "list", "text"]
"""What ``predict`` is handed: a numpy array, nested lists of numbers or ``bytes``, or
nested lists of ``str``."""

_SPEC = re.compile(r"\s*(\w+)\s*\[([^\[\]]*)\]\s*")
_DATATYPE_OF_LEAF: dict[Any, str] = {
    str: "BYTES",
    bytes: "BYTES",
    bool: "BOOL",
    int: "INT64",
    float: "FP64",
}
_FAMILIES = {
    "BOOL": {"BOOL"},
    "INT64": {name for name in DTYPE_OF if "INT" in name},
    "FP64": {"FP16", "FP32", "FP64"},
    "BYTES": {"BYTES"},
}
_DATATYPE_OF_SCALAR: dict[Any, str] = {
    np.bytes_: "BYTES",
    **{dtype.type: name for dtype, name in DATATYPE_OF.items()},
}


class HintError(ValueError):
    """A type hint that does not say which tensor is meant."""


class Reading(NamedTuple):
    """What one hint says."""

    datatype: str
    shape: tuple[int, ...]
    container: Container


def parse_spec(text: str) -> tuple[str, tuple[int, ...]]:
    """``"FP32[N,3,-1]"`` -> ``("FP32", (-1, 3, -1))``.

    A dimension is a number, or ``-1`` or a name where the request decides. The first is
    the rows of the batch, so it must be one of the latter.

    Raises:
        HintError: it is not of that form.
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        raise HintError(f"{text!r} is not of the form DATATYPE[dim,dim,...], such as FP32[N,16]")
    shape = tuple(_dimension(part.strip(), text) for part in match[2].split(","))
    return check_spec(match[1], shape)


def _dimension(part: str, text: str) -> int:
    if part == "-1" or part.isidentifier():
        return DYNAMIC
    if part.isdecimal() and int(part) > 0:
        return int(part)
    raise HintError(f"{part!r} in {text!r} is no dimension: write a positive number, -1 or a name")


def check_spec(datatype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """``datatype`` and ``shape`` as they are.

    Raises:
        HintError: no such datatype, or a shape whose first dimension is not free.
    """
    if datatype not in DTYPE_OF:
        raise HintError(f"datatype {datatype!r} is not one of {', '.join(DTYPE_OF)}")
    if not shape or shape[0] != DYNAMIC:
        raise HintError(
            f"the shape {list(shape)} does not begin with -1 (or a name): the first dimension "
            "is the rows of the batch"
        )
    if any(dimension < 1 and dimension != DYNAMIC for dimension in shape):
        raise HintError(f"the shape {list(shape)} has a dimension that is neither -1 nor positive")
    return datatype, shape


def read_hint(hint: Any, *, any_type: bool = False) -> Reading:
    """What ``hint`` says.

    Args:
        hint: an evaluated type hint, with its ``Annotated`` kept.
        any_type: whether any type may stand beside a spec, as for outputs, which may be
            whatever numpy can turn into an array.

    Raises:
        HintError: it does not say, or says two things at once.
    """
    hint = _without_none(hint)
    if typing.get_origin(hint) is not Annotated:
        return _read_plain(hint)
    base, *extras = typing.get_args(hint)
    text = next((extra for extra in extras if isinstance(extra, str)), None)
    if text is None:
        return _read_plain(base)
    datatype, shape = parse_spec(text)
    base = _without_none(base)
    if base is np.ndarray or base is Any:
        return Reading(datatype, shape, "array")
    if typing.get_origin(base) is np.ndarray:
        beside = _DATATYPE_OF_SCALAR.get(_scalar(base), datatype)  # Any, np.floating: no word
        if DTYPE_OF[beside] != DTYPE_OF[datatype]:
            raise HintError(f"{text!r} contradicts the type beside it, an array of {beside}")
        return Reading(datatype, shape, "array")
    if any_type and typing.get_origin(base) is not list:
        return Reading(datatype, shape, "array")
    plain = _read_plain(base)
    if datatype not in _FAMILIES[plain.datatype] or len(shape) != len(plain.shape):
        says = f"{plain.datatype}[{','.join(map(str, plain.shape))}]"
        raise HintError(f"{text!r} contradicts the type beside it, which means {says}")
    return Reading(datatype, shape, plain.container)


def show_hint(hint: Any) -> str:
    """``hint`` as one would write it."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    if typing.get_origin(hint) is Annotated:
        base, *extras = typing.get_args(hint)
        return f"Annotated[{show_hint(base)}, {', '.join(map(repr, extras))}]"
    return str(hint).replace("numpy.ndarray", "np.ndarray").replace("typing.", "")


def _read_plain(hint: Any) -> Reading:
    origin = typing.get_origin(hint)
    if origin is np.ndarray:
        return _read_array(hint)
    if hint is np.ndarray:
        raise HintError("np.ndarray alone does not say the datatype and the shape")
    if origin is list:
        return _read_list(typing.get_args(hint)[0])
    if isinstance(hint, type) and hint in _DATATYPE_OF_LEAF:
        raise HintError(
            f"{hint.__name__} is one value, and a batch has one for each row: "
            f"write list[{hint.__name__}]"
        )
    raise HintError(f"{show_hint(hint)} does not say which tensor is meant")


def _read_array(hint: Any) -> Reading:
    scalar = _scalar(hint)
    datatype = _DATATYPE_OF_SCALAR.get(scalar)
    if datatype is None:
        raise HintError(f"an array of {show_hint(scalar)} does not say which datatype is meant")
    dimensions = typing.get_args(typing.get_args(hint)[0])
    if not dimensions or Ellipsis in dimensions:
        return Reading(datatype, (DYNAMIC, DYNAMIC), "array")
    return Reading(*check_spec(datatype, tuple(map(_literal, dimensions))), "array")


def _scalar(hint: Any) -> Any:
    """``np.ndarray[shape, np.dtype[scalar]]`` -> ``scalar``."""
    return next(iter(typing.get_args(typing.get_args(hint)[1])), None)


def _literal(dimension: Any) -> int:
    values = typing.get_args(dimension)
    if typing.get_origin(dimension) is Literal and len(values) == 1 and isinstance(values[0], int):
        return values[0]
    return DYNAMIC


def _read_list(element: Any) -> Reading:
    depth = 1
    while typing.get_origin(element) is list:
        element = typing.get_args(element)[0]
        depth += 1
    datatype = _DATATYPE_OF_LEAF.get(element) if isinstance(element, type) else None
    if datatype is None:
        raise HintError(f"a list of {show_hint(element)} does not say which tensor is meant")
    return Reading(datatype, (DYNAMIC,) * depth, "text" if element is str else "list")


def _without_none(hint: Any) -> Any:
    """``X | None`` -> ``X``: an optional input is one that has a default."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(hint) if part is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return hint
