"""Between the arrays of a batch and what ``predict`` takes and returns.

The rules for what it returns: the rows must be those of the batch; floats may change their
width and integers too where every value fits; nothing changes its kind, except the Python
numbers of a list, where ``[1, 2]`` for floats is meant as ``[1.0, 2.0]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.errors import InferenceFailed, InvalidRequest
from headrace.runtimes.python.signature import Argument, Signature
from headrace.types import DTYPE_OF, DYNAMIC, TensorSpec

_OBJECT = np.dtype(object)
_WIDENING = {("i", "f"), ("u", "f")}
"""(kind of a list's numbers, kind wanted) that are the same numbers, written shorter."""


def to_arguments(
    arguments: Sequence[Argument], arrays: Sequence[np.ndarray | None]
) -> dict[str, Any]:
    """Keyword arguments for ``predict``; an input that was left out (None) is missing.

    Raises:
        InvalidRequest: text that is not UTF-8.
    """
    keywords: dict[str, Any] = {}
    for argument, array in zip(arguments, arrays, strict=True):
        if array is None:
            continue
        if argument.container == "array":
            keywords[argument.spec.name] = array
        elif argument.container == "list":
            keywords[argument.spec.name] = array.tolist()
        else:
            keywords[argument.spec.name] = _decode(argument.spec.name, array)
    return keywords


def rows_of(arrays: Sequence[np.ndarray | None]) -> int | None:
    """Rows of the batch; None where every input was left out."""
    return next((array.shape[0] for array in arrays if array is not None), None)


def to_outputs(signature: Signature, value: Any, rows: int | None) -> list[np.ndarray]:
    """What ``predict`` returned, as one array for each output, checked and converted.

    The arrays may be the very ones that were returned, in any memory order.

    Args:
        signature: says which outputs are expected.
        value: what ``predict`` returned.
        rows: of the batch; None: not known.

    Raises:
        InferenceFailed: a missing output, wrong rows, shape or kind of values.
    """
    values = _collect(signature, value)
    return [
        _to_output(spec, part, rows) for spec, part in zip(signature.outputs, values, strict=True)
    ]


def _decode(name: str, array: np.ndarray) -> Any:
    texts: np.ndarray = np.empty(array.shape, _OBJECT)
    try:
        texts.reshape(-1)[:] = [element.decode() for element in array.flat]
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"the input {name!r} is text, and holds bytes that are not UTF-8: {error}",
            hint="send UTF-8, or take list[bytes]",
            input=name,
        ) from None
    return texts.tolist()


def _collect(signature: Signature, value: Any) -> Sequence[Any]:
    names = [spec.name for spec in signature.outputs]
    if isinstance(value, Mapping):
        found = dict(value)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        found = dict(zip(value._fields, value, strict=True))
    elif signature.single:
        return [value]
    elif isinstance(value, tuple):
        if len(value) != len(names):
            raise _failed(f"a tuple of {len(value)}", f"one of {len(names)}: {', '.join(names)}")
        return value
    else:
        raise _failed(f"a {type(value).__name__}", f"the outputs {', '.join(names)}")
    if set(found) != set(names):
        got = ", ".join(map(str, found)) or "nothing"
        raise _failed(f"the outputs {got}", f"the outputs {', '.join(names)}")
    return [found[name] for name in names]


def _to_output(spec: TensorSpec, value: Any, rows: int | None) -> np.ndarray:
    array = _to_texts(spec, value) if spec.datatype == "BYTES" else _to_numbers(spec, value)
    fits = array.ndim == len(spec.shape) and all(
        expected in (got, DYNAMIC)
        for expected, got in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        got = f"an array of shape {list(array.shape)}"
        raise _failed(got, f"{spec.datatype}{list(spec.shape)}", spec.name)
    if rows is not None and len(array) != rows:
        raise _failed(f"{len(array)} rows", f"{rows}, as many as the batch has", spec.name)
    return array


def _to_numbers(spec: TensorSpec, value: Any) -> np.ndarray:
    target = DTYPE_OF[spec.datatype]
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever __array__ of a foreign type raises
        got = f"a {type(value).__name__} that numpy cannot take: {error}"
        raise _failed(got, f"an array of {spec.datatype}", spec.name) from error
    if array.dtype == target:
        return array
    if array.dtype.name == "bfloat16" and spec.datatype == "BF16":
        return array.view(np.uint16)
    is_list = isinstance(value, list | tuple)
    kinds = (array.dtype.kind, target.kind)
    if is_list and array.size == 0:
        return array.astype(target)
    if spec.datatype != "BF16" and (kinds == ("f", "f") or (is_list and kinds in _WIDENING)):
        with np.errstate(over="ignore"):  # to infinity, as arithmetic of that width would
            return array.astype(target)
    if spec.datatype != "BF16" and kinds[0] in "iu" and kinds[1] in "iu":
        return _to_integers(spec, array, target)
    raise _failed(f"values of {array.dtype}", f"{spec.datatype} ({target})", spec.name)


def _to_integers(spec: TensorSpec, array: np.ndarray, target: np.dtype[Any]) -> np.ndarray:
    if not np.can_cast(array.dtype, target) and array.size:
        lowest, highest = int(array.min()), int(array.max())
        limits = np.iinfo(target)
        if lowest < limits.min or highest > limits.max:
            expected = f"{spec.datatype}, from {limits.min} to {limits.max}"
            raise _failed(f"values from {lowest} to {highest}", expected, spec.name)
    return array.astype(target)


def _to_texts(spec: TensorSpec, value: Any) -> np.ndarray:
    try:
        array = value if isinstance(value, np.ndarray) else np.array(value, _OBJECT)
    except ValueError as error:
        raise _failed(f"a ragged list: {error}", "strings or bytes", spec.name) from None
    encoded: np.ndarray = np.empty(array.shape, _OBJECT)
    flat = encoded.reshape(-1)
    for index, element in enumerate(array.flat):
        if isinstance(element, str):
            flat[index] = _encode(spec, element)
        elif isinstance(element, bytes | bytearray | memoryview):
            flat[index] = bytes(element)
        else:
            got = f"a {type(element).__name__} as element {index}"
            raise _failed(got, "strings or bytes", spec.name)
    return encoded


def _encode(spec: TensorSpec, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _failed(f"text that UTF-8 cannot hold: {error}", "Unicode", spec.name) from None


def _failed(got: str, expected: str, output: str = "") -> InferenceFailed:
    where = f" as {output!r}" if output else ""
    return InferenceFailed(
        f"predict returned {got}{where}, expected {expected}",
        expected=expected,
        got=got,
        **({"output": output} if output else {}),
    )
