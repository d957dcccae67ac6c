"""Open Inference Protocol V2 over HTTP: the JSON part of answers.

Sources as in ``v2_json``. JSON has no NaN and no infinity: they become ``null``. Ask for binary
outputs where they matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from headrace.errors import InferenceFailed
from headrace.frontends.answer_size import too_large
from headrace.frontends.codecs import v2_binary
from headrace.frontends.codecs.v2_parameters import NO_SHARED_MEMORY, SharedMemory
from headrace.frontends.slices import SLICE_VALUES, Steps
from headrace.limits import HttpLimits
from headrace.types import (
    InferenceRequest,
    InferenceResponse,
    RequestedOutput,
    SharedMemoryRange,
    Tensor,
)


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


_encode = msgspec.json.Encoder().encode

_CONVERTED = frozenset({"BF16", "BYTES"})
"""Datatypes whose elements in JSON are not those of ``Tensor.data``."""


def encode_response(
    response: InferenceResponse,
    request: InferenceRequest,
    shared: SharedMemory = NO_SHARED_MEMORY,
) -> tuple[bytes, Sequence[bytes]]:
    """The answer as JSON and the binary tensors that follow it.

    Returns:
        The JSON part, and the binary parts in order (empty where none was asked for).

    Raises:
        InferenceFailed: an output cannot be said in JSON.
        InvalidRequest: an output does not fit where it was asked for in shared memory.
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
        asked = None if wanted is None else wanted[index]
        told = _not_json(tensor, asked, shared, blobs, all_binary=all_binary)
        if told is None:
            told = _OutputTensor(tensor.name, tensor.datatype, tensor.shape, _to_list(tensor))
        outputs.append(told)
    answer = _Response(
        response.model_name, response.model_version, outputs, response.id, response.parameters
    )
    return _encode(answer), blobs


INLINE_VALUES = 16_384
"""Answers up to this size are encoded at once: a millisecond of floats."""


def is_large(outputs: Sequence[Tensor]) -> bool:
    """Whether an answer is to be encoded in steps."""
    if len(outputs) == 1:
        return outputs[0].data.size > INLINE_VALUES
    return sum(tensor.data.size for tensor in outputs) > INLINE_VALUES


def encode_steps(
    response: InferenceResponse,
    request: InferenceRequest,
    shared: SharedMemory = NO_SHARED_MEMORY,
    max_bytes: int = HttpLimits().max_answer_bytes,
) -> Steps[tuple[list[bytes], Sequence[bytes]]]:
    """Steps to what :func:`encode_response` returns, the JSON in pieces.

    What goes into shared memory is there before the first step: the request's regions are in use
    until it has ended, and the steps come after that.

    Raises:
        As there, and PayloadTooLarge: the answer has more than ``max_bytes``.
    """
    put = {
        index: _put(response.outputs[index], asked.shared_memory, shared)
        for index, asked in enumerate(request.outputs or ())
        if asked.shared_memory is not None
    }
    return _encode_steps(response, request, put, max_bytes)


def _encode_steps(
    response: InferenceResponse,
    request: InferenceRequest,
    put: dict[int, _OutputTensor],
    max_bytes: int,
) -> Steps[tuple[list[bytes], Sequence[bytes]]]:
    """``put``: the outputs that are in shared memory, by their index."""
    wanted = request.outputs
    all_binary = bool((request.parameters or {}).get("binary_data_output"))
    begin = _Response(response.model_name, response.model_version, [])
    parts = [_encode(begin)[: -len(b"]}")]]
    blobs: list[bytes] = []
    left = max_bytes
    for index, tensor in enumerate(response.outputs):
        if index:
            parts.append(b",")
        asked = None if wanted is None else wanted[index]
        told = put.get(index) or _not_json(
            tensor, asked, NO_SHARED_MEMORY, blobs, all_binary=all_binary, left=left
        )
        if told is not None:
            parts.append(_encode(told))
            left = max_bytes - sum(map(len, blobs)) - sum(map(len, parts))
            yield
            continue
        parts.append(_encode(_OutputTensor(tensor.name, tensor.datatype, tensor.shape))[:-1])
        parts.append(b',"data":[')
        for piece in _pieces(tensor):
            parts.append(piece)
            left -= len(piece)
            if left < 0:
                raise too_large(max_bytes)
            yield
        parts[-1] = parts[-1].removesuffix(b",")
        parts.append(b"]}")
    end = _Response("", "", [], response.id, response.parameters)
    parts.append(_encode(end).removeprefix(_encode(_Response("", "", []))[: -len(b"]}")]))
    return parts, blobs


def _pieces(tensor: Tensor) -> Iterator[bytes]:
    """The elements as JSON, each piece with a comma at its end."""
    flat = tensor.data.ravel()
    for start in range(0, flat.size, SLICE_VALUES):
        data = flat[start : start + SLICE_VALUES]
        values = _to_list(Tensor(tensor.name, tensor.datatype, data.shape, data))
        yield _encode(values)[1:-1] + b","


def _not_json(
    tensor: Tensor,
    asked: RequestedOutput | None,
    shared: SharedMemory,
    blobs: list[bytes],
    *,
    all_binary: bool,
    left: int | None = None,
) -> _OutputTensor | None:
    """An output that is put elsewhere, perhaps at the end of ``blobs``; None: it is JSON.

    ``left``: bytes that it may have in the answer.
    """
    binary = all_binary
    if asked is not None:
        if asked.shared_memory is not None:
            return _put(tensor, asked.shared_memory, shared)
        binary = all_binary if asked.binary is None else asked.binary
    if not binary:
        return None
    if left is not None and tensor.datatype != "BYTES" and tensor.data.nbytes > left:
        raise too_large(left)
    blob = v2_binary.encode(tensor)
    blobs.append(blob)
    return _OutputTensor(
        tensor.name, tensor.datatype, tensor.shape, parameters={"binary_data_size": len(blob)}
    )


def _put(tensor: Tensor, where: SharedMemoryRange, shared: SharedMemory) -> _OutputTensor:
    size = shared.write(where, tensor)
    parameters = {
        "shared_memory_region": where.region,
        "shared_memory_byte_size": size,
        "shared_memory_offset": where.offset,
    }
    return _OutputTensor(tensor.name, tensor.datatype, tensor.shape, parameters=parameters)


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
    values = _to_list(tensor) if datatype in _CONVERTED else tensor.data.ravel().tolist()
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
