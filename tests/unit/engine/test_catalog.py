"""Which version answers to a name, an alias, or nothing at all."""

from __future__ import annotations

import pytest

from headrace.engine.catalog import ABSENT, MAX_GONE, UNLOADED, Catalog
from headrace.engine.served import ServedModel
from headrace.errors import ModelAbsent, ModelNotFound, ModelNotReady

from .assembled import assemble
from .conftest import ScriptedModel


def model(version: str) -> ServedModel:
    served = assemble(ScriptedModel())
    served.version = version
    return served


@pytest.fixture
def catalog() -> Catalog:
    catalog = Catalog()
    for version in ("1", "2", "10"):
        catalog.publish(model(version))
    return catalog


def answers(catalog: Catalog, version: str = "") -> str:
    return catalog.resolve("m", version).version


def test_without_aliases_the_highest_answers(catalog):
    assert answers(catalog) == "10"
    assert answers(catalog, "2") == "2"


def test_stable_answers_where_no_version_is_named(catalog):
    catalog.set_aliases("m", {"stable": "2", "canary": "10"})
    assert [answers(catalog, version) for version in ("", "stable", "canary", "10")] == [
        "2",
        "2",
        "10",
        "10",
    ]
    assert sorted(each.version for each in catalog.served()) == ["1", "10", "2"]


def test_a_canary_is_asked_by_its_name_alone(catalog):
    catalog.set_aliases("m", {"canary": "10"})
    assert answers(catalog) == "2"
    assert answers(catalog, "canary") == "10"


def test_an_alias_that_moves_leaves_nothing_behind(catalog):
    catalog.set_aliases("m", {"stable": "1"})
    catalog.set_aliases("m", {})
    assert answers(catalog) == "10"
    with pytest.raises(ModelNotFound, match="version stable is not found"):
        answers(catalog, "stable")


def test_a_stable_version_that_is_not_served_is_no_other_one(catalog):
    catalog.set_aliases("m", {"stable": "3"})
    with pytest.raises(ModelNotFound, match="is not found") as caught:
        answers(catalog)
    assert "the aliases stable = 3" in caught.value.hint


def test_an_absent_version_does_not_hand_its_place_to_an_older_one(catalog):
    newest = catalog.resolve("m", "10")
    catalog.withdraw(newest)
    catalog.set_absent("m", "10")
    for version in ("", "10"):
        with pytest.raises(ModelAbsent) as caught:
            answers(catalog, version)
        assert caught.value.details == {"model": "m", "version": "10"}
    assert answers(catalog, "2") == "2"
    catalog.publish(newest)
    assert answers(catalog) == "10"


def test_an_alias_of_an_absent_version_is_absent(catalog):
    catalog.set_aliases("m", {"stable": "1"})
    catalog.withdraw(catalog.resolve("m", "1"))
    catalog.set_absent("m", "1")
    with pytest.raises(ModelAbsent):
        answers(catalog, "stable")
    with pytest.raises(ModelAbsent):
        answers(catalog)


def test_what_is_unloaded_on_purpose_is_absent_no_more(catalog):
    catalog.set_absent("m", "11")
    catalog.forget_absent("m")
    assert answers(catalog) == "10"
    with pytest.raises(ModelNotReady, match=UNLOADED):
        answers(catalog, "11")
    assert ABSENT not in {status.reason for status in catalog.statuses()}


def test_metadata_counts_each_version_once(catalog):
    catalog.set_aliases("m", {"stable": "2"})
    assert catalog.metadata("m").versions == ("1", "2", "10")


def test_names_that_could_not_be_loaded_do_not_pile_up(catalog):
    catalog.set_absent("lazy", "1")
    for number in range(MAX_GONE + 10):
        catalog.set_status(f"made up {number}", "", "LOADING")
        catalog.set_status(f"made up {number}", "", "UNAVAILABLE", "no such file")
    shown = {(status.name, status.state) for status in catalog.statuses()}
    assert len(shown) == 2 + MAX_GONE
    assert {("m", "READY"), ("lazy", "UNAVAILABLE")} < shown
    assert ("made up 9", "UNAVAILABLE") not in shown
    catalog.forget_failures("made up 10")
    catalog.set_status("made up 10", "1", "UNAVAILABLE", "again")
    assert len(catalog.statuses()) == 4 + MAX_GONE
