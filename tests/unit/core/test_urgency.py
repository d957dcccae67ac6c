"""Due times: who is refused at the door, who is given up, how large a batch may be, who waits."""

from __future__ import annotations

import pytest

from headrace.core.actions import CompleteRequests, ExecuteBatch, RejectRequest
from headrace.core.events import (
    NEVER_NS,
    BatchCompleted,
    BatchLimits,
    InstanceAdded,
    LearntCost,
    ModelAdded,
    QueuedRequest,
    RequestsCancelled,
    TimerFired,
)

MS = 1_000_000
STEEP = LearntCost(((1.0, 6.0 * MS), (32.0, 37.0 * MS)))  # 5 + rows, in milliseconds
FLAT = LearntCost(((1.0, 8.2 * MS), (32.0, 14.4 * MS)))  # 8 + 0.2 x rows
TOKENS = LearntCost(((10.0, 1.0 * MS), (1000.0, 100.0 * MS)))  # 0.1 ms each


@pytest.fixture
def hurry(driver):
    """One instance, a model of 5 + rows milliseconds, and requests due after 20."""
    return hurried(driver)


def hurried(driver, cost=STEEP, instances=1, due=20, **limits):
    limits = {"max_rows": 32, "max_concurrency": instances} | limits
    driver.now_ns = 0
    driver.send(ModelAdded(1, BatchLimits(**limits), costs={0: cost}))
    for number in range(instances):
        driver.send(InstanceAdded(number))

    def request(due=due, **more):
        plain = driver.request(**more)
        return QueuedRequest(
            plain.request_id,
            plain.model,
            plain.rows,
            plain.length,
            plain.shape_key,
            driver.now_ns,
            NEVER_NS,
            plain.priority,
            plain.tenant,
            driver.now_ns + due * MS,
        )

    driver.hurried = request
    driver.at = lambda ms: setattr(driver, "now_ns", int(ms * MS))
    return driver


def executed(actions):
    return [action.request_ids for action in actions if isinstance(action, ExecuteBatch)]


def rejected(actions):
    return {a.request_id: a.reason for a in actions if isinstance(a, RejectRequest)}


# At the door


def test_a_lone_request_runs_at_once(hurry):
    assert executed(hurry.arrive(hurry.hurried())) == [(1,)]
    assert hurry.scheduler.next_wakeup_ns() is None


def test_who_would_be_late_is_refused_at_once_and_told_by_how_much(hurry):
    hurry.arrive(*[hurry.hurried(due=100) for _ in range(20)])  # 25 ms

    (refusal,) = hurry.arrive(hurry.hurried(due=27))

    assert refusal.reason == "deadline_unreachable"
    assert 25 * MS + 6 * MS <= refusal.predicted_ns <= 1.2 * 35 * MS
    assert refusal.retry_after_ns == max(1_000_000, refusal.predicted_ns - 27 * MS)


def test_who_would_be_in_time_behind_the_same_batch_is_not(hurry):
    hurry.arrive(*[hurry.hurried(due=100) for _ in range(20)])

    assert hurry.arrive(hurry.hurried(due=40)) == []


def test_nothing_is_refused_while_nothing_is_known(driver):
    hurried(driver, cost=LearntCost())
    driver.arrive(driver.hurried())

    assert driver.arrive(*[driver.hurried(due=1) for _ in range(9)]) == []


def test_a_queue_of_many_batches_is_priced_without_laying_each(hurry):
    hurry.arrive(hurry.hurried())
    hurry.arrive(*[hurry.hurried(due=100_000) for _ in range(3200)])  # a hundred batches

    refused = hurry.arrive(hurry.hurried(due=100_000))
    late = hurry.arrive(hurry.hurried(due=99_000), hurry.hurried(due=1000))

    assert refused == []
    assert late == []  # both are due earlier than the rest, and go before them


def test_the_work_of_other_models_is_in_the_way_too(hurry):
    hurry.send(ModelAdded(2, BatchLimits(max_rows=32), costs={0: STEEP}))
    hurry.arrive(hurry.hurried(due=1000))
    hurry.arrive(*[hurry.hurried(due=1000, model=2) for _ in range(320)])

    assert rejected(hurry.arrive(hurry.hurried(due=60))) == {322: "deadline_unreachable"}


def test_an_slo_that_nobody_could_meet_makes_the_request_an_ordinary_one(hurry):
    assert executed(hurry.arrive(hurry.hurried(due=2))) == [(1,)]
    assert hurry.arrive(hurry.hurried(due=2)) == []
    hurry.at(6)
    actions = hurry.send(BatchCompleted(1))

    assert actions[0] == CompleteRequests(1, (1,))
    assert executed(actions) == [(2,)]
    assert hurry.scheduler.statistics().models[1].hurried == 2


def test_or_refuses_it_where_the_slo_is_strict(driver):
    hurried(driver, strict_slo=True)

    (refusal,) = driver.arrive(driver.hurried(due=2))

    assert (refusal.reason, refusal.predicted_ns) == ("slo_unattainable", 6 * MS)


def test_who_would_be_first_of_a_batch_that_grows_too_large_is_refused_now(hurry):
    """Three arrive each millisecond, and the batch after this one starts in a while."""
    for third in range(18):
        hurry.at(third / 3)
        hurry.arrive(hurry.hurried(due=500))
    hurry.at(6)
    (batch,) = executed(hurry.send(BatchCompleted(1)))  # 17 of them run from now on, for 22 ms
    assert len(batch) == 17
    for third in range(18, 36):
        hurry.at(third / 3)
        hurry.arrive(hurry.hurried(due=500))
    hurry.send(RequestsCancelled(tuple(range(19, 100))))  # nobody waits any more
    refused = hurry.arrive(*[hurry.hurried(due=10) for _ in range(40)])
    assert len(refused) == 40  # so many that it is an overload

    early = hurry.hurried(due=26)  # alone it would be done in 16 + 6
    late = hurry.hurried(due=45)
    actions = hurry.arrive(early) + hurry.arrive(late)

    assert rejected(actions) == {early.request_id: "deadline_unreachable"}


# Given up


def test_no_member_is_made_late_by_those_who_join(hurry):
    hurry.arrive(hurry.hurried(due=40))
    hurry.arrive(*[hurry.hurried(due=40) for _ in range(30)])
    hurry.at(21)

    (batch,) = executed(hurry.send(BatchCompleted(1)))

    # 19 ms are left for the first, some of which is kept for what is not known.
    assert 8 <= len(batch) <= 14


def test_what_cannot_be_saved_is_given_up_and_does_not_hold_up_the_rest(hurry):
    hurry.arrive(hurry.hurried(due=100))
    hurry.arrive(hurry.hurried(due=12), hurry.hurried(due=13))
    hurry.at(10)
    hurry.arrive(hurry.hurried(due=30))
    actions = hurry.send(BatchCompleted(1))

    assert rejected(actions) == {2: "overdue", 3: "overdue"}
    assert executed(actions) == [(4,)]


def test_who_forces_a_small_batch_makes_way_for_a_large_one(hurry):
    hurry.arrive(hurry.hurried(due=100))
    hurry.arrive(hurry.hurried(due=20))
    hurry.at(4)
    hurry.arrive(*[hurry.hurried(due=40) for _ in range(12)])
    hurry.at(10)
    actions = hurry.send(BatchCompleted(1))

    assert rejected(actions) == {2: "shed"}
    assert [len(batch) for batch in executed(actions)] == [12]


def test_if_nobody_could_be_in_time_any_more_the_machine_is_asked_again(hurry):
    """It became slow: what was learnt says that nothing can be done. It is tried all the same."""
    for number in range(1, 30):
        hurry.arrive(hurry.hurried(due=1000))
        hurry.at(number * 1000)
        hurry.send(BatchCompleted(number))
    (smallest, *_) = hurry.scheduler.statistics().models[1].costs[0].points
    assert smallest[1] > 20 * MS

    assert executed(hurry.arrive(hurry.hurried())) == [(30,)]


def test_by_length_the_batch_is_cut_to_the_time_there_is(driver):
    hurried(driver, cost=TOKENS, max_padded_tokens=512, due=1000)
    driver.arrive(driver.hurried(length=10))
    driver.arrive(*[driver.hurried(length=10, due=30) for _ in range(40)])
    driver.at(1)

    (batch,) = executed(driver.send(BatchCompleted(1)))

    assert 20 <= len(batch) <= 29, "a tenth of a millisecond a token, and 29 are left"


# Waiting for company


def test_with_several_instances_and_load_a_batch_waits_as_long_as_all_stay_in_time(driver):
    hurried(driver, cost=FLAT, instances=4)
    started = 0
    for tenth in range(1, 400):  # a request each tenth of a millisecond
        driver.at(tenth / 10)
        started += len(executed(driver.arrive(driver.hurried(due=30))))
    driver.at(100)
    for batch in range(1, started + 1):
        driver.send(BatchCompleted(batch))
    driver.at(101)
    assert driver.scheduler.statistics().idle_instances >= 1 or started == 4
    wakeup_ns = driver.scheduler.next_wakeup_ns()
    if wakeup_ns is not None:
        driver.now_ns = wakeup_ns
        assert executed(driver.send(TimerFired()))


def test_nobody_waits_for_company_for_longer_than_half_a_second(driver):
    slow = LearntCost(((1.0, 9_000.0 * MS), (32.0, 30_000.0 * MS)))
    hurried(driver, cost=slow, instances=2, due=60_000)
    for at in range(3):
        driver.at(at)
        driver.arrive(driver.hurried())
    assert driver.scheduler.statistics().idle_instances == 1, "it waits"
    waits_until = driver.scheduler.next_wakeup_ns()

    assert waits_until == 501 * MS, "since the second came"
    driver.now_ns = waits_until
    assert executed(driver.send(TimerFired())) == [(2, 3)]


def test_without_load_nobody_waits(driver):
    hurried(driver, cost=FLAT, instances=4)

    for number in range(4):
        driver.at(number * 0.1)
        assert executed(driver.arrive(driver.hurried())) == [(number + 1,)]


# Several models


def test_the_model_whose_next_batch_must_start_soonest_goes_first(hurry):
    hurry.send(ModelAdded(2, BatchLimits(max_rows=32), costs={0: STEEP}))
    hurry.arrive(hurry.hurried(due=1000))
    hurry.arrive(hurry.hurried(due=900))
    hurry.arrive(hurry.hurried(due=500, model=2))

    (batch,) = [a for a in hurry.send(BatchCompleted(1)) if isinstance(a, ExecuteBatch)]

    assert batch.model == 2


def test_a_model_below_its_share_goes_before_one_that_is_more_urgent(driver):
    hurried(driver, max_rows=1, due=20_000)
    driver.send(ModelAdded(2, BatchLimits(max_rows=1, min_share=0.4), costs={0: STEEP}))
    driver.arrive(*[driver.hurried() for _ in range(1000)])
    driver.arrive(*[driver.hurried(due=50_000, model=2) for _ in range(1000)])
    models = []
    for number in range(1, 700):
        driver.at(number * 6)
        models += [a.model for a in driver.send(BatchCompleted(number)) if hasattr(a, "model")]

    assert 0.35 <= models[300:].count(2) / len(models[300:]) <= 0.45


@pytest.mark.parametrize(
    ("limits", "sizes", "bound"),
    [
        ({"max_queue_rows": 5}, {"rows": 3}, "max_queue_rows"),
        ({"max_queue_bytes": 5}, {"size_bytes": 3}, "max_queue_bytes"),
        ({"max_queue_tokens": 50, "max_padded_tokens": 64}, {"length": 30}, "max_queue_tokens"),
        ({"max_queue_size": 1}, {}, "max_queue_size"),
    ],
)
def test_every_bound_of_the_queue_has_its_name(driver, limits, sizes, bound):
    driver.model(**limits)
    driver.instances(0)
    driver.arrive(driver.request())

    def request():
        plain = driver.request(**{k: v for k, v in sizes.items() if k != "size_bytes"})
        size = sizes.get("size_bytes", 0)
        return QueuedRequest(
            plain.request_id,
            1,
            plain.rows,
            plain.length,
            0,
            driver.now_ns,
            NEVER_NS,
            size_bytes=size,
        )

    assert driver.arrive(request()) == []
    (refusal,) = driver.arrive(request())
    assert (refusal.reason, refusal.limit) == ("queue_full", bound)


def test_what_alone_is_larger_than_a_bound_is_let_in_by_itself(driver):
    driver.model(max_queue_rows=5)
    driver.instances(0)

    assert executed(driver.arrive(driver.request(rows=9))) == [(1,)]
    assert driver.arrive(driver.request(rows=9)) == []
    assert rejected(driver.arrive(driver.request())) == {3: "queue_full"}
