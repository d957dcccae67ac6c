"""JSON from strangers: how many values it has, and one InvalidRequest for whatever is wrong."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import msgspec

from headrace.errors import InvalidRequest, PayloadTooLarge
from headrace.limits import KIB

T = TypeVar("T")

_COUNTED_BYTES = 64 * KIB
"""Of a body in one step: 100 µs."""


def decode(decoder: msgspec.json.Decoder[T], body: bytes | memoryview, what: str) -> T:
    """``decoder.decode(body)``; ``what`` names the body in messages ("request body").

    Raises:
        InvalidRequest: ``malformed_json`` (the message has the byte position where the parser
            knows it), or ``wrong_json`` (well formed, of another shape than expected; the
            detail ``param`` has the path, such as ``input[3]``).
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong(error, what) from None
    except RecursionError:
        raise _malformed(f"the {what} is nested too deeply to be read") from None
    except UnicodeDecodeError as error:
        raise _malformed(f"the {what} is not UTF-8: {error.reason}") from None
    except msgspec.DecodeError as error:
        if not body:
            raise _malformed(f"the {what} is empty, expected a JSON object") from None
        raise _malformed(f"failed to parse the {what} as JSON: {error}") from None


def check_values(body: bytes, limit: int) -> Generator[None, None, None]:
    """Steps that count the values of a body before any object is made of them.

    What is in a string does not count. The count is exact for well-formed JSON, but for one that
    is missing in each empty list and object and one for the whole.

    Raises:
        PayloadTooLarge: ``too_many_values``.
    """
    if len(body) <= limit:
        return
    count = position = 0
    in_string = False
    while position < len(body):
        piece = body[position : position + _COUNTED_BYTES]
        if (len(piece) - len(piece.rstrip(b"\\"))) & 1 and len(piece) > 1:
            piece = piece[:-1]  # the next one begins with the whole escape sequence
        position += len(piece)
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        count += _separators(b" ".join(parts[in_string::2]))
        in_string ^= not len(parts) & 1
        if count > limit:
            raise PayloadTooLarge(
                f"the request body has more than {limit} JSON values",
                code="too_many_values",
                hint="send tensors as V2 binary data, send several requests, or raise max_values",
                limit="max_values",
                allowed=limit,
            )
        yield


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _malformed(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="malformed_json", hint="send one JSON object, in UTF-8")


def _wrong(error: msgspec.ValidationError, what: str) -> InvalidRequest:
    problem, _, path = str(error).partition(" - at ")
    if not path and "field" not in problem:
        return InvalidRequest(f"wrong {what}: {problem}", code="wrong_json")
    parents = path.strip("`").removeprefix("$").removeprefix(".")
    named = problem.split("`")[1] if "field" in problem and "`" in problem else ""
    param = ".".join(part for part in (parents, named) if part)
    where = "" if named and not parents else f" at '{param}'"
    return InvalidRequest(f"wrong {what}: {problem}{where}", code="wrong_json", param=param)
