from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.testing import ManualClock


@given(st.lists(st.integers(0, 10**12)))
def test_time_is_the_sum_of_the_steps(steps):
    clock = ManualClock(start_ns=5)
    for step in steps:
        assert clock.advance_ns(step) == clock.now_ns()
    assert clock.now_ns() == 5 + sum(steps)


def test_it_never_goes_back():
    clock = ManualClock()
    before = clock.now_ns()
    with pytest.raises(ValueError, match="back"):
        clock.advance_ns(-1)
    assert clock.now_ns() == before
    assert before > 0, "0 means never"
