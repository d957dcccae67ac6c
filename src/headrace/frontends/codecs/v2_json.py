"""Open Inference Protocol V2 over HTTP: the JSON part, bytes to types and back.

Sources: the protocol's REST specification (inference request and response objects, tensor
data flat or nested in row-major order) and the binary tensor data extension, whose bytes
are ``v2_binary``'s business.

JSON has no NaN and no infinity: incoming ones are malformed, outgoing ones become ``null``.
Ask for binary outputs where they matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np

from headrace.errors import InferenceFailed, InvalidRequest, Unsupported
from headrace.frontends.codecs import v2_binary
from headrace.types import (
    DTYPE_OF,
    InferenceRequest,
    InferenceResponse,
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


class _OutputTensor(msgspec.Struct, gc=False, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] | None = None


class _Response(msgspec.Struct, gc=False, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_OutputTensor]
    id: str = ""
    parameters: dict[str, Any] | None = None


_decode_request = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode

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

_UNSUPPORTED_PARAMETERS = frozenset({"sequence_id", "shared_memory_region"})


def decode_request(
    body: bytes, *, model_name: str, model_version: str, json_size: int | None = None
) -> InferenceRequest:
    """The body of ``POST …/infer`` as a request.

    Args:
        body: JSON, followed by the binary tensors where there are any.
        model_name, model_version: from the path.
        json_size: ``Inference-Header-Content-Length``; None: all of it is JSON.

    Raises:
        InvalidRequest: malformed JSON, missing fields, unknown datatypes, or a shape whose
            product disagrees with the data.
        Unsupported: it asks for an extension that this server does not have.
    """
    try:
        parsed = _decode_request(body if json_size is None else memoryview(body)[:json_size])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _malformed(error)
    inputs = parsed.inputs
    if json_size is None:
        for tensor in inputs:
            tensor.data = _array_of(tensor, None)  # type: ignore[assignment]  # now a Tensor
    else:
        binary = v2_binary.Reader(body, json_size)
        for tensor in inputs:
            tensor.data = _array_of(tensor, binary)  # type: ignore[assignment]
        binary.finish()
    tensors: list[Tensor] = inputs  # type: ignore[assignment]  # nobody adds to the list
    request = InferenceRequest(model_name, tensors, model_version, parsed.id)
    parameters = parsed.parameters
    if parameters:
        _apply_parameters(request, parameters)
    if parsed.outputs is not None:
        default = bool(parameters and parameters.get("binary_data_output"))
        request.outputs = [_decode_output(output, default=default) for output in parsed.outputs]
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


def _array_of(tensor: _Input, binary: v2_binary.Reader | None) -> np.ndarray:
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
    for name in _UNSUPPORTED_PARAMETERS & parameters.keys():
        _unsupported(name)
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


def _decode_output(output: _Output, *, default: bool) -> RequestedOutput:
    parameters = output.parameters
    if not parameters:
        return RequestedOutput(output.name, default or None)
    for name in _UNSUPPORTED_PARAMETERS & parameters.keys():
        _unsupported(name)
    if parameters.get("classification"):
        _unsupported("classification")
    binary = parameters.get("binary_data", default)
    if type(binary) is not bool:
        raise InvalidRequest(
            f"'binary_data' of output '{output.name}' must be true or false, got {binary!r}",
            output=output.name,
        )
    return RequestedOutput(output.name, binary)


def _apply_parameters(request: InferenceRequest, parameters: dict[str, Any]) -> None:
    request.parameters = parameters
    for name in _UNSUPPORTED_PARAMETERS & parameters.keys():
        if parameters[name]:
            _unsupported(name)
    # The schedule policy extension: microseconds, and 0 for "no preference".
    request.timeout_ns = 1000 * _whole_number(parameters, "timeout")
    request.priority = _whole_number(parameters, "priority")
    binary = parameters.get("binary_data_output", False)
    if type(binary) is not bool:
        raise InvalidRequest(
            f"parameter 'binary_data_output' must be true or false, got {binary!r}",
            code="wrong_parameter",
            parameter="binary_data_output",
        )


def _whole_number(parameters: dict[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is int and 0 <= value < 2**53:
        return value
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    raise InvalidRequest(
        f"parameter '{name}' must be a whole number of at least 0, got {value!r}",
        code="wrong_parameter",
        parameter=name,
    )


def _unsupported(name: str) -> NoReturn:
    raise Unsupported(
        f"the parameter '{name}' belongs to an extension that this server does not have",
        hint="GET /v2 lists the extensions",
        parameter=name,
    )


def encode_response(
    response: InferenceResponse, request: InferenceRequest
) -> tuple[bytes, Sequence[bytes]]:
    """The answer as JSON and the binary tensors that follow it.

    Returns:
        The JSON part, and the binary parts in order (empty where none was asked for).

    Raises:
        InferenceFailed: an output cannot be said in JSON.
    """
    wanted = request.outputs
    parameters = request.parameters
    if (
        wanted is None
        and parameters is None
        and len(response.outputs) == 1
        and (response.parameters is None)
    ):
        return _encode_plain(response), ()
    all_binary = bool(parameters and parameters.get("binary_data_output"))
    outputs: list[_OutputTensor] = []
    blobs: list[bytes] = []
    for index, tensor in enumerate(response.outputs):
        binary = all_binary
        if wanted is not None:
            said = wanted[index].binary
            binary = all_binary if said is None else said
        if binary:
            blob = v2_binary.encode(tensor)
            blobs.append(blob)
            outputs.append(
                _OutputTensor(
                    tensor.name,
                    tensor.datatype,
                    tensor.shape,
                    parameters={"binary_data_size": len(blob)},
                )
            )
        else:
            outputs.append(
                _OutputTensor(tensor.name, tensor.datatype, tensor.shape, _to_list(tensor))
            )
    answer = _Response(
        response.model_name, response.model_version, outputs, response.id, response.parameters
    )
    return _encode(answer), blobs


_PLAIN_HEADS_MAX = 1024
"""Beginnings of answers that are remembered: a model has one for each number of rows."""

_PlainKey = tuple[str, str, str, str, tuple[int, ...]]

_plain_heads: dict[_PlainKey, bytes] = {}


def _encode_plain(response: InferenceResponse) -> bytes:
    """The common answer: one output, as JSON. Only its id and its data differ each time."""
    tensor = response.outputs[0]
    datatype = tensor.datatype
    key = (response.model_name, response.model_version, tensor.name, datatype, tensor.shape)
    head = _plain_heads.get(key)
    if head is None:
        head = _remember_plain_head(response, tensor, key)
    # Asked here first: for nearly all there is nothing to convert.
    values = _to_list(tensor) if datatype in _CONVERT else tensor.data.ravel().tolist()
    if response.id:
        return b"".join((head, _encode(values), b'}],"id":', _encode(response.id), b"}"))
    return b"".join((head, _encode(values), b"}]}"))


def _remember_plain_head(response: InferenceResponse, tensor: Tensor, key: _PlainKey) -> bytes:
    output = _OutputTensor(tensor.name, tensor.datatype, tensor.shape)
    whole = _encode(_Response(response.model_name, response.model_version, [output]))
    if len(_plain_heads) >= _PLAIN_HEADS_MAX:
        _plain_heads.clear()
    head = _plain_heads[key] = whole.removesuffix(b"}]}") + b',"data":'
    return head


def _to_list(tensor: Tensor) -> list[Any]:
    data = tensor.data
    datatype = tensor.datatype
    if datatype == "BYTES":
        try:
            return [bytes(value).decode() for value in data.ravel()]
        except UnicodeDecodeError as error:
            raise InferenceFailed(
                f"output '{tensor.name}' holds bytes that are not UTF-8 and so not JSON: {error}",
                code="not_json",
                hint="ask for it with 'parameters': {'binary_data': true}",
                output=tensor.name,
            ) from None
    if datatype == "BF16":
        data = v2_binary.bfloat16_to_float32(data)
    flat: list[Any] = data.ravel().tolist()
    return flat
