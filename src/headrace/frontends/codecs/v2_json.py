"""Open Inference Protocol V2 over HTTP: the JSON part of requests.

Sources: the protocol's REST specification (inference request and response objects, tensor
data flat or nested in row-major order) and the binary tensor data extension, whose bytes
are ``v2_binary``'s business.

Requests are read here; ``v2_json_answer`` writes answers. JSON has no NaN and no infinity:
incoming ones are malformed.
"""

from __future__ import annotations

import re
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
    check_parameters,
    flag,
    shared_memory_of,
    too_many,
    whole_number,
)
from headrace.limits import HttpLimits
from headrace.types import (
    DTYPE_OF,
    InferenceRequest,
    RequestedOutput,
    Tensor,
)

_LIMITS = HttpLimits()


class Input(Tensor, gc=False):
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
    inputs: list[Input]
    id: str = ""
    outputs: list[_Output] | None = None
    parameters: dict[str, Any] | None = None


_parse_request = msgspec.json.Decoder(_Request).decode

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

FLAT = {
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
    limits: HttpLimits = _LIMITS,
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
    parsed = parse(body if json_size is None else memoryview(body)[:json_size], limits)
    inputs = parsed.inputs
    if json_size is None:
        for tensor in inputs:
            tensor.data = array_of(tensor, None, shared, limits)  # type: ignore[assignment]  # now a Tensor
    else:
        binary = v2_binary.Reader(body, json_size, limits.max_strings)
        for tensor in inputs:
            tensor.data = array_of(tensor, binary, shared, limits)  # type: ignore[assignment]
        binary.finish()
    return request_of(parsed, model_name, model_version, shared, limits)


def parse(text: bytes | memoryview, limits: HttpLimits) -> _Request:
    """The JSON part, whose tensors are JSON still.

    Raises:
        InvalidRequest: malformed JSON, missing fields, or more of something than ``limits`` allow.
    """
    try:
        parsed = _parse_request(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        malformed(error)
    if len(parsed.inputs) > limits.max_inputs:
        raise too_many("inputs", len(parsed.inputs), "max_inputs", limits.max_inputs)
    return parsed


def request_of(
    parsed: _Request,
    model_name: str,
    model_version: str,
    shared: SharedMemory,
    limits: HttpLimits,
) -> InferenceRequest:
    """The request, once the ``data`` of its inputs are arrays.

    Raises:
        InvalidRequest: a parameter or an output that cannot be.
    """
    tensors: list[Tensor] = parsed.inputs  # type: ignore[assignment]  # nobody adds to the list
    request = InferenceRequest(model_name, tensors, model_version, parsed.id)
    parameters = parsed.parameters
    if parameters:
        check_parameters(parameters, limits)
        apply_parameters(request, parameters)
        flag(parameters, "binary_data_output")
    outputs = parsed.outputs
    if outputs is not None:
        if len(outputs) > limits.max_outputs:
            raise too_many("outputs", len(outputs), "max_outputs", limits.max_outputs)
        default = bool(parameters and parameters.get("binary_data_output"))
        request.outputs = [
            _decode_output(output, shared, limits, default=default) for output in outputs
        ]
    return request


def malformed(error: Exception) -> NoReturn:
    """The body is no JSON, or not of the protocol's shape."""
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


def array_of(
    tensor: Input, binary: v2_binary.Reader | None, shared: SharedMemory, limits: HttpLimits
) -> np.ndarray:
    """The elements of one input, wherever they are.

    Raises:
        InvalidRequest: they are not what its shape and datatype say.
    """
    datatype = tensor.datatype
    kind = FLAT.get(datatype)
    if kind is None:
        _unknown_datatype(tensor)
    shape = tensor.shape
    if len(shape) > limits.max_rank:
        raise InvalidRequest(
            f"input '{tensor.name}' has {len(shape)} dimensions, more than {limits.max_rank}",
            code="wrong_shape",
            input=tensor.name,
        )
    if tensor.parameters:
        check_parameters(tensor.parameters, limits)
        where = shared_memory_of(tensor.parameters, tensor.name)
        if where is not None:
            return shared.read(where, name=tensor.name, datatype=datatype, shape=shape)
        size_bytes = _binary_size(tensor)
        if size_bytes is not None:
            return _decode_binary(tensor, shape, size_bytes, binary)
    flat, dtype, convert = kind
    # Python's integers: a product that wraps around cannot agree by accident.
    count = prod(shape)
    if datatype == "BYTES" and count > limits.max_strings:
        raise v2_binary.too_many_strings(count, limits.max_strings)
    try:
        values = flat(tensor.data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        values = _decode_nested(tensor, shape, error)
    if len(values) != count:
        mismatch(tensor, count, len(values))
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
        out_of_range(tensor, error)
    return array.reshape(shape)


def _unknown_datatype(tensor: Input) -> NoReturn:
    raise InvalidRequest(
        f"input '{tensor.name}' has the unknown datatype '{tensor.datatype}'",
        code="unknown_datatype",
        hint=f"the datatypes are {', '.join(DTYPE_OF)}",
        input=tensor.name,
        got=tensor.datatype,
    )


def mismatch(tensor: Input, count: int, got: int) -> NoReturn:
    """The shape means ``count`` elements."""
    raise InvalidRequest(
        f"unable to parse 'data' of input '{tensor.name}': shape {list(tensor.shape)} means "
        f"{count} elements, got {got}",
        code="shape_data_mismatch",
        input=tensor.name,
        expected=count,
        got=got,
    )


def wrong_nesting(tensor: Input) -> NoReturn:
    """The lists are not nested as the shape says."""
    raise InvalidRequest(
        f"unable to parse 'data' of input '{tensor.name}': the nested lists do not have "
        f"the shape {list(tensor.shape)}",
        code="shape_data_mismatch",
        input=tensor.name,
        expected=list(tensor.shape),
    )


def out_of_range(tensor: Input, error: Exception) -> NoReturn:
    """A number does not fit into the datatype."""
    raise InvalidRequest(
        f"input '{tensor.name}' holds a number that {tensor.datatype} cannot represent: {error}",
        code="out_of_range",
        input=tensor.name,
        expected=tensor.datatype,
    ) from None


def _decode_nested(tensor: Input, shape: tuple[int, ...], problem: Exception) -> list[Any]:
    """Nested data, which must be nested exactly as ``shape`` says, as a flat list."""
    raw = bytes(tensor.data)
    if not raw:
        raise InvalidRequest(
            f"input '{tensor.name}' has no 'data'",
            code="missing_data",
            hint="send 'data', or 'parameters': {'binary_data_size': N} with binary data",
            input=tensor.name,
        )
    if not is_nested(raw):
        wrong_data(tensor, problem)
    nested: Any = _ELEMENT.get(tensor.datatype, int)
    for _ in shape:
        nested = list[nested]
    try:
        values: Any = msgspec.json.decode(raw, type=nested)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        wrong_data(tensor, error)
    level: list[Any] = [values]
    for size in shape:
        if any(len(part) != size for part in level):
            wrong_nesting(tensor)
        level = [element for part in level for element in part]
    return level


_NESTED = re.compile(rb"[ \t\r\n]*\[[ \t\r\n]*\[")


def is_nested(text: bytes, start: int = 0) -> bool:
    """Whether the data that begins here is a list of lists."""
    return _NESTED.match(text, start) is not None


def wrong_data(tensor: Input, error: Exception) -> NoReturn:
    """The data holds values of another kind than the datatype's."""
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


def _binary_size(tensor: Input) -> int | None:
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
    tensor: Input, shape: tuple[int, ...], size_bytes: int, binary: v2_binary.Reader | None
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


def _decode_output(
    output: _Output, shared: SharedMemory, limits: HttpLimits, *, default: bool
) -> RequestedOutput:
    parameters = output.parameters
    if not parameters:
        return RequestedOutput(output.name, default or None)
    check_parameters(parameters, limits)
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
