"""Names and numbers: bounded by the configuration, not by what callers say."""

from __future__ import annotations

from headrace.config import TenantConfig
from headrace.core.events import TenantTerms
from headrace.engine import tenants as module
from headrace.engine.tenants import Tenants


def test_without_terms_nobody_is_told_apart():
    tenants = Tenants({})

    assert tenants.number("search") == tenants.number("") == 0
    assert not tenants.enabled


def test_those_who_are_not_listed_share_one_place():
    tenants = Tenants({"search": TenantConfig(share=3.0)})

    assert len({tenants.number(name) for name in ("a", "b", "", "c")}) == 1
    assert tenants.number("search") != tenants.number("a")
    event = tenants.event()
    assert event.terms == {tenants.number("search"): TenantTerms(3.0, 0)}
    assert event.otherwise == TenantTerms()


def test_with_a_star_everybody_has_a_place_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(module, "SEEN_MAX", 3)
    tenants = Tenants({"*": TenantConfig(share=2.0, priority_max=2), "a": TenantConfig()})
    first = {name: tenants.number(name) for name in ("a", "x", "y", "z")}

    assert len(set(first.values())) == 4
    assert tenants.number("x") == first["x"]
    tenants.number("new")  # y was seen longest ago
    assert tenants.number("x") == first["x"]
    assert tenants.number("y") != first["y"]
    assert tenants.number("a") == first["a"]
    assert tenants.event().otherwise == TenantTerms(2.0, 2)


def test_only_listed_names_are_labels():
    tenants = Tenants({"*": TenantConfig(), "a": TenantConfig()})

    assert (tenants.label("a"), tenants.label("x"), tenants.label("*")) == ("a", "", "")
