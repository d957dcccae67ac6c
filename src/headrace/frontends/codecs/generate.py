"""Triton's generate extension: a JSON object keyed by the names of inputs, and one of outputs.

Source: ``extension_generate.md``. A value becomes a tensor of its own nesting; where the input
has more dimensions, ones are put before. What is no input's name is a parameter of the request.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from headrace.errors import InferenceFailed, InvalidRequest
from headrace.frontends.codecs import v2_binary
from headrace.frontends.codecs.v2_parameters import apply_parameters
from headrace.types import (
    DTYPE_OF,
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    Tensor,
    TensorSpec,
)

_RANK_MAX = 32

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode

_KINDS: dict[str, tuple[type, ...]] = {
    "b": (bool,),
    "i": (int,),
    "u": (int,),
    "f": (int, float),
    "O": (str,),
}
"""JSON types that a numpy kind takes."""


def decode_request(body: bytes, metadata: ModelMetadata, version: str) -> InferenceRequest:
    """The body of ``POST …/generate`` for the model with this signature.

    Raises:
        InvalidRequest: not a JSON object, or a value that the input cannot be.
    """
    try:
        values = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"failed to parse the request JSON buffer: {error}",
            code="malformed_json",
            hint="the body must be one JSON object, keyed by the names of the model's inputs",
        ) from None
    request_id = values.pop("id", "")
    if not isinstance(request_id, str):
        raise InvalidRequest("'id' must be a string", code="wrong_data")
    given = values.pop("parameters", {})
    if not isinstance(given, dict):
        raise InvalidRequest("'parameters' must be an object", code="wrong_parameter")
    tensors = [
        _tensor(spec, values.pop(spec.name)) for spec in metadata.inputs if spec.name in values
    ]
    request = InferenceRequest(metadata.name, tensors, version, request_id)
    parameters = {**values, **given}
    if parameters:
        apply_parameters(request, parameters)
    return request


def _tensor(spec: TensorSpec, value: Any) -> Tensor:
    shape: list[int] = []
    level: list[Any] = [value]
    while level and isinstance(level[0], list):
        size = len(level[0])
        if len(shape) == _RANK_MAX or any(
            not isinstance(each, list) or len(each) != size for each in level
        ):
            raise _wrong(spec, "the lists do not all have one shape")
        shape.append(size)
        level = [element for each in level for element in each]
    shape = [1] * (len(spec.shape) - len(shape)) + shape
    datatype = spec.datatype
    dtype = np.dtype(np.float32) if datatype == "BF16" else DTYPE_OF[datatype]
    if not level:
        return Tensor(
            spec.name, datatype, tuple(shape), v2_binary.empty(spec.name, datatype, tuple(shape))
        )
    kinds = _KINDS[dtype.kind]
    for element in level:
        if type(element) not in kinds:
            raise _wrong(spec, f"{element!r} is no {datatype}")
    array = np.empty(len(level), dtype)
    try:
        array[:] = [text.encode() for text in level] if datatype == "BYTES" else level
    except (OverflowError, FloatingPointError, UnicodeEncodeError) as error:
        raise _wrong(spec, str(error)) from None
    if datatype == "BF16":
        array = v2_binary.float32_to_bfloat16(array)
    return Tensor(spec.name, datatype, tuple(shape), array.reshape(shape))


def _wrong(spec: TensorSpec, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"unable to parse input '{spec.name}' as {spec.datatype}: {what}",
        code="wrong_data",
        hint=f"a value, or lists nested as the shape {list(spec.shape)}",
        input=spec.name,
        expected=spec.datatype,
    )


def encode_response(response: InferenceResponse) -> bytes:
    """One answer: the model's name and version, and each output; one element without a list.

    Raises:
        InferenceFailed: an output cannot be said in JSON.
    """
    answer: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
    }
    if response.id:
        answer["id"] = response.id
    for tensor in response.outputs:
        values = _values(tensor)
        answer[tensor.name] = values[0] if len(values) == 1 else values
    return _encode(answer)


def _values(tensor: Tensor) -> list[Any]:
    data = tensor.data
    if tensor.datatype == "BYTES":
        try:
            return [bytes(value).decode() for value in data.ravel()]
        except UnicodeDecodeError as error:
            raise InferenceFailed(
                f"output '{tensor.name}' holds bytes that are not UTF-8 and so not JSON: {error}",
                code="not_json",
                output=tensor.name,
            ) from None
    if tensor.datatype == "BF16":
        data = v2_binary.bfloat16_to_float32(data)
    values: list[Any] = data.ravel().tolist()
    return values
