"""The one table from errors to codes, and the two shapes."""

from __future__ import annotations

import json

import pytest

from headrace import errors
from headrace.frontends.status import (
    http_status,
    openai_error_body,
    retry_after_header,
    status_of,
    v2_error_body,
)


def every_class(root: type[errors.HeadraceError]) -> list[type[errors.HeadraceError]]:
    children = root.__subclasses__()
    return children + [below for child in children for below in every_class(child)]


@pytest.mark.parametrize(
    ("error", "http", "grpc"),
    [
        (errors.InvalidRequest("x"), 400, "INVALID_ARGUMENT"),
        (errors.ModelNotFound("x"), 404, "NOT_FOUND"),
        (errors.PayloadTooLarge("x"), 413, "RESOURCE_EXHAUSTED"),
        (errors.Unsupported("x"), 501, "UNIMPLEMENTED"),
        (errors.RequestCancelled("x"), 499, "CANCELLED"),
        (errors.Overloaded("x"), 503, "UNAVAILABLE"),
        (errors.ModelNotReady("x"), 503, "UNAVAILABLE"),
        (errors.DeadlineExceeded("x"), 504, "DEADLINE_EXCEEDED"),
        (errors.InferenceFailed("x"), 500, "INTERNAL"),
        (errors.InstanceDied("x"), 503, "UNAVAILABLE"),
        (errors.ModelLoadError("x"), 500, "INTERNAL"),
        (KeyError("x"), 500, "INTERNAL"),
    ],
)
def test_codes(error: Exception, http: int, grpc: str) -> None:
    assert (status_of(error).http, status_of(error).grpc) == (http, grpc)


def test_every_error_of_a_request_has_a_row_of_its_own_kind() -> None:
    for fault, lowest, highest in (
        (errors.RequestError, 400, 501),
        (errors.CapacityError, 503, 504),
        (errors.ModelError, 500, 503),
    ):
        for error in every_class(fault):
            assert lowest <= http_status(error("x")) <= highest


def test_a_subclass_has_its_parents_row() -> None:
    class TooManyTokens(errors.PayloadTooLarge):
        pass

    assert http_status(TooManyTokens("x")) == 413


def test_the_v2_shape_carries_code_hint_and_details() -> None:
    error = errors.InvalidRequest(
        "unexpected input", code="unexpected_input", hint="remove it", input="x", expected=["a"]
    )
    assert json.loads(v2_error_body(error)) == {
        "error": "unexpected input",
        "code": "unexpected_input",
        "hint": "remove it",
        "input": "x",
        "expected": ["a"],
    }


def test_details_do_not_overwrite_the_message() -> None:
    error = errors.InvalidRequest("true", error="false")
    assert json.loads(v2_error_body(error)) == {"error": "true", "code": "invalid_request"}


def test_the_openai_shape_always_has_four_keys() -> None:
    error = errors.InvalidRequest("too long", hint="send less", param="input")
    assert json.loads(openai_error_body(error)) == {
        "error": {
            "message": "too long (send less)",
            "type": "invalid_request_error",
            "param": "input",
            "code": "invalid_request",
        }
    }
    assert json.loads(openai_error_body(errors.Overloaded("full"))) == {
        "error": {"message": "full", "type": "server_error", "param": None, "code": "overloaded"}
    }


@pytest.mark.parametrize(
    "error",
    [
        KeyError("/etc/shadow"),
        errors.ModelLoadError("cannot read /etc/shadow", hint="chmod /etc/shadow"),
        errors.HeadraceError("/etc/shadow"),
    ],
)
def test_nothing_unforeseen_tells_of_our_inside(error: Exception) -> None:
    for body in (v2_error_body(error), openai_error_body(error)):
        assert b"shadow" not in body
        assert b"internal" in body


def test_details_and_texts_that_are_no_json_do_not_break_the_answer() -> None:
    odd = errors.InvalidRequest("name '\ud800' is odd", value=object(), name="\ud800")
    assert json.loads(v2_error_body(odd))["error"] == "name '\ud800' is odd"
    assert json.loads(openai_error_body(odd))["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.Overloaded("x", retry_after_ns=1), "1"),
        (errors.Overloaded("x", retry_after_ns=2_000_000_000), "2"),
        (errors.Overloaded("x", retry_after_ns=2_000_000_001), "3"),
        (errors.ModelNotReady("x"), "1"),
        (errors.InstanceDied("x"), "1"),
        (errors.DeadlineExceeded("x", retry_after_ns=10**9), None),
        (errors.InvalidRequest("x"), None),
        (KeyError("x"), None),
    ],
)
def test_retry_after_in_whole_seconds(error: Exception, expected: str | None) -> None:
    assert retry_after_header(error) == expected
