"""From named columns to the inputs of a tabular model, whichever of two shapes it has.

``matrix``      one numeric input [-1, F]: the columns side by side, in the options' order
``per column``  one input for each column, [-1, 1] or [-1], found by its name; what
                skl2onnx makes of a pipeline that selects columns by name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headrace.errors import InvalidRequest, ModelLoadError
from headrace.tasks.columns import Column, check_array
from headrace.types import DTYPE_OF, TensorSpec

_ACCEPTS: dict[str, tuple[str, ...]] = {
    "FP64": ("FP16", "FP32", "FP64"),
    "INT64": ("FP16", "FP32", "FP64", "INT32", "INT64"),
    "BOOL": ("FP16", "FP32", "FP64", "INT32", "INT64", "BOOL"),
    "BYTES": ("BYTES",),
}
"""Column datatype -> model datatypes it may become. Fractions are never cut to integers."""


class Layout:
    """Which columns go into which input of the model.

    Raises:
        ModelLoadError: the model's inputs and the columns do not fit together.
    """

    def __init__(self, columns: Sequence[Column], model_inputs: Sequence[TensorSpec]) -> None:
        by_name = {column.name: column for column in columns}
        if {spec.name for spec in model_inputs} == set(by_name):
            self._groups = [(spec, [by_name[spec.name]]) for spec in model_inputs]
        elif len(model_inputs) == 1:
            self._groups = [(model_inputs[0], list(columns))]
        else:
            raise _names_differ(by_name, model_inputs)
        for spec, group in self._groups:
            _check_group(spec, group)

    def arrays(self, data: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Columns of [rows] each -> one array for each model input, first axis = rows.

        Raises:
            InvalidRequest: NaN where it means nothing, infinity, or a number that does not
                fit the model's datatype.
        """
        return tuple(_join(spec, group, data) for spec, group in self._groups)


def _join(spec: TensorSpec, group: Sequence[Column], data: Mapping[str, np.ndarray]) -> np.ndarray:
    dtype = DTYPE_OF[spec.datatype]
    rows = len(data[group[0].name])
    out = np.empty((rows, len(group)), dtype=dtype)
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is reported below
        for index, column in enumerate(group):
            out[:, index] = data[column.name]
    # One look at the whole, a closer one only where something is missing or infinite.
    if dtype.kind == "f" and not np.isfinite(out).all():
        _check_nonfinite(spec, group, data, out)
    if dtype == np.int32:
        _check_int32(spec, group, data)
    return out.reshape(rows) if len(spec.shape) == 1 else out


def _check_nonfinite(
    spec: TensorSpec,
    group: Sequence[Column],
    data: Mapping[str, np.ndarray],
    joined: np.ndarray,
) -> None:
    for column in group:
        check_array(column, data[column.name])
    overflown = np.isinf(joined)
    if overflown.any():
        row, index = (int(axis[0]) for axis in np.nonzero(overflown))
        raise _out_of_range(spec, group[index], row, data[group[index].name][row])


def _check_int32(spec: TensorSpec, group: Sequence[Column], data: Mapping[str, np.ndarray]) -> None:
    limits = np.iinfo(np.int32)
    for column in group:
        values = data[column.name]
        bad = (values < limits.min) | (values > limits.max)
        if bad.any():
            row = int(bad.argmax())
            raise _out_of_range(spec, column, row, values[row])


def _check_group(spec: TensorSpec, group: Sequence[Column]) -> None:
    width = spec.shape[1] if len(spec.shape) == 2 else 1
    if len(spec.shape) not in (1, 2) or (len(spec.shape) == 1 and len(group) > 1):
        raise ModelLoadError(
            f"input {spec.name!r} has shape {list(spec.shape)}; a tabular model takes "
            f"[-1, {len(group)}]",
            hint='set task = "tensor" to serve its tensors as they are',
        )
    if width not in (-1, len(group)):
        raise ModelLoadError(
            f"input {spec.name!r} takes {width} columns, but task_options lists {len(group)}",
            hint="list every column the model was trained with, in that order",
            expected=width,
            got=len(group),
        )
    for column in group:
        if spec.datatype not in _ACCEPTS[column.datatype]:
            raise ModelLoadError(
                f"column {column.name!r} is {column.datatype}, but input {spec.name!r} of the "
                f"model takes {spec.datatype}",
                column=column.name,
                expected=spec.datatype,
                got=column.datatype,
            )


def _names_differ(columns: Mapping[str, Column], specs: Sequence[TensorSpec]) -> ModelLoadError:
    inputs = {spec.name for spec in specs}
    return ModelLoadError(
        f"the model's inputs and the columns in task_options differ: only the model has "
        f"{sorted(inputs - set(columns))}, only the options have {sorted(set(columns) - inputs)}",
        hint="a model with several inputs has one for each column, of the same name",
    )


def _out_of_range(spec: TensorSpec, column: Column, row: int, value: np.generic) -> InvalidRequest:
    return InvalidRequest(
        f"column {column.name!r} is {value} in row {row}; too large for {spec.datatype}, which "
        "the model takes",
        column=column.name,
        row=row,
        expected=spec.datatype,
    )
