"""Tenants: served by their shares, work-conserving, nobody starved, no credit for idleness."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.actions import ExecuteBatch, RejectRequest
from headrace.core.events import (
    NEVER_NS,
    BatchCompleted,
    BatchLimits,
    InstanceAdded,
    LearntCost,
    ModelAdded,
    QueuedRequest,
    RequestsArrived,
    TenantsChanged,
    TenantTerms,
)
from headrace.core.fairness import Fairness, FairQueue
from headrace.core.scheduler import Scheduler

COST = {0: LearntCost(((1.0, 1000.0), (64.0, 64_000.0)))}


class Pool:
    """One instance, one model of batches of ``max_rows``; who is served is written down."""

    def __init__(self, terms, **limits) -> None:
        self.scheduler = Scheduler()
        self.now_ns = 0
        self.next_id = 1
        self.tenant_of: dict[int, int] = {}
        self.served: list[int] = []
        self.rejected: list[RejectRequest] = []
        self.running: ExecuteBatch | None = None
        self.send(ModelAdded(1, BatchLimits(**{"max_rows": 1} | limits), costs=COST))
        self.send(TenantsChanged(terms))
        self.send(InstanceAdded(0))

    def send(self, event) -> None:
        for action in self.scheduler.handle(event, now_ns=self.now_ns):
            if isinstance(action, ExecuteBatch):
                self.running = action
                self.served += [self.tenant_of[i] for i in action.request_ids]
            elif isinstance(action, RejectRequest):
                self.rejected.append(action)
        self.scheduler.check_invariants()

    def arrive(self, *tenants, priority: int = 0, rows: int = 1) -> None:
        requests = []
        for tenant in tenants:
            self.tenant_of[self.next_id] = tenant
            requests.append(
                QueuedRequest(self.next_id, 1, rows, 0, 0, self.now_ns, NEVER_NS, priority, tenant)
            )
            self.next_id += 1
        self.send(RequestsArrived(requests))

    def work(self, batches: int) -> None:
        for _ in range(batches):
            batch, self.running = self.running, None
            assert batch is not None
            self.now_ns += 1000 * batch.rows
            self.send(BatchCompleted(batch.batch_id))


def test_time_is_divided_by_shares():
    pool = Pool({1: TenantTerms(3.0), 2: TenantTerms(1.0)})
    pool.arrive(*[1] * 100, *[2] * 100)

    pool.work(80)

    assert Counter(pool.served[:80]) == {1: 60, 2: 20}
    assert Counter(pool.served[:12]) == {1: 9, 2: 3}, "and not in long runs of either"


def test_what_counts_is_time_and_not_requests():
    pool = Pool({1: TenantTerms(), 2: TenantTerms()}, max_rows=8)
    pool.arrive(*[1] * 40, rows=8)
    pool.arrive(*[2] * 320, rows=1)

    pool.work(40)

    rows = Counter()
    for tenant in pool.served:
        rows[tenant] += 8 if tenant == 1 else 1
    assert rows[1] == pytest.approx(rows[2], abs=16)


def test_nobody_waits_while_an_instance_is_free():
    pool = Pool({1: TenantTerms(1000.0), 2: TenantTerms(0.001)})
    pool.arrive(2, 2, 2)

    pool.work(3)

    assert pool.served == [2, 2, 2]


def test_who_was_idle_has_no_credit():
    pool = Pool({1: TenantTerms(), 2: TenantTerms()})
    pool.arrive(*[1] * 150)
    pool.work(100)
    pool.arrive(*[2] * 40)
    before = len(pool.served)

    pool.work(40)

    assert abs(Counter(pool.served[before:])[1] - 20) <= 1


def test_a_batch_is_shared_as_turns_come():
    pool = Pool({}, max_rows=4)
    pool.arrive(9)
    pool.arrive(*[1] * 10, 2, 2)

    pool.work(1)

    assert Counter(pool.served[1:5]) == {1: 2, 2: 2}


def test_a_tenant_is_held_below_a_level_whatever_it_asks_for():
    pool = Pool({2: TenantTerms(1.0, priority_max=2)}, priority_levels=3)
    pool.arrive(1)
    pool.arrive(2, 2, priority=1)
    pool.arrive(1, priority=2)
    pool.arrive(1, priority=1)

    pool.work(5)

    assert pool.served[:2] == [1, 1]
    assert sorted(pool.served[2:]) == [1, 2, 2]


def test_a_greedy_tenant_cannot_fill_the_queue_for_others():
    pool = Pool({}, max_queue_size=10)
    pool.arrive(1)
    pool.arrive(*[1] * 30)
    assert {action.reason for action in pool.rejected} == {"queue_full"}
    pool.rejected.clear()

    pool.arrive(2, 3)

    assert [(pool.tenant_of[a.request_id], a.reason) for a in pool.rejected] == [(1, "shed")] * 2
    assert {a.limit for a in pool.rejected} == {"max_queue_size"}


def test_under_a_full_queue_the_newest_of_the_lowest_level_goes_first():
    pool = Pool({}, max_queue_size=3, priority_levels=3)
    pool.arrive(0)
    pool.arrive(0, 0, priority=3)  # 2, 3
    pool.arrive(0, priority=2)  # 4
    pool.arrive(0, priority=1)  # 5 takes the place of 3
    pool.arrive(0, priority=3)  # 6 finds nobody who counts for less

    assert [(a.request_id, a.reason) for a in pool.rejected] == [(3, "shed"), (6, "queue_full")]


def test_ten_thousand_tenants():
    pool = Pool({}, max_queue_size=100_000)
    pool.arrive(*range(1, 10_001))

    pool.work(50)

    assert len(set(pool.served)) == len(pool.served), "each once before anybody twice"


def test_a_share_must_be_above_zero():
    with pytest.raises(ValueError, match="above 0"):
        Fairness().change(TenantsChanged({1: TenantTerms(0.0)}))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 4), st.integers(1, 3)),
            st.tuples(st.just("take"), st.integers(1, 5), st.just(0)),
            st.tuples(st.just("charge"), st.integers(1, 4), st.integers(1, 1000)),
        ),
        max_size=60,
    )
)
def test_a_fair_queue_holds_what_was_put_in_and_shows_each_once(steps):
    fairness = Fairness()
    fairness.change(TenantsChanged({1: TenantTerms(2.0), 2: TenantTerms(0.5)}))
    queue, there, number = FairQueue(fairness), {}, 0
    for step, first, second in steps:
        if step == "add":
            number += 1
            request = QueuedRequest(number, 1, second, 0, 0, number, NEVER_NS, 0, first)
            there[number] = request
            queue.append(request)
        elif step == "charge":
            fairness.served(first, float(second))
        elif there:
            for request in queue.take_front(first):
                assert there.pop(request.request_id) is request
        assert len(queue) == len(there)
        assert sorted(r.request_id for r in queue) == sorted(there)
        window = queue.window(3)
        assert len({r.request_id for r in window}) == min(3, len(there))
        if there:
            assert queue.head() is window[0]
            behind = min({r.tenant for r in there.values()}, key=fairness.time_of)
            assert fairness.time_of(window[0].tenant) == fairness.time_of(behind)
