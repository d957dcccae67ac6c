"""How large an answer may be: predicted before the model runs, and checked before it is sent."""

from __future__ import annotations

from math import prod

from headrace.engine.served import ServedModel
from headrace.errors import PayloadTooLarge
from headrace.limits import HttpLimits
from headrace.types import DTYPE_OF, DYNAMIC, InferenceRequest, RequestedOutput, TensorSpec

JSON_VALUE_BYTES = 16
"""Of one float in JSON: float32 values take 10 to 21 bytes with the comma, mostly 19."""

_JSON_INTEGER_BYTES = 4


def check_bytes(
    request: InferenceRequest, served: ServedModel, limits: HttpLimits, *, binary: bool = False
) -> None:
    """Refuses a request whose answer would be larger than ``max_answer_bytes``.

    The prediction is rows times what the signature says of a row. Open dimensions count as 1, so
    answers of such models are checked when they are there.

    Args:
        binary: outputs are binary where the request does not say.

    Raises:
        PayloadTooLarge: ``answer_too_large``.
    """
    rows = _rows(request, served)
    if rows * served.output_row_values * JSON_VALUE_BYTES <= limits.max_answer_bytes:
        return
    default = binary or bool((request.parameters or {}).get("binary_data_output"))
    asked = {output.name: output for output in request.outputs or ()}
    size = 0
    for spec in served.metadata.outputs:
        if not asked or spec.name in asked:
            each = _value_bytes(spec, asked.get(spec.name), default=default)
            size += rows_values(spec, rows) * each
    if size > limits.max_answer_bytes:
        raise too_large(limits.max_answer_bytes, size)


def check_values(request: InferenceRequest, served: ServedModel, limits: HttpLimits) -> None:
    """The same for answers that are JSON objects, by ``max_values``.

    Raises:
        PayloadTooLarge: ``answer_too_large``.
    """
    rows = _rows(request, served)
    if rows * served.output_row_values <= limits.max_values:
        return
    check_sent(sum(rows_values(spec, rows) for spec in served.metadata.outputs), limits)


def check_sent(values: int, limits: HttpLimits) -> None:
    """An answer of so many values is at hand.

    Raises:
        PayloadTooLarge: ``answer_too_large``.
    """
    if values > limits.max_values:
        raise PayloadTooLarge(
            f"the answer has {values} values, more than {limits.max_values}",
            code="answer_too_large",
            hint="send fewer rows, use V2 with binary outputs, or raise max_values",
            limit="max_values",
            allowed=limits.max_values,
        )


def too_large(allowed: int, predicted: int = 0) -> PayloadTooLarge:
    """The error for an answer of more than ``max_answer_bytes``."""
    size = f"would be about {predicted} bytes, more" if predicted else "is larger"
    return PayloadTooLarge(
        f"the answer {size} than {allowed} bytes",
        code="answer_too_large",
        hint="send fewer rows, ask for binary outputs, or raise max_answer_bytes",
        limit="max_answer_bytes",
        allowed=allowed,
    )


def rows_values(spec: TensorSpec, rows: int) -> int:
    """Elements of an output; the first dimension counts rows where it is open."""
    sizes = [1 if size == DYNAMIC else size for size in spec.shape]
    if spec.shape[:1] == (DYNAMIC,):
        sizes[0] = rows
    return prod(sizes)


def _rows(request: InferenceRequest, served: ServedModel) -> int:
    if not served.batchable or not request.inputs:
        return 1
    shape = request.inputs[0].shape
    return shape[0] if shape else 1


def _value_bytes(spec: TensorSpec, asked: RequestedOutput | None, *, default: bool) -> int:
    dtype = DTYPE_OF[spec.datatype]
    if asked is not None and (asked.shared_memory is not None or asked.classification):
        return 0
    if default if asked is None or asked.binary is None else asked.binary:
        return dtype.itemsize
    is_float = dtype.kind == "f" or spec.datatype == "BF16"
    return JSON_VALUE_BYTES if is_float else _JSON_INTEGER_BYTES
