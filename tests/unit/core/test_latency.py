"""What is learnt of batches: the curve, the machine's mood, and what a promise allows for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.events import LearntCost
from headrace.core.latency import QUANTILE, LatencyModel

MS = 1_000_000


def learnt_from(batches) -> LatencyModel:
    """A model that saw (units, ms) pairs, a millisecond apart."""
    model = LatencyModel()
    for at, (units, taken_ms) in enumerate(batches):
        model.observe(units, int(taken_ms * MS), at * MS)
    return model


def curve(units: float) -> float:
    return 5 + units


def test_nothing_is_known_at_first():
    model = LatencyModel()

    assert not model
    assert model.predict_ns(8) == 0.0
    assert model.largest_within(1.0) == float("inf")


def test_a_batch_that_took_no_time_is_still_divided_by():
    """A clock that stands still, or a profile with a zero in it."""
    for model in (learnt_from([(1, 0)] * 20), LatencyModel(LearntCost(((1.0, 0.0), (8.0, 0.0))))):
        assert model.predict_ns(1) > 0.0
        assert model.predict_ns(8) > 0.0


def test_a_line_is_learnt_and_goes_on_beyond_what_was_seen():
    model = learnt_from([(units, curve(units)) for _ in range(40) for units in (1, 4, 16)])

    for units in (1, 2, 4, 9, 16, 32):
        assert model.predict_ns(units) == pytest.approx(curve(units) * MS, rel=0.01)


def test_a_bend_is_learnt_too():
    def bent(units):
        return 8 if units <= 16 else 8 + 3 * (units - 16)

    model = learnt_from([(units, bent(units)) for _ in range(40) for units in (1, 8, 16, 31)])

    assert model.predict_ns(4) == pytest.approx(8 * MS, rel=0.02)
    assert model.predict_ns(31) == pytest.approx(bent(31) * MS, rel=0.02)


def test_one_size_says_that_half_of_its_time_is_fixed():
    model = LatencyModel(LearntCost(((4.0, 8.0 * MS),)))

    assert model.predict_ns(1) == model.predict_ns(4) == 8 * MS
    assert model.predict_ns(8) == 12 * MS


def test_the_largest_batch_within_is_the_inverse_of_what_is_safe():
    model = learnt_from([(units, curve(units)) for _ in range(40) for units in (1, 4, 16)])

    for units in (1.5, 3.0, 10.0, 30.0):
        assert model.largest_within(model.safe_ns(units)) == pytest.approx(units, rel=1e-6)
    assert model.largest_within(0.5 * curve(1) * MS) == 0.0


def test_a_slower_machine_is_noticed_in_sizes_that_did_not_run():
    model = learnt_from([(units, curve(units)) for _ in range(40) for units in (1, 4, 16)])

    for at in range(40):
        model.observe(4, int(3 * curve(4) * MS), (1000 + at) * MS)

    assert model.level == pytest.approx(3, rel=0.1)
    assert model.predict_ns(16) == pytest.approx(3 * curve(16) * MS, rel=0.15)

    for at in range(60):
        model.observe(4, int(curve(4) * MS), (2000 + at) * MS)

    assert model.predict_ns(16) == pytest.approx(curve(16) * MS, rel=0.15)


def test_long_batches_are_followed_in_fewer_of_them():
    quick, slow = (LatencyModel(LearntCost(((1.0, t), (8.0, 2 * t)))) for t in (1e6, 1e9))
    for at in range(9):
        quick.observe(1, 2_000_000, at * MS)
        slow.observe(1, 2_000_000_000, at * MS)

    assert slow.level > quick.level > 1.0


def test_one_stall_moves_nothing_by_more_than_a_quarter():
    model = learnt_from([(units, curve(units)) for _ in range(40) for units in (1, 4, 16)])
    before = model.safe_ns(4)

    model.observe(4, 10_000 * MS, 1000 * MS)

    assert before < model.safe_ns(4) < 1.25 * before


def test_a_promise_is_kept_by_as_many_batches_as_it_says():
    chance = random.Random(3)
    model, kept, asked = LatencyModel(), 0, 0
    for at in range(6000):
        units = chance.choice([1, 2, 8, 16])
        taken_ns = int(curve(units) * MS * chance.lognormvariate(0, 0.2))
        if at > 1000:
            asked += 1
            kept += taken_ns <= model.safe_ns(units)
        model.observe(units, taken_ns, at * MS)

    assert kept / asked == pytest.approx(QUANTILE, abs=0.02)


def test_what_was_learnt_survives_a_restart():
    model = learnt_from([(units, curve(units)) for _ in range(40) for units in (1, 4, 16)])

    again = LatencyModel(model.state())

    assert again.batches == model.batches == 120
    for units in (1, 3, 16, 32):
        assert again.predict_ns(units) == pytest.approx(model.predict_ns(units), rel=0.01)


def test_what_was_guessed_gives_way_to_what_is_seen():
    model = LatencyModel(LearntCost(((1.0, 20.0 * MS), (16.0, 50.0 * MS))))

    for at in range(200):
        model.observe((1, 16)[at % 2], int(curve((1, 16)[at % 2]) * MS), at * MS)

    assert model.predict_ns(1) == pytest.approx(curve(1) * MS, rel=0.3)
    assert model.predict_ns(16) == pytest.approx(curve(16) * MS, rel=0.3)


def test_a_stream_of_tiny_batches_is_looked_at_now_and_then():
    model = LatencyModel()
    for at in range(1000):
        model.observe(1, 1000, at)
    state = model.state()

    assert model.batches == 1000
    model.observe(1, 10**9, 1000)  # a microsecond after the others
    assert model.state().points == state.points


@given(
    st.lists(
        st.tuples(st.floats(1, 4096), st.integers(0, 10**12), st.integers(0, 10**9)), max_size=80
    )
)
def test_it_never_predicts_that_more_work_takes_less_time(batches):
    model, now_ns = LatencyModel(), 0
    for units, taken_ns, passed_ns in batches:
        now_ns += passed_ns
        model.observe(units, taken_ns, now_ns)
    sizes = [1, 1.5, 2, 7, 64, 100, 1000, 5000, 100_000]
    predicted = [model.predict_ns(size) for size in sizes]

    assert predicted == sorted(predicted)
    assert all(time >= 0.0 for time in predicted)
    slacks = [0.0, 1.0, 1e3, 1e6, 1e9, 1e12, 1e15]
    largest = [model.largest_within(slack) for slack in slacks]
    assert largest == sorted(largest)
