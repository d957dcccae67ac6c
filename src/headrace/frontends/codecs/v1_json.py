"""``POST /v1/models/{model}:predict``: rows as JSON objects, for people and notebooks.

Shapes as in TensorFlow Serving's and KServe's V1 protocol: ``{"instances": [...]}`` in,
``{"predictions": [...]}`` out, one for one. An instance is an object with a value for each
input of the model, or the bare value where there is only one; bytes that are not text are
``{"b64": "..."}``. A prediction is an object of the outputs, or the bare value of the only one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from headrace.errors import InvalidRequest
from headrace.frontends.codecs import json_guard, v2_binary
from headrace.types import DTYPE_OF, Tensor, TensorSpec

INSTANCES_MAX = 10_000
"""Rows in one request: each is a Python object on its way, unlike a row of a V2 tensor."""


class _Body(msgspec.Struct):
    instances: list[Any]


_decoder = msgspec.json.Decoder(_Body)
_encode = msgspec.json.Encoder().encode


def decode_instances(body: bytes) -> list[Any]:
    """The rows, not yet held against a model.

    Raises:
        InvalidRequest: not ``{"instances": [...]}``, none, or too many.
    """
    instances = json_guard.decode(_decoder, body, "request body").instances
    if not instances:
        raise InvalidRequest("'instances' is empty, expected at least one", code="empty_batch")
    if len(instances) > INSTANCES_MAX:
        raise InvalidRequest(
            f"'instances' has {len(instances)} rows, expected at most {INSTANCES_MAX}",
            hint="send them in several requests, or as V2 tensors",
            expected=INSTANCES_MAX,
            got=len(instances),
        )
    return instances


def tensors_of(instances: Sequence[Any], inputs: Sequence[TensorSpec]) -> list[Tensor]:
    """One tensor per input that the rows have a value for, rows along the first axis.

    Raises:
        InvalidRequest: a row lacks an input, has an unknown one, or a value of the wrong
            datatype or shape; names the row.
    """
    rows = [_as_object(row, instance, inputs) for row, instance in enumerate(instances)]
    names = {spec.name for spec in inputs}
    for row, instance in enumerate(rows):
        unknown = instance.keys() - names
        if unknown:
            raise InvalidRequest(
                f"instance {row} has the unknown key '{min(unknown)}'",
                code="unexpected_input",
                hint=f"the model's inputs are {sorted(names)}",
                row=row,
            )
    tensors = []
    for spec in inputs:
        given = [spec.name in instance for instance in rows]
        if spec.optional and not any(given):
            continue
        if not all(given):
            row = given.index(False)
            raise InvalidRequest(
                f"instance {row} has no '{spec.name}'",
                code="missing_input",
                hint=f"the model's inputs are {sorted(names)}",
                row=row,
                input=spec.name,
            )
        tensors.append(_tensor(spec, [instance[spec.name] for instance in rows]))
    return tensors


def encode_predictions(outputs: Sequence[Tensor]) -> bytes:
    """The answer, one prediction for each row of the outputs."""
    columns = [(tensor.name, _values(tensor)) for tensor in outputs]
    if len(columns) == 1:
        return encode_records(columns[0][1])
    names = [name for name, _ in columns]
    rows = zip(*(values for _, values in columns), strict=True)
    return encode_records([dict(zip(names, row, strict=True)) for row in rows])


def encode_records(predictions: Sequence[Any]) -> bytes:
    """The answer from predictions that are JSON values already."""
    return _encode({"predictions": predictions})


def _as_object(row: int, instance: Any, inputs: Sequence[TensorSpec]) -> Mapping[str, Any]:
    if isinstance(instance, dict) and instance.keys() != {"b64"}:
        return instance
    if len(inputs) == 1:
        return {inputs[0].name: instance}
    raise InvalidRequest(
        f"instance {row} is no object, and the model has {len(inputs)} inputs",
        hint=f"send {{{', '.join(repr(spec.name) for spec in inputs)}}} for each row",
        row=row,
    )


def _tensor(spec: TensorSpec, values: list[Any]) -> Tensor:
    if spec.datatype == "BYTES":
        data = np.empty(len(values), dtype=object)
        data[:] = [_bytes(spec, row, value) for row, value in enumerate(values)]
        return Tensor(spec.name, "BYTES", data.shape, data)
    try:
        data = np.array(values)
        if data.dtype.kind not in _KINDS[DTYPE_OF[spec.datatype].kind]:
            raise _wrong(spec, f"got {data.dtype.name}")
        with np.errstate(over="raise"):
            if spec.datatype == "BF16":
                data = v2_binary.float32_to_bfloat16(data.astype(np.float32))
            else:
                data = _exact(spec, data)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise _wrong(spec, str(error)) from None
    return Tensor(spec.name, spec.datatype, data.shape, data)


_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "fiu"}
"""Kinds of numpy dtypes that JSON values may become, for each kind wanted."""


def _exact(spec: TensorSpec, data: np.ndarray) -> np.ndarray:
    wanted = DTYPE_OF[spec.datatype]
    if wanted.kind in "iu" and data.size:
        limits = np.iinfo(wanted)
        if data.min() < limits.min or data.max() > limits.max:
            raise OverflowError(f"a value is out of the bounds of {spec.datatype}")
    return data.astype(wanted)


def _bytes(spec: TensorSpec, row: int, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise _wrong(spec, f"row {row}: not base64: {error}") from None
    raise _wrong(spec, f"row {row}: expected a text or {{'b64': '...'}}")


def _wrong(spec: TensorSpec, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"the values of '{spec.name}' are not {spec.datatype} of shape {list(spec.shape)}: "
        f"{reason}",
        code="wrong_data",
        input=spec.name,
        expected=spec.datatype,
    )


def _values(tensor: Tensor) -> list[Any]:
    data = tensor.data
    if tensor.datatype == "BF16":
        data = v2_binary.bfloat16_to_float32(data)
    values: list[Any] = data.tolist()
    return _readable(values) if tensor.datatype == "BYTES" else values


def _readable(values: list[Any]) -> list[Any]:
    return [_readable(value) if isinstance(value, list) else _text(value) for value in values]


def _text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}
