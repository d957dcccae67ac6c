"""Limits of a protobuf message, held against its bytes before a parser makes objects of them.

One byte of a packed field becomes an element of eight, and two bytes an empty message. Only the
fields that can be repeated are looked at. Source: protobuf's encoding specification.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from headrace.errors import InvalidRequest, PayloadTooLarge
from headrace.frontends.codecs import v2_binary
from headrace.frontends.codecs.v2_parameters import check_parameters, too_many
from headrace.limits import HttpLimits

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MAX = 10

_PARAMETERS, _INPUTS, _OUTPUTS, _RAW = 4, 5, 6, 7
"""Fields of ``ModelInferRequest``."""

_NAME, _SHAPE, _TENSOR_PARAMETERS, _CONTENTS = 1, 3, 4, 5
"""Fields of ``InferInputTensor``."""

_FIELDS_OF_INPUT = 16
"""In a message, on average; texts do not count. An input with unpacked contents has more."""

_STRINGS = 8
_WIDENED = range(2, 6)
"""Fields of ``InferTensorContents``: bytes, and integers that take more room in memory."""

_Field = tuple[int, int, int, int]
"""Number, wire type, and where its value is."""


def check_fields(message: bytes, limit: int) -> None:
    """Refuses a message with more fields than ``limit``, without what is in them.

    Raises:
        InvalidRequest: it is no protobuf message, or has too many.
    """
    _Walk(message, limit).all(0, len(message))


def check_infer(message: bytes, limits: HttpLimits) -> None:
    """Holds a ``ModelInferRequest`` against the limits.

    Raises:
        InvalidRequest: it is no protobuf message, or a shape has too many dimensions.
        PayloadTooLarge: more of something than ``limits`` allow.
    """
    walk = _Walk(message, _FIELDS_OF_INPUT * limits.max_inputs)
    allowed = {
        _PARAMETERS: ("parameters", "max_parameters", limits.max_parameters),
        _INPUTS: ("inputs", "max_inputs", limits.max_inputs),
        _OUTPUTS: ("outputs", "max_outputs", limits.max_outputs),
        _RAW: ("raw input contents", "max_inputs", limits.max_inputs),
    }
    seen = dict.fromkeys(allowed, 0)
    for number, wire, start, end in walk.fields(0, len(message)):
        if number not in allowed:
            continue
        seen[number] += 1
        what, limit, most = allowed[number]
        if seen[number] > most:
            raise too_many(what, seen[number], limit, most)
        if number == _INPUTS and wire == _LENGTH:
            _check_input(walk, start, end, limits)
        elif number == _OUTPUTS and wire == _LENGTH:
            _check_output(walk, start, end, limits)


def check_counts(parsed: Any, limits: HttpLimits) -> None:
    """The same for a small message that is parsed already.

    Raises:
        PayloadTooLarge: more of something than ``limits`` allow.
    """
    if len(parsed.inputs) > limits.max_inputs:
        raise too_many("inputs", len(parsed.inputs), "max_inputs", limits.max_inputs)
    if len(parsed.outputs) > limits.max_outputs:
        raise too_many("outputs", len(parsed.outputs), "max_outputs", limits.max_outputs)
    check_parameters(parsed.parameters, limits)


def _check_input(walk: _Walk, start: int, end: int, limits: HttpLimits) -> None:
    rank = parameters = 0
    for number, wire, begin, finish in walk.fields(start, end):
        if number == _NAME and finish - begin > limits.max_name_length:
            raise _long_name(finish - begin, limits)
        if number == _SHAPE:
            rank += _elements(walk.message, begin, finish) if wire == _LENGTH else 1
            if rank > limits.max_rank:
                raise InvalidRequest(
                    f"an input has more than {limits.max_rank} dimensions", code="wrong_shape"
                )
        elif number == _TENSOR_PARAMETERS:
            parameters += 1
        elif number == _CONTENTS and wire == _LENGTH:
            _check_contents(walk, begin, finish, limits)
    if parameters > limits.max_parameters:
        raise too_many("parameters", parameters, "max_parameters", limits.max_parameters)


def _check_output(walk: _Walk, start: int, end: int, limits: HttpLimits) -> None:
    parameters = 0
    for number, _, begin, finish in walk.fields(start, end):
        if number == _NAME and finish - begin > limits.max_name_length:
            raise _long_name(finish - begin, limits)
        parameters += number != _NAME
    if parameters > limits.max_parameters:
        raise too_many("parameters", parameters, "max_parameters", limits.max_parameters)


def _long_name(length: int, limits: HttpLimits) -> PayloadTooLarge:
    allowed = limits.max_name_length
    return too_many("bytes in a name", length, "max_name_length", allowed)


def _check_contents(walk: _Walk, start: int, end: int, limits: HttpLimits) -> None:
    for number, wire, begin, finish in walk.fields(start, end):
        if number == _STRINGS:
            walk.strings += 1
            walk.left += 1
            if walk.strings > limits.max_strings:
                raise v2_binary.too_many_strings(walk.strings, limits.max_strings)
        elif number in _WIDENED:
            walk.integers += _elements(walk.message, begin, finish) if wire == _LENGTH else 1
    if walk.integers > limits.max_values:
        raise PayloadTooLarge(
            f"the request has {walk.integers} integers in contents, more than {limits.max_values}",
            code="too_many_values",
            hint="send raw_input_contents, or raise max_values",
            limit="max_values",
            allowed=limits.max_values,
        )


def _elements(message: bytes, start: int, end: int) -> int:
    """Varints in a packed field: each has one byte without the highest bit."""
    if start == end:
        return 0
    packed = np.frombuffer(message, np.int8, end - start, start)
    return int(np.count_nonzero(packed >= 0))


class _Walk:
    """Reads fields of a message and of those in it, at most ``limit`` in all."""

    def __init__(self, message: bytes, limit: int) -> None:
        self.message = message
        self.integers = self.strings = 0  # in all contents
        self._limit = limit
        self.left = limit

    def all(self, start: int, end: int) -> None:
        """Counts fields, and does nothing else."""
        for _ in self.fields(start, end):
            pass

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """Every field between two positions."""
        position = start
        while position < end:
            self.left -= 1
            if self.left < 0:
                raise PayloadTooLarge(
                    f"the message has more than {self._limit} fields", code="request_too_complex"
                )
            tag, position = self._varint(position, end)
            wire = tag & 7
            begin = position
            if wire == _LENGTH:
                size, begin = self._varint(position, end)
                position = begin + size
            elif wire == _VARINT:
                _, position = self._varint(position, end)
            elif wire in (_FIXED32, _FIXED64):
                position += 4 if wire == _FIXED32 else 8
            else:  # groups, which no version 3 has
                raise _malformed()
            if position > end:
                raise _malformed()
            yield tag >> 3, wire, begin, position

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        number = shift = 0
        message = self.message
        for index in range(position, min(end, position + _VARINT_BYTES_MAX)):
            byte = message[index]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number, index + 1
            shift += 7
        raise _malformed()


def _malformed() -> InvalidRequest:
    return InvalidRequest("the message is no protobuf message", code="malformed_protobuf")
