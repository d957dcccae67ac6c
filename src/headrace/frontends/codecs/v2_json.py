"""Open Inference Protocol V2 over HTTP: the JSON part of requests.

Sources: the protocol's REST specification (inference request and response objects, tensor
data flat or nested in row-major order) and the binary tensor data extension, whose bytes
are ``v2_binary``'s business.

Requests are read here; ``v2_json_answer`` writes answers. JSON has no NaN and no infinity:
incoming ones are malformed.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np

from headrace.errors import InvalidRequest
from headrace.frontends.codecs import v2_binary
from headrace.frontends.codecs.v2_parameters import (
    NO_SHARED_MEMORY,
    SharedMemory,
    apply_parameters,
    flag,
    shared_memory_of,
    whole_number,
)
from headrace.types import (
    DTYPE_OF,
    InferenceRequest,
    RequestedOutput,
    Tensor,
)

_RANK_MAX = 32
"""Dimensions a tensor may have; numpy's own limit is 64, ONNX models have up to 8."""


class _Input(Tensor, gc=False):
    """A tensor whose ``data`` is still JSON. Becomes the tensor itself: one object less."""

    name: str
    datatype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data: msgspec.Raw = msgspec.Raw(b"")  # type: ignore[assignment]
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct, gc=False):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    outputs: list[_Output] | None = None
    parameters: dict[str, Any] | None = None


_decode_request = msgspec.json.Decoder(_Request).decode

_ELEMENT = {
    "BOOL": bool,
    "FP16": float,
    "BF16": float,
    "FP32": float,
    "FP64": float,
    "BYTES": str,
}
"""The JSON type of one element; integers for the rest."""


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    bits = v2_binary.float32_to_bfloat16(array)
    if ((bits & 0x7F80) == 0x7F80).any():
        raise OverflowError("it would be rounded to infinity")
    return bits


def _to_bytes(array: np.ndarray) -> np.ndarray:
    encoded = np.empty(len(array), dtype=object)
    encoded[:] = [text.encode() for text in array]
    return encoded


_CONVERT = {"BF16": _to_bfloat16, "BYTES": _to_bytes}
"""Datatypes whose elements in JSON are not those of ``Tensor.data``."""

_FLAT = {
    datatype: (
        msgspec.json.Decoder(list[_ELEMENT.get(datatype, int)]).decode,  # type: ignore[misc]
        np.dtype(np.float32) if datatype == "BF16" else dtype,
        _CONVERT.get(datatype),
    )
    for datatype, dtype in DTYPE_OF.items()
}
"""How a flat list is read, of what numpy makes an array, and what becomes of that."""


def decode_request(
    body: bytes,
    *,
    model_name: str,
    model_version: str,
    json_size: int | None = None,
    shared: SharedMemory = NO_SHARED_MEMORY,
) -> InferenceRequest:
    """The body of ``POST …/infer`` as a request.

    Args:
        body: JSON, followed by the binary tensors where there are any.
        model_name, model_version: from the path.
        json_size: ``Inference-Header-Content-Length``; None: all of it is JSON.
        shared: where tensors lie that say so.

    Raises:
        InvalidRequest: malformed JSON, missing fields, unknown datatypes, a shape whose
            product disagrees with the data, or a parameter that cannot be.
    """
    try:
        parsed = _decode_request(body if json_size is None else memoryview(body)[:json_size])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _malformed(error)
    inputs = parsed.inputs
    if json_size is None:
        for tensor in inputs:
            tensor.data = _array_of(tensor, None, shared)  # type: ignore[assignment]  # now a Tensor
    else:
        binary = v2_binary.Reader(body, json_size)
        for tensor in inputs:
            tensor.data = _array_of(tensor, binary, shared)  # type: ignore[assignment]
        binary.finish()
    tensors: list[Tensor] = inputs  # type: ignore[assignment]  # nobody adds to the list
    request = InferenceRequest(model_name, tensors, model_version, parsed.id)
    parameters = parsed.parameters
    if parameters:
        apply_parameters(request, parameters)
        flag(parameters, "binary_data_output")
    if parsed.outputs is not None:
        default = bool(parameters and parameters.get("binary_data_output"))
        request.outputs = [
            _decode_output(output, shared, default=default) for output in parsed.outputs
        ]
    return request


def _malformed(error: Exception) -> NoReturn:
    if isinstance(error, msgspec.ValidationError):
        raise InvalidRequest(
            f"the request does not have the shape of the protocol: {error}",
            hint='expected {"inputs": [{"name", "shape", "datatype", "data"}], ...}',
        ) from None
    what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    raise InvalidRequest(
        f"failed to parse the request JSON buffer: {what}",
        code="malformed_json",
        hint="the body must be one JSON object in UTF-8",
    ) from None


def _array_of(tensor: _Input, binary: v2_binary.Reader | None, shared: SharedMemory) -> np.ndarray:
    datatype = tensor.datatype
    kind = _FLAT.get(datatype)
    if kind is None:
        raise InvalidRequest(
            f"input '{tensor.name}' has the unknown datatype '{datatype}'",
            code="unknown_datatype",
            hint=f"the datatypes are {', '.join(DTYPE_OF)}",
            input=tensor.name,
            got=datatype,
        )
    shape = tensor.shape
    if len(shape) > _RANK_MAX:
        raise InvalidRequest(
            f"input '{tensor.name}' has {len(shape)} dimensions, more than {_RANK_MAX}",
            code="wrong_shape",
            input=tensor.name,
        )
    if tensor.parameters:
        where = shared_memory_of(tensor.parameters, tensor.name)
        if where is not None:
            return shared.read(where, name=tensor.name, datatype=datatype, shape=shape)
        size_bytes = _binary_size(tensor)
        if size_bytes is not None:
            return _decode_binary(tensor, shape, size_bytes, binary)
    flat, dtype, convert = kind
    try:
        values = flat(tensor.data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        values = _decode_nested(tensor, shape, error)
    # Python's integers: a product that wraps around cannot agree by accident.
    count = prod(shape)
    if len(values) != count:
        raise InvalidRequest(
            f"unable to parse 'data' of input '{tensor.name}': shape {list(shape)} means {count} "
            f"elements, got {len(values)}",
            code="shape_data_mismatch",
            input=tensor.name,
            expected=count,
            got=len(values),
        )
    if not values:
        return v2_binary.empty(tensor.name, datatype, shape)
    try:
        # The server sets numpy's overflow to "raise" for its event loop, once: asking for it
        # here, per tensor, would cost more than the conversion. And fromiter does not first
        # go through the values to find out what they are.
        array = np.fromiter(values, dtype, count)
        if convert is not None:
            array = convert(array)
    except (OverflowError, FloatingPointError) as error:
        raise InvalidRequest(
            f"input '{tensor.name}' holds a number that {datatype} cannot represent: {error}",
            code="out_of_range",
            input=tensor.name,
            expected=datatype,
        ) from None
    return array.reshape(shape)


def _decode_nested(tensor: _Input, shape: tuple[int, ...], problem: Exception) -> list[Any]:
    """Nested data, which must be nested exactly as ``shape`` says, as a flat list."""
    raw = bytes(tensor.data)
    if not raw:
        raise InvalidRequest(
            f"input '{tensor.name}' has no 'data'",
            code="missing_data",
            hint="send 'data', or 'parameters': {'binary_data_size': N} with binary data",
            input=tensor.name,
        )
    depth = min(len(raw) - len(raw.lstrip(b"[ \t\r\n")), _RANK_MAX + 1)
    if raw[:depth].count(b"[") < 2:
        _wrong_data(tensor, problem)
    nested: Any = _ELEMENT.get(tensor.datatype, int)
    for _ in shape:
        nested = list[nested]
    try:
        values: Any = msgspec.json.decode(raw, type=nested)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _wrong_data(tensor, error)
    level: list[Any] = [values]
    for size in shape:
        if any(len(part) != size for part in level):
            raise InvalidRequest(
                f"unable to parse 'data' of input '{tensor.name}': the nested lists do not have "
                f"the shape {list(shape)}",
                code="shape_data_mismatch",
                input=tensor.name,
                expected=list(shape),
            )
        level = [element for part in level for element in part]
    return level


def _wrong_data(tensor: _Input, error: Exception) -> NoReturn:
    kind = {bool: "true or false", float: "numbers", str: "strings"}.get(
        _ELEMENT.get(tensor.datatype, int), "integers"
    )
    raise InvalidRequest(
        f"unable to parse 'data' of input '{tensor.name}' as {tensor.datatype}: {error}",
        code="wrong_data",
        hint=f"expected a flat list of {kind}, or lists nested as 'shape' says",
        input=tensor.name,
        expected=tensor.datatype,
    ) from None


def _binary_size(tensor: _Input) -> int | None:
    parameters = tensor.parameters or {}
    size_bytes = parameters.get("binary_data_size")
    if size_bytes is None:
        return None
    if type(size_bytes) is not int or size_bytes < 0:
        raise InvalidRequest(
            f"'binary_data_size' of input '{tensor.name}' must be a number of bytes, "
            f"got {size_bytes!r}",
            code="wrong_binary_size",
            input=tensor.name,
        )
    return size_bytes


def _decode_binary(
    tensor: _Input, shape: tuple[int, ...], size_bytes: int, binary: v2_binary.Reader | None
) -> np.ndarray:
    if binary is None:
        raise InvalidRequest(
            f"input '{tensor.name}' says 'binary_data_size', but the request has no "
            "Inference-Header-Content-Length header",
            code="missing_binary_header",
            hint="send the length of the JSON part in Inference-Header-Content-Length",
            input=tensor.name,
        )
    if bytes(tensor.data):
        raise InvalidRequest(
            f"input '{tensor.name}' has both 'data' and 'binary_data_size'",
            code="wrong_binary_size",
            input=tensor.name,
        )
    return binary.read(tensor.name, tensor.datatype, shape, size_bytes)


def _decode_output(output: _Output, shared: SharedMemory, *, default: bool) -> RequestedOutput:
    parameters = output.parameters
    if not parameters:
        return RequestedOutput(output.name, default or None)
    binary = parameters.get("binary_data", default)
    if type(binary) is not bool:
        raise InvalidRequest(
            f"'binary_data' of output '{output.name}' must be true or false, got {binary!r}",
            output=output.name,
        )
    where = shared_memory_of(parameters, output.name)
    if where is not None:
        shared.reserve(where)
    return RequestedOutput(output.name, binary, whole_number(parameters, "classification"), where)
