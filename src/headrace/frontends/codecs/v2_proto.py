"""Open Inference Protocol V2 over gRPC: ``ModelInferRequest`` and ``ModelInferResponse``.

protobuf's own parser (C) reads every message at least once. What a message says besides its
tensors' bytes and its id is the same from request to request, so the meaning of those bytes is
remembered: a repeated request is a walk over its top-level fields, a look-up, and a view on each
tensor. Answers are put together the same way, from a remembered beginning.

Field numbers and types: ``headrace/protos/inference.proto``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from headrace import protos
from headrace.errors import InvalidRequest
from headrace.frontends.answer_size import too_large
from headrace.frontends.codecs import proto_guard, v2_binary
from headrace.frontends.codecs.proto_parameters import read_parameters, write_parameters
from headrace.frontends.codecs.v2_parameters import (
    NO_SHARED_MEMORY,
    SharedMemory,
    apply_parameters,
    shared_memory_of,
    whole_number,
)
from headrace.frontends.slices import INLINE_BYTES
from headrace.limits import HttpLimits
from headrace.types import (
    DTYPE_OF,
    InferenceRequest,
    InferenceResponse,
    RequestedOutput,
    SharedMemoryRange,
    Tensor,
)

_LIMITS = HttpLimits()

_REMEMBERED_MAX = 1024
_REMEMBERED_BYTES = 4096
_REMEMBERED_TENSORS = 1024

_ID, _RAW = 0x1A, 0x3A
"""Tags of ``ModelInferRequest.id`` and ``raw_input_contents``: field number << 3 | LENGTH."""

_LENGTH_DELIMITED = 2
"""The wire type of all its fields; above 15 a field's number does not fit into one byte."""

_LENGTH_BITS_MAX = 35

_OTHER: tuple[bytes, str, list[tuple[int, int]]] = (b"", "", [])
"""For :func:`_walk`: a message that is not of the form that encoders write."""

_JOINED_BYTES = 16_384
"""From here on an output goes into the answer without a ``bytes`` of its own in between."""

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where ``InferTensorContents`` has the elements of a datatype; FP16 and BF16 go raw only."""


class _Input(msgspec.Struct, frozen=True, gc=False):
    name: str
    datatype: str
    shape: tuple[int, ...]
    dtype: Any
    count: int
    byte_size: int  # -1: not fixed (BYTES)


class _Known(msgspec.Struct, frozen=True):
    """What a request says, but for its id and the bytes of its tensors."""

    model_name: str
    model_version: str
    inputs: tuple[_Input, ...]
    outputs: list[RequestedOutput] | None
    parameters: dict[str, Any] | None


class RequestDecoder:
    """Bytes -> :class:`InferenceRequest`. One for a process: what it has seen, it remembers."""

    def __init__(self, limits: HttpLimits = _LIMITS) -> None:
        self._limits = limits
        self._known: dict[bytes, _Known] = {}
        self._parse = protos.message("inference.ModelInferRequest").FromString

    def decode(self, message: bytes, shared: SharedMemory = NO_SHARED_MEMORY) -> InferenceRequest:
        """The request. Its tensors are views of ``message`` where they can be.

        Args:
            shared: where tensors lie that say so.

        Raises:
            InvalidRequest: not protobuf, unknown datatypes, tensors whose bytes disagree with
                their shapes, or parameters that cannot be.
        """
        key, request_id, raw = _walk(message)
        known = self._known.get(key)
        if known is None or len(raw) != len(known.inputs):
            return self._read(message, key, shared)
        tensors = []
        strings_left = self._limits.max_strings
        for spec, (start, size) in zip(known.inputs, raw, strict=True):
            if size == spec.byte_size and size:
                array = np.frombuffer(message, spec.dtype, spec.count, start)
                if spec.datatype == "BOOL":
                    array = array.view(np.uint8) != 0
                elif not array.flags.aligned:
                    array = array.copy()
                array = array.reshape(spec.shape)
            else:
                array = v2_binary.decode(
                    message,
                    start,
                    size,
                    name=spec.name,
                    datatype=spec.datatype,
                    shape=spec.shape,
                    strings_max=strings_left,
                )
                if spec.datatype == "BYTES":
                    strings_left -= array.size
            tensors.append(Tensor(spec.name, spec.datatype, spec.shape, array))
        request = InferenceRequest(
            known.model_name, tensors, known.model_version, request_id, known.outputs
        )
        if known.parameters is not None:
            apply_parameters(request, dict(known.parameters))
        return request

    def _read(self, message: bytes, key: bytes, shared: SharedMemory) -> InferenceRequest:
        """The first of its kind, or one that is never remembered."""
        if len(message) > INLINE_BYTES:
            proto_guard.check_infer(message, self._limits)
        try:
            parsed = self._parse(message)
        except DecodeError as error:
            raise InvalidRequest(
                f"the message is no ModelInferRequest: {error}", code="malformed_protobuf"
            ) from None
        proto_guard.check_counts(parsed, self._limits)
        request = InferenceRequest(
            parsed.model_name,
            _tensors(parsed, shared, self._limits),
            parsed.model_version,
            parsed.id,
            [_output_of(output, shared) for output in parsed.outputs] or None,
        )
        parameters = read_parameters(parsed.parameters) if parsed.parameters else None
        if parameters is not None:
            apply_parameters(request, dict(parameters))
        plain = len(parsed.raw_input_contents) == len(parsed.inputs) and not any(
            tensor.parameters for tensor in parsed.inputs
        )
        plain = plain and not _anything_shared(request.outputs)  # a region is one caller's alone
        if key and plain and len(key) <= _REMEMBERED_BYTES:
            if len(self._known) >= _REMEMBERED_MAX:
                self._known.clear()
            self._known[key] = _Known(
                parsed.model_name,
                parsed.model_version,
                tuple(_input_of(tensor) for tensor in request.inputs),
                request.outputs,
                parameters,
            )
        return request


def _tensors(parsed: Any, shared: SharedMemory, limits: HttpLimits) -> list[Tensor]:
    raw, inputs = parsed.raw_input_contents, parsed.inputs
    ranges = [_range_of(tensor) for tensor in inputs]
    travelling = len(inputs) - sum(where is not None for where in ranges)
    if raw and len(raw) != travelling:
        raise InvalidRequest(
            f"unexpected number of raw input contents: {len(raw)} for {travelling} inputs of "
            f"model '{parsed.model_name}'",
            code="wrong_raw_contents",
            hint="one for each input that is not in shared memory, in their order",
            expected=travelling,
            got=len(raw),
        )
    contents = iter(raw)
    strings_left = limits.max_strings
    tensors = []
    for tensor, where in zip(inputs, ranges, strict=True):
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        _check_kind(name, datatype, shape, limits.max_rank)
        if where is not None:
            array = shared.read(where, name=name, datatype=datatype, shape=shape)
        elif raw:
            if tensor.HasField("contents"):
                raise InvalidRequest(
                    f"contents field must not be specified when using raw_input_contents for "
                    f"'{name}' for model '{parsed.model_name}'",
                    code="wrong_raw_contents",
                    input=name,
                )
            blob = next(contents)
            array = v2_binary.decode(
                blob,
                0,
                len(blob),
                name=name,
                datatype=datatype,
                shape=shape,
                strings_max=strings_left,
            )
            if datatype == "BYTES":
                strings_left -= array.size
        else:
            array = _from_contents(tensor.contents, name, datatype, shape)
        tensors.append(Tensor(name, datatype, shape, array))
    return tensors


def _walk(message: bytes) -> tuple[bytes, str, list[tuple[int, int]]]:
    """What a request is remembered by, its id, and where each raw tensor lies.

    An encoder writes fields in the order of their numbers, so the raw tensors come last. A
    message of any other form has an empty key, and is parsed.
    """
    position, end = 0, len(message)
    before, request_id = 0, ""
    key = b""
    try:
        while position < end and (tag := message[position]) != _RAW:
            if tag & 0x87 != _LENGTH_DELIMITED:  # no such field is known, or its number is longer
                return _OTHER
            length, start = _length(message, position + 1)
            if tag == _ID:
                key, before = message[:position], start + length
                request_id = message[start:before].decode()
            position = start + length
            if position - before > _REMEMBERED_BYTES:
                return _OTHER
        if position - before + len(key) > _REMEMBERED_BYTES:
            return _OTHER
        key += message[before:position]
        raw: list[tuple[int, int]] = []
        while position < end:
            if message[position] != _RAW or len(raw) >= _REMEMBERED_TENSORS:
                return _OTHER
            length, start = _length(message, position + 1)
            raw.append((start, length))
            position = start + length
    except (IndexError, ValueError):
        return _OTHER
    return (key, request_id, raw) if position == end else _OTHER


def _length(message: bytes, position: int) -> tuple[int, int]:
    """The number at ``position`` and where it ends.

    Raises:
        IndexError: the message ends within it.
        ValueError: it is longer than any length: to put it together would take forever.
    """
    length = message[position]
    if length < 0x80:
        return length, position + 1
    length &= 0x7F
    shift = 7
    while True:
        position += 1
        byte = message[position]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return length, position + 1
        shift += 7
        if shift > _LENGTH_BITS_MAX:
            raise ValueError(position)


def _input_of(tensor: Tensor) -> _Input:
    dtype = DTYPE_OF[tensor.datatype]
    count = prod(tensor.shape)
    fixed = -1 if tensor.datatype == "BYTES" else count * dtype.itemsize
    return _Input(tensor.name, tensor.datatype, tensor.shape, dtype, count, fixed)


def _check_kind(name: str, datatype: str, shape: tuple[int, ...], max_rank: int) -> None:
    if datatype not in DTYPE_OF:
        raise InvalidRequest(
            f"input '{name}' has the unknown datatype '{datatype}'",
            code="unknown_datatype",
            hint=f"the datatypes are {', '.join(DTYPE_OF)}",
            input=name,
            got=datatype,
        )
    if len(shape) > max_rank or any(size < 0 for size in shape):
        raise InvalidRequest(
            f"input '{name}' has the shape {list(shape[: max_rank + 1])}; sizes are 0 or more, and "
            f"there are at most {max_rank}",
            code="wrong_shape",
            input=name,
        )


def _from_contents(contents: Any, name: str, datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InvalidRequest(
            f"input '{name}' of {datatype} must travel in raw_input_contents",
            code="wrong_contents",
            input=name,
        )
    for other in contents.ListFields():
        if other[0].name != field:
            raise InvalidRequest(
                f"input '{name}' of {datatype} has {other[0].name}, expected {field}",
                code="wrong_contents",
                input=name,
            )
    values = getattr(contents, field)
    count = prod(shape)
    if len(values) != count:
        raise InvalidRequest(
            f"unexpected explicit tensor data for input tensor '{name}': shape {list(shape)} means "
            f"{count} elements, got {len(values)}",
            code="shape_data_mismatch",
            input=name,
            expected=count,
            got=len(values),
        )
    if not count:
        return v2_binary.empty(name, datatype, shape)
    return _array_of(values, contents, name, datatype).reshape(shape)


def _array_of(values: Any, contents: Any, name: str, datatype: str) -> np.ndarray:
    """The elements of ``contents``, of which ``values`` is the only field that is set."""
    dtype = DTYPE_OF[datatype]
    kind = dtype.kind
    if kind == "O":
        array = np.empty(len(values), dtype)
        array[:] = values
        return array
    if kind in "fb":
        # A packed field of fixed width is the array itself: one by one, a million elements
        # would hold everybody up for a tenth of a second.
        contents.DiscardUnknownFields()
        packed: bytes = contents.SerializeToString()
        _, start = _length(packed, 1)
        found = np.frombuffer(packed, np.uint8 if kind == "b" else dtype, offset=start)
        return found != 0 if kind == "b" else found.copy()  # the copy is aligned
    wide = np.fromiter(values, np.uint64 if kind == "u" else np.int64, len(values))
    array = wide.astype(dtype)
    if not np.array_equal(array, wide):
        raise InvalidRequest(
            f"input '{name}' holds a number that {datatype} cannot represent",
            code="out_of_range",
            input=name,
            expected=datatype,
        )
    return array


def _range_of(tensor: Any) -> SharedMemoryRange | None:
    if not tensor.parameters:
        return None
    return shared_memory_of(read_parameters(tensor.parameters), tensor.name)


def _output_of(output: Any, shared: SharedMemory) -> RequestedOutput:
    if not output.parameters:
        return RequestedOutput(output.name)
    parameters = read_parameters(output.parameters)
    where = shared_memory_of(parameters, output.name)
    if where is not None:
        shared.reserve(where)
    return RequestedOutput(output.name, None, whole_number(parameters, "classification"), where)


class ResponseEncoder:
    """:class:`InferenceResponse` -> bytes."""

    def __init__(self, max_bytes: int = _LIMITS.max_answer_bytes) -> None:
        self._max_bytes = max_bytes
        self._heads: dict[tuple[object, ...], bytes] = {}
        self._make = protos.message("inference.ModelInferResponse")

    def encode(
        self,
        response: InferenceResponse,
        request: InferenceRequest,
        extra: bytes = b"",
        shared: SharedMemory = NO_SHARED_MEMORY,
    ) -> bytes:
        """The message; ``extra`` are fields of it that are encoded already.

        Raises:
            InvalidRequest: an output does not fit where it was asked for in shared memory.
            PayloadTooLarge: the answer has more than ``max_bytes``.
        """
        if response.parameters or _anything_shared(request.outputs):
            return self._encode_slowly(response, request, shared) + extra
        if sum([tensor.data.nbytes for tensor in response.outputs]) > self._max_bytes:
            raise too_large(self._max_bytes)
        parts: list[Any] = [self._head(response), extra]
        if response.id:
            name = response.id.encode()
            parts += (b"\x1a", varint(len(name)), name)  # field 3, LENGTH
        for tensor in response.outputs:
            array = tensor.data
            if array.nbytes >= _JOINED_BYTES and array.dtype != object and array.flags.c_contiguous:
                parts += (b"2", varint(array.nbytes), array)  # field 6, LENGTH
            else:
                blob = v2_binary.encode(tensor)
                parts += (b"2", varint(len(blob)), blob)
        return b"".join(parts)

    def _head(self, response: InferenceResponse) -> bytes:
        """Everything but the id and the bytes of the outputs."""
        key = (
            response.model_name,
            response.model_version,
            *[(tensor.name, tensor.datatype, tensor.shape) for tensor in response.outputs],
        )
        head = self._heads.get(key)
        if head is None:
            message = self._message(response)
            if len(self._heads) >= _REMEMBERED_MAX:
                self._heads.clear()
            head = self._heads[key] = message.SerializeToString()
        return head

    def _message(self, response: InferenceResponse) -> Any:
        message = self._make(model_name=response.model_name, model_version=response.model_version)
        for tensor in response.outputs:
            message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        return message

    def _encode_slowly(
        self, response: InferenceResponse, request: InferenceRequest, shared: SharedMemory
    ) -> bytes:
        message = self._message(response)
        message.id = response.id
        write_parameters(message.parameters, response.parameters or {})
        wanted = {output.name: output.shared_memory for output in request.outputs or ()}
        for tensor, told in zip(response.outputs, message.outputs, strict=True):
            where = wanted.get(tensor.name)
            if where is None:
                message.raw_output_contents.append(v2_binary.encode(tensor))
                continue
            size = shared.write(where, tensor)
            write_parameters(
                told.parameters,
                {
                    "shared_memory_region": where.region,
                    "shared_memory_byte_size": size,
                    "shared_memory_offset": where.offset,
                },
            )
        encoded: bytes = message.SerializeToString()
        return encoded


def _anything_shared(outputs: Sequence[RequestedOutput] | None) -> bool:
    return outputs is not None and any(each.shared_memory is not None for each in outputs)


def varint(number: int) -> bytes:
    """A length as protobuf writes it."""
    if number < 0x80:
        return bytes((number,))
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
