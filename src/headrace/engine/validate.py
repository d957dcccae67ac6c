"""Does a request fit a model's public signature? One pass, before anything is queued.

The texts keep the substrings that clients of Triton match on.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from headrace.engine.served import ServedModel
from headrace.engine.signature import InputCheck
from headrace.errors import InvalidRequest
from headrace.types import InferenceRequest, Tensor


def check_inputs(request: InferenceRequest, served: ServedModel) -> list[np.ndarray | None]:
    """The request's arrays in the model's order (None: left out, or not for callers).

    Raises:
        InvalidRequest: a name, datatype or shape is not what the model expects, an input is
            missing or doubled, an output is unknown, or NaN is not allowed here.
    """
    arrays: list[np.ndarray | None] = [None] * served.slots
    checks = served.checks
    for tensor in request.inputs:
        check = checks.get(tensor.name)
        if check is None:
            _unexpected_input(tensor, served)
        if tensor.datatype != check.datatype:
            _wrong_datatype(tensor, check, served)
        shape = tensor.shape
        if len(shape) != check.rank:
            _wrong_shape(tensor, check, served)
        for axis, size in check.fixed:
            if shape[axis] != size:
                _wrong_shape(tensor, check, served)
        if arrays[check.index] is not None:
            raise InvalidRequest(
                f"input '{tensor.name}' already exists in request for model '{served.name}'",
                code="duplicate_input",
                model=served.name,
                input=tensor.name,
            )
        arrays[check.index] = tensor.data
    if len(request.inputs) != served.input_count:
        _check_missing(arrays, request, served)
    if served.nonfinite_refused:
        _refuse_nonfinite(request, served)
    if request.outputs is not None:
        _check_outputs(request, served)
    return arrays


def rows_of(arrays: list[np.ndarray | None], served: ServedModel) -> int:
    """The number of rows all inputs of a batchable model agree on.

    Raises:
        InvalidRequest: inputs disagree, or there are no rows.
    """
    first = arrays[0]
    if len(arrays) == 1 and first is not None and (count := len(first)):
        return count
    rows = -1
    for array in arrays:
        if array is None:
            continue
        if rows < 0:
            rows = array.shape[0]
        elif array.shape[0] != rows:
            there = {name: arrays[check.index] for name, check in served.checks.items()}
            sizes = {name: len(a) for name, a in there.items() if a is not None}
            raise InvalidRequest(
                f"inputs of model '{served.name}' must have the same first dimension, got {sizes}",
                code="batch_mismatch",
                hint="the first dimension counts rows; send as many rows of every input",
                model=served.name,
                got=sizes,
            )
    if rows <= 0:
        raise InvalidRequest(
            f"unexpected shape for input of model '{served.name}'. Expected at least one row, "
            f"got {max(rows, 0)}",
            code="empty_batch",
            model=served.name,
        )
    return rows


def _unexpected_input(tensor: Tensor, served: ServedModel) -> NoReturn:
    names = [spec.name for spec in served.metadata.inputs]
    raise InvalidRequest(
        f"unexpected inference input '{tensor.name}' for model '{served.name}'",
        code="unexpected_input",
        hint=f"the model's inputs are {names}",
        model=served.name,
        input=tensor.name,
        expected=names,
    )


def _wrong_datatype(tensor: Tensor, check: InputCheck, served: ServedModel) -> NoReturn:
    raise InvalidRequest(
        f"inference input '{tensor.name}' data-type is '{tensor.datatype}', "
        f"but model '{served.name}' expects '{check.datatype}'",
        code="wrong_datatype",
        hint=f"send '{tensor.name}' as {check.datatype}",
        model=served.name,
        input=tensor.name,
        expected=check.datatype,
        got=tensor.datatype,
    )


def _wrong_shape(tensor: Tensor, check: InputCheck, served: ServedModel) -> NoReturn:
    expected, got = _brackets(check.shape), _brackets(tensor.shape)
    raise InvalidRequest(
        f"unexpected shape for input '{tensor.name}' for model '{served.name}'. "
        f"Expected {expected}, got {got}. -1 stands for any size",
        code="wrong_shape",
        model=served.name,
        input=tensor.name,
        expected=list(check.shape),
        got=list(tensor.shape),
    )


def _brackets(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _check_missing(
    arrays: list[np.ndarray | None], request: InferenceRequest, served: ServedModel
) -> None:
    got = [tensor.name for tensor in request.inputs]
    missing = [
        spec.name
        for spec in served.metadata.inputs
        if not spec.optional and arrays[served.checks[spec.name].index] is None
    ]
    if missing:
        raise InvalidRequest(
            f"expected {served.input_count} inputs but got {len(got)} inputs for model "
            f"'{served.name}'. Got input(s) {got}, but missing required input(s) {missing}. "
            "Please provide all required input(s).",
            code="missing_input",
            model=served.name,
            missing=missing,
            got=got,
        )


def _refuse_nonfinite(request: InferenceRequest, served: ServedModel) -> None:
    for tensor in request.inputs:
        data: Any = tensor.data
        if tensor.datatype == "BF16":
            finite = bool(((data & 0x7F80) != 0x7F80).all())
        elif data.dtype.kind == "f":
            finite = bool(np.isfinite(data).all())
        else:
            continue
        if not finite:
            raise InvalidRequest(
                f"inference input '{tensor.name}' for model '{served.name}' holds NaN or infinity",
                code="nonfinite_input",
                hint="replace missing values before sending, or set allow_nonfinite = true "
                "for this model",
                model=served.name,
                input=tensor.name,
            )


def _check_outputs(request: InferenceRequest, served: ServedModel) -> None:
    seen: set[str] = set()
    for output in request.outputs or ():
        if output.name not in served.output_index:
            names = [spec.name for spec in served.metadata.outputs]
            raise InvalidRequest(
                f"unexpected inference output '{output.name}' for model '{served.name}'",
                code="unexpected_output",
                hint=f"the model's outputs are {names}",
                model=served.name,
                output=output.name,
                expected=names,
            )
        if output.name in seen:
            raise InvalidRequest(
                f"output '{output.name}' already exists in request for model '{served.name}'",
                code="duplicate_output",
                model=served.name,
                output=output.name,
            )
        seen.add(output.name)
