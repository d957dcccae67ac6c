"""What has to go so that a model fits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.placement import HALF_LIFE_NS, Interest, Resident, place

MB = 1 << 20


def resident(name: str, size: int, **facts) -> Resident:
    return Resident(name, size, **({"interest": 1.0, "reload_ns": 10**9} | facts))


def test_what_fits_moves_nobody():
    placed = place(5, [resident("a", 10)], budget_bytes=20, used_bytes=15)
    assert placed.fits
    assert placed.evict == ()


def test_the_least_valuable_goes_first():
    there = [
        resident("hot", 10, interest=50.0),
        resident("cold", 10, interest=0.5),
        resident("dear", 10, interest=0.5, reload_ns=10**12),
    ]
    assert place(10, there, budget_bytes=30, used_bytes=30).evict == ("cold",)


def test_large_ones_are_worth_less_for_each_byte():
    there = [resident("large", 100), resident("small", 10)]
    assert place(10, there, budget_bytes=110, used_bytes=110).evict == ("large",)


def test_nothing_goes_that_need_not():
    there = [resident("tiny", 1, interest=0.0), resident("large", 100, interest=1.0)]
    # "tiny" is worth least, but once "large" must go its leaving is needless.
    placed = place(100, there, budget_bytes=101, used_bytes=101)
    assert placed.evict == ("large",)


def test_pinned_ones_stay_and_are_named():
    there = [resident("pin", 90, held=True, why="pinned"), resident("free", 10)]
    placed = place(50, there, budget_bytes=100, used_bytes=100)
    assert not placed.fits
    assert placed.missing_bytes == 40
    assert placed.evict == ("free",)
    assert [each.why for each in placed.held] == ["pinned"]


def test_busy_ones_go_after_idle_ones():
    there = [resident("busy", 10, interest=0.0, busy=True), resident("idle", 10, interest=9.0)]
    assert place(5, there, budget_bytes=20, used_bytes=20).evict == ("idle",)


def test_interest_fades_by_half():
    interest = Interest(0)
    interest.used(8, 0)
    assert interest.at(HALF_LIFE_NS) == 4
    interest.used(4, HALF_LIFE_NS)
    assert interest.at(2 * HALF_LIFE_NS) == 4


_residents = st.lists(
    st.builds(
        Resident,
        name=st.uuids().map(str),
        size_bytes=st.integers(0, 100),
        interest=st.floats(0, 100),
        reload_ns=st.integers(0, 10**10),
        busy=st.booleans(),
        held=st.booleans(),
    ),
    max_size=12,
)


@given(_residents, st.integers(0, 400), st.integers(0, 600), st.integers(0, 50))
def test_laws(residents, needed, budget, slack):
    used = sum(each.size_bytes for each in residents) + slack
    placed = place(needed, residents, budget_bytes=budget, used_bytes=used)
    size = {each.name: each.size_bytes for each in residents}
    held = {each.name for each in residents if each.held}
    assert not set(placed.evict) & held
    left = used - sum(size[name] for name in placed.evict)
    if placed.fits:
        assert left + needed <= budget
        for name in placed.evict:  # each of them was needed
            assert left + size[name] + needed > budget
    else:
        assert set(placed.evict) == {each.name for each in residents} - held
        assert placed.missing_bytes == left + needed - budget > 0
