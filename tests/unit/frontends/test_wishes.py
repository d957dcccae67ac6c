"""Headers beside a request."""

from __future__ import annotations

import pytest

from headrace.errors import InvalidRequest
from headrace.frontends.peer import Address, Peer
from headrace.frontends.wishes import heed, name_caller
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


class _Client:
    def __init__(self, host: str | None) -> None:
        self._peer = Peer(None if host is None else Address(host, 5000))

    def peer(self) -> Peer:
        return self._peer


def test_a_sequence_belongs_to_host_and_tenant_and_to_no_connection() -> None:
    def caller(host: str | None, tenant: str = "", sequence: int = 1) -> str:
        request = InferenceRequest("m", [], sequence_id=sequence, tenant=tenant)
        name_caller(request, _Client(host))
        return request.caller

    assert caller("192.0.2.1") == caller("::ffff:192.0.2.1") != caller("192.0.2.2")
    assert caller("127.0.0.1") == caller("::1") == caller("127.0.0.2")
    assert caller("192.0.2.1", "a") != caller("192.0.2.1", "b")
    assert caller(None, "a") != caller("192.0.2.1", "a")
    assert caller("192.0.2.1", sequence=0) == ""
