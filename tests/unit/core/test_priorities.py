"""Strict between levels, first come first served inside, and nobody pays who has none."""

from __future__ import annotations

import pytest

from headrace.core.actions import CompleteRequests, ExecuteBatch
from headrace.core.events import (
    BatchCompleted,
    BatchFailed,
    BatchLimits,
    LimitsChanged,
    RequestsCancelled,
    TimerFired,
)


def executed(actions) -> list[tuple[int, ...]]:
    return [a.request_ids for a in actions if isinstance(a, ExecuteBatch)]


def run_all(driver, batch_id: int = 1) -> list[tuple[int, ...]]:
    """Completes one batch after another until nothing is left; their members in order."""
    order = []
    while started := executed(driver.send(BatchCompleted(batch_id))):
        order += started
        batch_id += 1
    return order


@pytest.fixture
def busy(driver):
    """One instance, kept busy by request 1 of a model of three levels, batches of one row."""
    driver.model(max_rows=1, priority_levels=3)
    driver.instances(0)
    assert executed(driver.arrive(driver.request())) == [(1,)]
    return driver


def test_better_levels_go_first_and_each_is_first_come_first_served(busy):
    busy.arrive(*(busy.request(priority=priority) for priority in (3, 2, 1, 2, 1, 3)))

    assert run_all(busy) == [(4,), (6,), (3,), (5,), (2,), (7,)]


@pytest.mark.parametrize(("default", "expected"), [(0, 3), (2, 2), (9, 3)])
@pytest.mark.parametrize("said", [0, 4, 1000])
def test_no_priority_and_one_beyond_the_levels_mean_the_default(driver, default, expected, said):
    driver.model(max_rows=1, priority_levels=3, default_priority=default)
    driver.instances(0)
    driver.arrive(driver.request())
    driver.arrive(*(driver.request(priority=priority) for priority in (said, 1, 2, 3)))

    levels = {2: 1, 3: 1, 4: 2, 5: 3}  # requests 3, 4 and 5 are of levels 1, 2 and 3
    levels[2] = expected
    assert run_all(driver) == [(i,) for i in sorted(levels | {3: 1}, key=lambda i: (levels[i], i))]


def test_without_levels_priorities_change_nothing(driver):
    driver.model(max_rows=1)
    driver.instances(0)
    driver.arrive(driver.request())
    driver.arrive(*(driver.request(priority=priority) for priority in (3, 1, 2)))

    assert run_all(driver) == [(2,), (3,), (4,)]


def test_a_batch_is_led_by_the_best_level_and_filled_from_those_below(driver):
    driver.model(max_rows=4, priority_levels=2)
    driver.instances(0)
    driver.arrive(driver.request())
    driver.arrive(*(driver.request(priority=priority) for priority in (2, 2, 2, 1, 1)))

    assert run_all(driver) == [(5, 6, 2, 3), (4,)]


def test_who_does_not_fit_is_not_overtaken_by_a_lower_level_of_another_shape(driver):
    driver.model(max_rows=4, priority_levels=3)
    driver.instances(0)
    driver.arrive(driver.request())
    driver.arrive(
        driver.request(priority=2, shape=7),
        driver.request(priority=3),
        driver.request(priority=1),
    )

    assert run_all(driver) == [(4, 3), (2,)]


def test_by_length_the_best_level_leads_too(driver):
    driver.model(max_rows=8, max_padded_tokens=64, priority_levels=2)
    driver.instances(0)
    driver.arrive(driver.request(length=8))
    driver.arrive(
        driver.request(length=8, priority=2),
        driver.request(length=60, priority=1),
        driver.request(length=8, priority=2),
    )

    assert run_all(driver) == [(3,), (2, 4)]


def test_the_cancelled_and_the_expired_leave_their_level(busy):
    late = busy.request(priority=1, deadline_ns=busy.now_ns + 5)
    busy.arrive(busy.request(priority=3), late, busy.request(priority=1), busy.request(priority=2))
    busy.send(RequestsCancelled((4,)))
    busy.now_ns += 10
    busy.send(TimerFired())

    assert run_all(busy) == [(5,), (3,)]


def test_a_survivor_of_a_failed_batch_has_waited_longest(driver):
    driver.model(max_rows=4, priority_levels=2)
    driver.instances(0)
    driver.arrive(driver.request(priority=2), driver.request(priority=2))
    driver.arrive(driver.request(priority=1))
    started = executed(driver.send(BatchFailed(1)))

    assert started == [(1,)]
    assert run_all(driver, 2) == [(2,), (3,)]


def test_levels_that_come_and_go_keep_who_waits(driver):
    driver.model(max_rows=1)
    driver.instances(0)
    driver.arrive(driver.request())
    driver.arrive(*(driver.request(priority=priority) for priority in (2, 1, 2, 1)))
    driver.send(LimitsChanged(1, BatchLimits(max_rows=1, priority_levels=2)))

    assert executed(driver.send(BatchCompleted(1))) == [(3,)]

    driver.send(LimitsChanged(1, BatchLimits(max_rows=1)))
    assert run_all(driver, 2) == [(2,), (4,), (5,)]


def test_the_oldest_of_all_levels_is_what_statistics_tell(busy):
    first_ns = busy.now_ns
    busy.arrive(busy.request(priority=3))
    busy.now_ns += 100
    busy.arrive(busy.request(priority=1))

    assert busy.scheduler.statistics().models[1].oldest_arrival_ns == first_ns


def test_every_member_of_a_levelled_batch_is_answered(driver):
    driver.model(max_rows=8, priority_levels=4)
    driver.instances(0)
    started = driver.arrive(*(driver.request(priority=i % 5) for i in range(8)))
    assert executed(started) == [(2, 7, 3, 8, 4, 1, 5, 6)]

    done = driver.send(BatchCompleted(1))
    assert isinstance(done[0], CompleteRequests)
    assert sorted(done[0].request_ids) == list(range(1, 9))
