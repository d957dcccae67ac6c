"""The classification extension: the k largest values of an output, with their labels.

An element is ``value:index`` or ``value:index:label``, the value as C's ``%f`` writes it where
it is a floating-point number: what Triton's front-ends send (its ``TopkClassifications`` and
``std::to_string``), so that the post-processing of its clients works unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.engine.served import ServedModel
from headrace.errors import InvalidRequest
from headrace.types import RequestedOutput, Tensor

_NUMBERS = "iuf"


def classified(
    outputs: Sequence[Tensor], requested: Sequence[RequestedOutput], served: ServedModel
) -> list[Tensor]:
    """The outputs, with the classes of those for which ``requested`` asks them.

    Raises:
        InvalidRequest: the output's datatype has no order.
    """
    counts = {wanted.name: wanted.classification for wanted in requested}
    return [
        classes_of(
            tensor,
            counts[tensor.name],
            served.labels.get(tensor.name, ()),
            by_row=_by_row(tensor, served),
        )
        if counts.get(tensor.name)
        else tensor
        for tensor in outputs
    ]


def classes_of(tensor: Tensor, count: int, labels: Sequence[str] = (), *, by_row: bool) -> Tensor:
    """BYTES ``[rows, count]``, or ``[count]`` where the first axis does not count rows.

    Equal values are in the order of their indices, NaN comes last; a ``count`` beyond the
    number of classes gives all of them.

    Raises:
        InvalidRequest: the datatype has no order (BYTES, BOOL).
    """
    values = _numbers(tensor)
    rows = values.reshape(values.shape[0], -1) if by_row else values.reshape(1, -1)
    kept = min(count, rows.shape[1])
    result = np.empty((rows.shape[0], kept), dtype=object)
    is_float = values.dtype.kind == "f"
    for number, row in enumerate(rows):
        for place, index in enumerate(_largest(row, kept)):
            value = f"{float(row[index]):f}" if is_float else str(int(row[index]))
            text = f"{value}:{index}"
            if index < len(labels):
                text = f"{text}:{labels[index]}"
            result[number, place] = text.encode()
    if not by_row:
        result = result[0]
    return Tensor(tensor.name, "BYTES", result.shape, result)


def _by_row(tensor: Tensor, served: ServedModel) -> bool:
    if served.task is not None:
        return len(tensor.shape) > 1
    return served.rows_sent or served.rows_declared


def _numbers(tensor: Tensor) -> np.ndarray:
    if tensor.datatype == "BF16":
        # A bfloat16 is the upper half of a float32.
        return (tensor.data.astype(np.uint32) << 16).view(np.float32)
    if tensor.data.dtype.kind not in _NUMBERS:
        raise InvalidRequest(
            f"class result not available for output '{tensor.name}' due to unsupported type "
            f"'{tensor.datatype}'",
            code="no_classification",
            output=tensor.name,
            got=tensor.datatype,
        )
    return tensor.data


def _largest(row: np.ndarray, count: int) -> list[int]:
    """Indices of the ``count`` largest, best first."""
    # Both turn the order round; for integers without leaving their range. NaN sorts last.
    turned = -row if row.dtype.kind == "f" else ~row
    return [int(i) for i in np.argsort(turned, kind="stable")[:count]]
