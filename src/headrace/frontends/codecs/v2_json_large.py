"""Large V2 requests in JSON, decoded in steps of about 100 µs with equal results.

The numbers of a tensor are nearly all of a large body, and they have no quotes and braces. So long
runs of them are found by a search for the next one, and taken out of the JSON. What is left is
small; its values are counted, then it is parsed as usual. The numbers are parsed in slices that end
at commas, straight into the array, so that no list of all of them is ever made.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator
from math import prod

import msgspec
import numpy as np

from headrace.frontends.codecs import json_guard, v2_binary, v2_json
from headrace.frontends.codecs.v2_json import FLAT, Input
from headrace.frontends.codecs.v2_parameters import NO_SHARED_MEMORY, SharedMemory, too_many
from headrace.frontends.slices import INLINE_BYTES, SLICE_BYTES, Steps
from headrace.limits import MIB, HttpLimits
from headrace.types import DTYPE_OF, InferenceRequest

_LIMITS = HttpLimits()

_KEY = b'"data"'
_BEGINS = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*(?=\[)")
_BLANK = b" \t\r\n"
_SEARCHED_BYTES = 1 * MIB
_DEPTH_MAX = 1000
"""Of nested lists, as for the parser of small bodies."""

_KEYS_MAX = 4096
"""Places looked at where the data of a tensor may begin; what is not found is parsed as usual."""

_TO_SPACES = bytes.maketrans(b"[]", b"  ")
_STRUCTURE = bytes(byte if byte in b"[]," else ord("0") for byte in range(256))
"""Leaves brackets and commas; whatever else there is becomes 0."""


def decode_steps(
    body: bytes,
    *,
    model_name: str,
    model_version: str,
    json_size: int | None = None,
    shared: SharedMemory = NO_SHARED_MEMORY,
    limits: HttpLimits = _LIMITS,
) -> Steps[InferenceRequest]:
    """Steps to what ``v2_json.decode_request`` returns.

    Raises:
        InvalidRequest: as there; where several things are wrong, perhaps another of them.
        PayloadTooLarge: more JSON values than ``max_values`` beside the numbers of tensors.
    """
    binary = None
    text = body
    if json_size is not None:
        binary = v2_binary.Reader(body, json_size, limits.max_strings)
        text = body[:json_size]
    rest, runs = yield from _without_numbers(text)
    yield from json_guard.check_values(rest, limits.max_values)
    parsed = v2_json.parse(rest, limits)
    if not runs.keys() <= {bytes(tensor.data) for tensor in parsed.inputs}:
        # A parameter or a text looks like the data of a tensor.
        yield from json_guard.check_values(text, limits.max_values)
        parsed, runs = v2_json.parse(text, limits), {}
    _check_names(parsed.id, [tensor.name for tensor in parsed.inputs], limits)
    for tensor in parsed.inputs:
        yield
        run = runs.pop(bytes(tensor.data), None)
        if run is not None and _is_sliceable(tensor, limits):
            tensor.data = yield from _numbers(tensor, run)  # type: ignore[assignment]
            continue
        if run is not None:
            numbers = run.text[run.start : run.end]
            yield from json_guard.check_values(numbers, limits.max_values)
            tensor.data = msgspec.Raw(numbers)
        tensor.data = v2_json.array_of(tensor, binary, shared, limits)  # type: ignore[assignment]
    if binary is not None:
        binary.finish()
    return v2_json.request_of(parsed, model_name, model_version, shared, limits)


def _without_numbers(text: bytes) -> Steps[tuple[bytes, dict[bytes, _Run]]]:
    """The JSON with a string in place of each long run of numbers, and the runs by that string.

    No client can know the strings.
    """
    secret = secrets.token_hex(16).encode()
    parts: list[bytes] = []
    runs: dict[bytes, _Run] = {}
    kept = found = 0
    for _ in range(_KEYS_MAX):
        found = text.find(_KEY, found)
        if found < 0:
            break
        found += len(_KEY)
        begins = _BEGINS.match(text, found)
        if begins is None:
            continue
        start = begins.end()
        end = yield from _end_of_numbers(text, start)
        if end - start > INLINE_BYTES:
            name = b'"%b:%d"' % (secret, len(runs))
            runs[name] = _Run(text, start, end)
            parts += (text[kept:start], name)
            kept = found = end
    if runs:
        parts.append(text[kept:])
        text = b"".join(parts)
    return text, runs


def _end_of_numbers(text: bytes, start: int) -> Steps[int]:
    """Where the list that begins here ends, if no string and no object is in it; else ``start``."""
    end = len(text)
    for window in range(start, end, _SEARCHED_BYTES):
        quote = text.find(b'"', window, window + _SEARCHED_BYTES)
        brace = text.find(b"}", window, window + _SEARCHED_BYTES if quote < 0 else quote)
        if quote >= 0 or brace >= 0:
            end = quote if brace < 0 else brace
            break
        yield
    tail = text[max(start, end - INLINE_BYTES) : end]
    end -= len(tail) - len(tail.rstrip(b"," + _BLANK))
    return end if end > start and text[end - 1] == 0x5D else start


class _Run(msgspec.Struct, frozen=True, gc=False):
    """A list of numbers, nested or not: a part of the request's text."""

    text: bytes
    start: int
    end: int

    def count(self, byte: bytes) -> Steps[int]:
        """How often the byte is in it."""
        count, step = 0, 4 * SLICE_BYTES
        for start in range(self.start, self.end, step):
            count += self.text.count(byte, start, min(start + step, self.end))
            yield
        return count

    def pieces(self, margin: int = 0) -> Generator[bytes, None, None]:
        """All of it but ``margin`` bytes at both ends, cut at commas, without these."""
        position, end = self.start + margin, self.end - margin
        while (cut := self.text.find(b",", position + SLICE_BYTES, end)) >= 0:
            yield self.text[position:cut]
            position = cut + 1
        yield self.text[position:end]


def _check_names(request_id: str, names: list[str], limits: HttpLimits) -> None:
    longest = max(map(len, (request_id, *names)))
    if longest > limits.max_name_length:
        raise too_many(
            "characters in its id or a name", longest, "max_name_length", limits.max_name_length
        )


def _is_sliceable(tensor: Input, limits: HttpLimits) -> bool:
    """Whether the input takes its numbers from the JSON, and there is nothing else to refuse."""
    parameters = tensor.parameters or {}
    return (
        not parameters.keys() & {"shared_memory_region", "binary_data_size"}
        and len(parameters) <= limits.max_parameters
        and tensor.datatype in FLAT
        and tensor.datatype != "BYTES"
        and 0 not in tensor.shape
        and len(tensor.shape) <= limits.max_rank
    )


def _numbers(tensor: Input, run: _Run) -> Steps[np.ndarray]:
    """The elements, parsed slice by slice into the array."""
    begin = run.text[run.start : run.start + INLINE_BYTES]
    if begin[: len(begin) - len(begin.lstrip(b"[" + _BLANK))].count(b"[") > _DEPTH_MAX:
        v2_json.malformed(RecursionError())
    count = prod(tensor.shape)
    commas = yield from run.count(b",")
    if commas + 1 != count:
        v2_json.mismatch(tensor, count, commas + 1)
    nested = v2_json.is_nested(run.text, run.start)
    if nested:
        yield from _check_nesting(tensor, run)
    array = np.empty(count, DTYPE_OF[tensor.datatype])
    filled = 0
    for piece in run.pieces(1):
        numbers = _slice(tensor, piece.translate(_TO_SPACES) if nested else piece)
        array[filled : filled + len(numbers)] = numbers
        filled += len(numbers)
        yield
    return array.reshape(tensor.shape)


def _slice(tensor: Input, piece: bytes) -> np.ndarray:
    decode, dtype, convert = FLAT[tensor.datatype]
    count = piece.count(b",") + 1
    try:
        values = decode(b"[%b]" % piece)
        if len(values) != count:
            raise msgspec.DecodeError("a value is missing beside a comma")
        numbers = np.fromiter(values, dtype, count)
        return numbers if convert is None else convert(numbers)
    except msgspec.ValidationError as error:
        v2_json.wrong_data(tensor, error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        v2_json.malformed(error)
    except (OverflowError, FloatingPointError) as error:
        v2_json.out_of_range(tensor, error)


def _check_nesting(tensor: Input, run: _Run) -> Generator[None, None, None]:
    """Raises unless the lists are nested exactly as the shape says."""
    shape = tensor.shape
    brackets = yield from run.count(b"[")
    if brackets != sum(prod(shape[:axis]) for axis in range(len(shape))):
        v2_json.wrong_nesting(tensor)
    expected = b"[%b]," % (b"," * (shape[-1] - 1))
    for size in reversed(shape[:-1]):
        expected = b"[%b]," % (expected * size)[:-1]
    position = 0
    for piece in run.pieces():
        compact = piece.translate(_STRUCTURE, _BLANK)
        if b"0[" in compact or b"]0" in compact:
            v2_json.malformed(msgspec.DecodeError("a list and a number without a comma between"))
        found = compact.translate(None, b"0") + b","
        if expected[position : position + len(found)] != found:
            v2_json.wrong_nesting(tensor)
        position += len(found)
        yield
    if position != len(expected):
        v2_json.wrong_nesting(tensor)
