"""Decisions, as lists of actions."""

from __future__ import annotations

import pytest

from headrace.core.actions import (
    CancelRequests,
    CompleteRequests,
    ExecuteBatch,
    ExpireRequests,
    FailRequests,
    RejectRequest,
)
from headrace.core.events import (
    BatchAbandoned,
    BatchCompleted,
    BatchFailed,
    BatchLimits,
    InstanceAdded,
    InstanceRemoved,
    LimitsChanged,
    ModelRemoved,
    RequestsCancelled,
    TimerFired,
)


def test_a_lone_request_starts_at_once(driver):
    driver.model(max_rows=32)
    driver.instances(0)

    assert [ExecuteBatch(1, 0, 1, (1,), 1)] == driver.arrive(driver.request())
    assert [CompleteRequests(1, (1,))] == driver.send(BatchCompleted(1))


def test_what_arrives_together_runs_together(driver):
    driver.model(max_rows=32)
    driver.instances(0)

    actions = driver.arrive(*(driver.request() for _ in range(3)))

    assert [ExecuteBatch(1, 0, 1, (1, 2, 3), 3)] == actions


def test_the_answer_to_a_finished_batch_is_already_the_next(driver):
    driver.model(max_rows=2)
    driver.instances(0)
    driver.arrive(*(driver.request() for _ in range(5)))

    actions = driver.send(BatchCompleted(1))

    assert [CompleteRequests(1, (1, 2)), ExecuteBatch(2, 0, 1, (3, 4), 2)] == actions


def test_no_instance_stays_idle_while_something_waits(driver):
    driver.model(max_rows=1, max_concurrency=2)
    driver.instances(0, 1)

    actions = driver.arrive(*(driver.request() for _ in range(3)))

    assert [ExecuteBatch(1, 0, 1, (1,), 1), ExecuteBatch(2, 1, 1, (2,), 1)] == actions


def test_a_model_never_runs_more_batches_than_its_concurrency(driver):
    driver.model(max_rows=1, max_concurrency=1)
    driver.instances(0, 1)

    assert [ExecuteBatch(1, 0, 1, (1,), 1)] == driver.arrive(driver.request(), driver.request())
    assert [CompleteRequests(1, (1,)), ExecuteBatch(2, 0, 1, (2,), 1)] == driver.send(
        BatchCompleted(1)
    )


def test_the_oldest_request_chooses_the_model(driver):
    driver.model(1, max_rows=8)
    driver.model(2, max_rows=8)
    driver.instances(0)
    driver.arrive(driver.request(model=1))
    driver.now_ns += 1
    driver.arrive(driver.request(model=2))
    driver.now_ns += 1
    driver.arrive(driver.request(model=1))

    assert ExecuteBatch(2, 0, 2, (2,), 1) in driver.send(BatchCompleted(1))
    assert ExecuteBatch(3, 0, 1, (3,), 1) in driver.send(BatchCompleted(2))


def test_an_instance_can_be_reserved_for_a_model(driver):
    driver.model(1, max_rows=8)
    driver.model(2, max_rows=8)
    driver.send(InstanceAdded(0, models=(2,)))

    assert driver.arrive(driver.request(model=1)) == []
    assert [ExecuteBatch(1, 0, 2, (2,), 1)] == driver.arrive(driver.request(model=2))


def test_different_shapes_never_meet(driver):
    driver.model(max_rows=8)
    driver.instances(0)
    first, other, again = (driver.request(shape=shape) for shape in (7, 8, 7))

    assert [ExecuteBatch(1, 0, 1, (1, 3), 2)] == driver.arrive(first, other, again)
    assert ExecuteBatch(2, 0, 1, (2,), 1) in driver.send(BatchCompleted(1))


def test_rows_are_what_is_bounded(driver):
    driver.model(max_rows=8)
    driver.instances(0)
    requests = [driver.request(rows=rows) for rows in (5, 4, 3)]

    assert [ExecuteBatch(1, 0, 1, (1, 3), 8)] == driver.arrive(*requests)


def test_a_request_larger_than_the_limit_runs_alone(driver):
    driver.model(max_rows=8)
    driver.instances(0)

    actions = driver.arrive(driver.request(rows=100), driver.request())

    assert [ExecuteBatch(1, 0, 1, (1,), 100)] == actions


def test_a_full_queue_rejects_and_says_when_to_come_back(driver):
    driver.model(max_rows=1, max_queue_size=2)
    driver.instances(0)
    driver.arrive(driver.request())
    driver.now_ns += 8_000
    driver.send(BatchCompleted(1))
    driver.arrive(driver.request())

    actions = driver.arrive(*(driver.request() for _ in range(3)))

    # One request took 8,000 ns, so an eighth of the way there; two of them wait.
    assert [RejectRequest(5, "queue_full", 2 * 1_000, limit="max_queue_size")] == actions


def test_a_request_for_an_unknown_model_is_rejected(driver):
    assert [RejectRequest(1, "unknown_model")] == driver.arrive(driver.request(model=9))


def test_a_queued_request_expires_at_its_deadline(driver):
    driver.model(max_rows=1)
    driver.instances(0)
    driver.arrive(driver.request())
    driver.arrive(driver.request(deadline_ns=driver.now_ns + 50))
    assert driver.now_ns + 50 == driver.scheduler.next_wakeup_ns()

    driver.now_ns += 50

    assert [ExpireRequests((2,), running=False)] == driver.send(TimerFired())
    assert driver.scheduler.next_wakeup_ns() is None
    assert [CompleteRequests(1, (1,))] == driver.send(BatchCompleted(1))


def test_a_running_request_expires_and_its_result_is_dropped(driver):
    driver.model(max_rows=2)
    driver.instances(0)
    driver.arrive(driver.request(deadline_ns=driver.now_ns + 50), driver.request())

    driver.now_ns += 50

    assert [ExpireRequests((1,), running=True)] == driver.send(TimerFired())
    assert [CompleteRequests(1, (2,))] == driver.send(BatchCompleted(1))


def test_a_timer_that_fires_early_changes_nothing(driver):
    driver.model()
    driver.arrive(driver.request(deadline_ns=driver.now_ns + 50))

    assert driver.send(TimerFired()) == []
    assert driver.now_ns + 50 == driver.scheduler.next_wakeup_ns()


def test_cancelling_removes_what_waits_and_forgets_what_runs(driver):
    driver.model(max_rows=1)
    driver.instances(0)
    driver.arrive(*(driver.request() for _ in range(3)))

    assert [CancelRequests((1, 2))] == driver.send(RequestsCancelled((1, 2, 99)))
    assert [ExecuteBatch(2, 0, 1, (3,), 1)] == driver.send(BatchCompleted(1))
    assert driver.send(RequestsCancelled((1,))) == []


def test_a_failed_batch_is_run_again_one_by_one(driver):
    driver.model(max_rows=8)
    driver.instances(0)
    driver.arrive(*(driver.request() for _ in range(3)))

    assert [ExecuteBatch(2, 0, 1, (1,), 1)] == driver.send(BatchFailed(1))
    assert [CompleteRequests(2, (1,)), ExecuteBatch(3, 0, 1, (2,), 1)] == driver.send(
        BatchCompleted(2)
    )
    # The second is the culprit: it fails alone, and the third goes on.
    assert [FailRequests(3, (2,)), ExecuteBatch(4, 0, 1, (3,), 1)] == driver.send(BatchFailed(3))
    assert [CompleteRequests(4, (3,))] == driver.send(BatchCompleted(4))


def test_a_batch_that_no_retry_can_help_fails_as_a_whole(driver):
    driver.model(max_rows=8)
    driver.instances(0)
    driver.arrive(driver.request(), driver.request())

    assert [FailRequests(1, (1, 2))] == driver.send(BatchFailed(1, retry_alone=False))


def test_who_must_run_alone_can_still_be_cancelled(driver):
    driver.model(max_rows=8)
    driver.instances(0)
    driver.arrive(*(driver.request() for _ in range(3)))
    driver.send(BatchFailed(1))

    assert [CancelRequests((2, 3))] == driver.send(RequestsCancelled((2, 3)))
    assert [CompleteRequests(2, (1,))] == driver.send(BatchCompleted(2))


def test_removing_a_model_rejects_what_waits_and_lets_the_rest_finish(driver):
    driver.model(max_rows=1)
    driver.instances(0)
    driver.arrive(driver.request(), driver.request())

    assert [RejectRequest(2, "model_removed")] == driver.send(ModelRemoved(1))
    assert [RejectRequest(3, "unknown_model")] == driver.arrive(driver.request())
    assert [CompleteRequests(1, (1,))] == driver.send(BatchCompleted(1))
    assert driver.scheduler.statistics().models == {}


def test_a_removed_instance_gets_no_further_work(driver):
    driver.model(max_rows=1)
    driver.instances(0)
    driver.arrive(driver.request(), driver.request())
    driver.send(InstanceRemoved(0))

    assert [CompleteRequests(1, (1,))] == driver.send(BatchCompleted(1))
    assert [ExecuteBatch(2, 5, 1, (2,), 1)] == driver.send(InstanceAdded(5))


def test_new_limits_hold_from_the_next_batch_on(driver):
    driver.model(max_rows=1)
    driver.instances(0)
    driver.arrive(*(driver.request() for _ in range(4)))
    driver.send(LimitsChanged(1, BatchLimits(max_rows=3)))

    assert ExecuteBatch(2, 0, 1, (2, 3, 4), 3) in driver.send(BatchCompleted(1))


@pytest.mark.parametrize("event", [BatchCompleted(7), BatchFailed(7), ModelRemoved(7)])
def test_events_about_nothing_are_a_defect_of_the_caller(driver, event):
    with pytest.raises(KeyError):
        driver.scheduler.handle(event, now_ns=0)


def test_statistics_are_a_snapshot(driver):
    driver.model(max_rows=2, max_queue_size=3)
    driver.instances(0)
    driver.arrive(*(driver.request() for _ in range(5)))
    before = driver.scheduler.statistics()
    driver.send(BatchCompleted(1))
    after = driver.scheduler.statistics()

    assert (before.models[1].waiting, before.models[1].running) == (1, 2)
    assert (before.models[1].rejected, before.models[1].completed) == (2, 0)
    assert (after.models[1].waiting, after.models[1].completed) == (0, 2)
    assert before.models[1].oldest_arrival_ns == 1_000


def test_a_batch_that_is_abandoned_fails_at_once_and_keeps_its_instance(driver):
    driver.model(max_rows=2)
    driver.instances(0)
    driver.arrive(driver.request(), driver.request(), driver.request())

    assert [FailRequests(1, (1, 2))] == driver.send(BatchAbandoned(1))
    assert driver.scheduler.statistics().models[1].failed == 2
    assert [ExecuteBatch(2, 0, 1, (3,), 1)] == driver.send(BatchCompleted(1))
