"""Headers beside a request."""

from __future__ import annotations

import pytest

from headrace.errors import InvalidRequest
from headrace.frontends.wishes import heed
from headrace.types import InferenceRequest


def asked(**headers: str) -> InferenceRequest:
    request = InferenceRequest("m", [])
    heed(request, {k.replace("_", "-").encode(): v.encode("latin-1") for k, v in headers.items()})
    return request


def test_nothing_said_changes_nothing():
    assert asked() == InferenceRequest("m", [])


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [("50", 50_000_000), ("0.5", 500_000), ("1e2", 100_000_000), ("0.0000001", 1)],
)
def test_an_slo(text, expected_ns):
    assert asked(x_slo_ms=text).slo_ns == expected_ns


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "", "fast", "1_0", "86400001", "9" * 99])
def test_an_slo_that_is_none(text):
    with pytest.raises(InvalidRequest, match="x-slo-ms") as caught:
        asked(x_slo_ms=text)
    assert caught.value.code == "invalid_slo"
    assert len(caught.value.message) < 300


def test_a_tenant():
    assert asked(x_tenant_id="search/eu-1").tenant == "search/eu-1"


@pytest.mark.parametrize("text", ["", "a b", "é", "a\tb", "x" * 129])
def test_a_tenant_that_is_none(text):
    with pytest.raises(InvalidRequest, match="x-tenant-id") as caught:
        asked(x_tenant_id=text)
    assert caught.value.code == "invalid_tenant"
    assert len(caught.value.message) < 300


def test_a_trace():
    assert asked(traceparent="00-abc").trace_context == "00-abc"
