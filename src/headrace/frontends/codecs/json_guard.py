"""JSON from strangers: whatever is wrong becomes one InvalidRequest that says where."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from headrace.errors import InvalidRequest

T = TypeVar("T")


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
