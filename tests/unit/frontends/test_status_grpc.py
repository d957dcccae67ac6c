"""What a gRPC client is told of an error: code, text, and the same JSON that HTTP has."""

from __future__ import annotations

import json

import grpc
import pytest

from headrace import errors
from headrace.frontends.status import GRPC_CODES, INTERNAL_TEXT, STATUS_OF, grpc_answer


def test_every_name_in_the_table_has_its_number() -> None:
    numbers = {code.name: code.value[0] for code in grpc.StatusCode}
    assert {status.grpc for status in STATUS_OF.values()} <= set(GRPC_CODES)
    assert {name: numbers[name] for name in GRPC_CODES} == GRPC_CODES


def test_text_hint_and_details() -> None:
    error = errors.InvalidRequest("wrong", code="c", hint="do right", input="x")
    code, text, trailers = grpc_answer(error)
    assert (code, text) == (3, "wrong (do right)")
    ((name, body),) = trailers
    assert name == b"headrace-error-bin"
    assert json.loads(body) == {"error": "wrong", "code": "c", "hint": "do right", "input": "x"}


def test_who_should_come_back_is_told_when() -> None:
    trailers = dict(grpc_answer(errors.Overloaded("full", retry_after_ns=2_500_000_000))[2])
    assert trailers[b"retry-after"] == b"3"
    assert b"retry-after" not in dict(grpc_answer(errors.DeadlineExceeded("late"))[2])


def test_nothing_is_told_of_our_inside() -> None:
    code, text, trailers = grpc_answer(KeyError("secret"))
    assert (code, text) == (13, INTERNAL_TEXT)
    assert b"secret" not in trailers[0][1]


@pytest.mark.parametrize("letter", ["n", "ä", "\ud800", "𝄞"])
def test_what_is_told_fits_into_the_headers_that_clients_take(letter: str) -> None:
    _, text, trailers = grpc_answer(errors.InvalidRequest("wrong: " + letter * 10_000, input="x"))
    assert text.startswith("wrong: ")
    assert text.endswith("…")
    size = 3 * len(text.encode("utf-8", "replace")) + sum(2 * len(value) for _, value in trailers)
    assert size < 8192
