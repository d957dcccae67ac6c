"""Decisions about sequences, each as the list of actions it must be."""

from __future__ import annotations

import itertools

import pytest

from headrace.core.events import NEVER_NS
from headrace.core.sequence_events import (
    EndSequence,
    ExpireWaiting,
    InstanceLost,
    RefuseRequest,
    RequestOver,
    RunRequest,
    SequenceAction,
    SequenceArrived,
    SequenceEvent,
    SequenceLimits,
    SequenceRequest,
    SequencesClosed,
    SequenceTimer,
)
from headrace.core.sequences import Sequences


class Driver:
    """Feeds the machine and checks it; ``now_ns`` moves only when a test moves it."""

    def __init__(self, *, instances: int = 1, **limits: int) -> None:
        self.machine = Sequences(SequenceLimits(**limits), instances)
        self.now_ns = 1_000
        self._ids = itertools.count(1)

    def send(self, event: SequenceEvent) -> list[SequenceAction]:
        actions = self.machine.handle(event, now_ns=self.now_ns)
        self.machine.check_invariants()
        return actions

    def request(
        self,
        sequence: int | str,
        flags: str = "",
        deadline_ns: int = NEVER_NS,
        caller: str = "",
    ) -> SequenceRequest:
        """``flags``: "s" starts the sequence, "e" ends it."""
        start, end = "s" in flags, "e" in flags
        return SequenceRequest(next(self._ids), sequence, start, end, deadline_ns, caller)

    def arrive(self, request: SequenceRequest) -> list[SequenceAction]:
        return self.send(SequenceArrived(request))

    def over(self, request: SequenceRequest) -> list[SequenceAction]:
        return self.send(RequestOver(request.request_id))


def test_a_sequence_keeps_its_slot_and_its_requests_run_one_at_a_time():
    driver = Driver(instances=2, slots=2)
    first, second, last = (driver.request("a", f) for f in ("s", "", "e"))

    assert driver.arrive(first) == [RunRequest(first, 0, 0)]
    assert driver.arrive(second) == []
    assert driver.arrive(last) == []
    assert driver.over(first) == [RunRequest(second, 0, 0)]
    assert driver.over(second) == [RunRequest(last, 0, 0)]
    assert driver.over(last) == [EndSequence("a", 0, 0, "end")]
    assert driver.machine.live == 0


def test_new_sequences_are_spread_over_instances_and_take_the_lowest_slot():
    driver = Driver(instances=2, slots=2)
    places = []
    for name in "abcd":
        (run,) = driver.arrive(driver.request(name, "s"))
        places.append((run.instance, run.slot))
    assert places == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_the_lowest_of_the_slots_that_were_freed_is_taken_first():
    driver = Driver(slots=4)
    requests = {name: driver.request(name, "se") for name in "abcd"}
    for request in requests.values():
        driver.arrive(request)
    for name in "cbda":
        driver.over(requests[name])
    slots = [driver.arrive(driver.request(name, "s"))[0].slot for name in "efgh"]
    assert slots == [0, 1, 2, 3]


def test_who_finds_no_slot_waits_and_moves_up_in_order():
    driver = Driver(slots=1)
    a = driver.request("a", "se")
    b, b2 = driver.request("b", "s"), driver.request("b", "e")
    c = driver.request("c", "se")
    driver.arrive(a)
    assert [driver.arrive(r) for r in (b, c, b2)] == [[], [], []]

    assert driver.over(a) == [EndSequence("a", 0, 0, "end"), RunRequest(b, 0, 0)]
    assert driver.over(b) == [RunRequest(b2, 0, 0)]
    assert driver.over(b2) == [EndSequence("b", 0, 0, "end"), RunRequest(c, 0, 0)]


@pytest.mark.parametrize("flags", ["", "e"])
def test_a_sequence_must_be_started(flags):
    driver = Driver()
    request = driver.request("a", flags)
    assert driver.arrive(request) == [RefuseRequest(request.request_id, "not_started")]


def test_after_its_end_was_sent_a_sequence_must_be_started_again():
    driver = Driver()
    first, last, late, anew = (driver.request("a", f) for f in ("s", "e", "", "s"))
    driver.arrive(first)
    driver.arrive(last)

    assert driver.arrive(late) == [RefuseRequest(late.request_id, "not_started")]
    assert driver.arrive(anew) == []
    assert driver.over(first) == [RunRequest(last, 0, 0)]
    assert driver.over(last) == [EndSequence("a", 0, 0, "end"), RunRequest(anew, 0, 0)]


def test_who_starts_over_after_an_end_goes_behind_those_who_wait():
    driver = Driver(slots=1)
    once, b, anew = driver.request("a", "se"), driver.request("b", "se"), driver.request("a", "s")
    for request in (once, b, anew):
        driver.arrive(request)
    assert driver.over(once) == [EndSequence("a", 0, 0, "end"), RunRequest(b, 0, 0)]
    assert driver.over(b) == [EndSequence("b", 0, 0, "end"), RunRequest(anew, 0, 0)]


def test_a_start_for_a_live_sequence_begins_it_anew_in_its_place():
    driver = Driver(instances=2, slots=1)
    driver.arrive(driver.request("other", "s"))
    first, anew, last = (driver.request("a", f) for f in ("s", "s", "e"))
    driver.arrive(first)
    driver.arrive(anew)
    driver.arrive(last)
    assert driver.over(first) == [RunRequest(anew, 1, 0)]
    assert driver.over(anew) == [RunRequest(last, 1, 0)]


def test_numbers_and_texts_name_different_sequences():
    driver = Driver(slots=2)
    driver.arrive(driver.request(1, "s"))
    request = driver.request("1")
    assert driver.arrive(request) == [RefuseRequest(request.request_id, "not_started")]


def test_an_idle_sequence_ends_and_makes_room():
    driver = Driver(slots=1, idle_timeout_ns=100)
    first = driver.request("a", "s")
    waits = driver.request("b", "s")
    driver.arrive(first)
    assert driver.machine.next_wakeup_ns() is None  # it is not idle while it runs
    driver.now_ns = 2_000
    driver.over(first)
    assert driver.machine.next_wakeup_ns() == 2_100
    driver.arrive(waits)

    driver.now_ns = 2_099
    assert driver.send(SequenceTimer()) == []
    driver.now_ns = 2_100
    assert driver.send(SequenceTimer()) == [
        EndSequence("a", 0, 0, "idle"),
        RunRequest(waits, 0, 0),
    ]
    late = driver.request("a")
    assert driver.arrive(late) == [RefuseRequest(late.request_id, "not_started")]


def test_a_request_ends_idleness():
    driver = Driver(idle_timeout_ns=100)
    first, second = driver.request("a", "s"), driver.request("a")
    driver.arrive(first)
    driver.over(first)
    driver.now_ns += 99
    driver.arrive(second)
    driver.now_ns += 99
    assert driver.send(SequenceTimer()) == []
    driver.over(second)
    assert driver.machine.next_wakeup_ns() == driver.now_ns + 100


def test_only_so_many_may_wait():
    driver = Driver(slots=1, max_queue_size=2)
    a = driver.request("a", "s")
    driver.arrive(a)
    driver.arrive(driver.request("b", "s"))
    driver.arrive(driver.request("a"))
    full = driver.request("a")
    assert driver.arrive(full) == [RefuseRequest(full.request_id, "queue_full")]
    new = driver.request("c", "s")
    assert driver.arrive(new) == [RefuseRequest(new.request_id, "queue_full")]
    driver.over(a)
    assert driver.arrive(driver.request("a")) == []


def test_a_full_queue_does_not_stop_who_need_not_wait():
    driver = Driver(slots=2, max_queue_size=1)
    driver.arrive(driver.request("a", "s"))
    driver.arrive(driver.request("a"))
    b = driver.request("b", "s")
    assert driver.arrive(b) == [RunRequest(b, 0, 1)]


def test_one_that_waits_may_be_withdrawn():
    driver = Driver()
    first, second, third = (driver.request("a", f) for f in ("s", "", ""))
    for request in (first, second, third):
        driver.arrive(request)
    assert driver.over(second) == []
    assert driver.over(first) == [RunRequest(third, 0, 0)]


def test_nothing_runs_without_the_first_request():
    driver = Driver(slots=1)
    a = driver.request("a", "se")
    start, follows = driver.request("b", "s"), driver.request("b")
    for request in (a, start, follows):
        driver.arrive(request)

    assert driver.over(start) == [RefuseRequest(follows.request_id, "not_started")]
    late = driver.request("b")
    assert driver.arrive(late) == [RefuseRequest(late.request_id, "not_started")]


def test_a_withdrawn_restart_never_leads_to_the_old_state():
    driver = Driver()
    first, anew, follows = (driver.request("a", f) for f in ("s", "s", ""))
    for request in (first, anew, follows):
        driver.arrive(request)

    assert driver.over(anew) == [RefuseRequest(follows.request_id, "not_started")]
    late = driver.request("a")
    assert driver.arrive(late) == [RefuseRequest(late.request_id, "not_started")]
    assert driver.over(first) == [EndSequence("a", 0, 0, "withdrawn")]


def test_a_start_that_the_model_never_saw_leads_to_nothing():
    driver = Driver()
    first, second = driver.request("a", "s"), driver.request("a")
    driver.arrive(first)
    driver.arrive(second)
    assert driver.send(RequestOver(first.request_id, ran=False)) == [
        RefuseRequest(second.request_id, "not_started"),
        EndSequence("a", 0, 0, "withdrawn"),
    ]


def test_after_a_start_that_the_model_never_saw_the_next_one_counts():
    driver = Driver()
    first, second, anew = (driver.request("a", f) for f in ("s", "", "s"))
    for request in (first, second, anew):
        driver.arrive(request)
    assert driver.send(RequestOver(first.request_id, ran=False)) == [
        RefuseRequest(second.request_id, "not_started"),
        RunRequest(anew, 0, 0),
    ]


def test_a_withdrawn_end_still_ends():
    driver = Driver()
    first, last = driver.request("a", "s"), driver.request("a", "e")
    driver.arrive(first)
    driver.arrive(last)
    assert driver.over(last) == []
    assert driver.over(first) == [EndSequence("a", 0, 0, "withdrawn")]


def test_requests_expire_while_they_wait_and_never_while_they_run():
    driver = Driver()
    first = driver.request("a", "s", deadline_ns=1_500)
    second = driver.request("a", deadline_ns=2_000)
    third = driver.request("a", deadline_ns=3_000)
    for request in (first, second, third):
        driver.arrive(request)
    assert driver.machine.next_wakeup_ns() == 2_000

    driver.now_ns = 2_000
    assert driver.send(SequenceTimer()) == [ExpireWaiting((second.request_id,))]
    assert driver.over(first) == [RunRequest(third, 0, 0)]
    driver.now_ns = 4_000
    assert driver.send(SequenceTimer()) == []


def test_what_follows_an_expired_start_is_refused():
    driver = Driver(slots=1)
    driver.arrive(driver.request("a", "s"))
    start = driver.request("b", "s", deadline_ns=2_000)
    follows = driver.request("b")
    driver.arrive(start)
    driver.arrive(follows)
    driver.now_ns = 2_000
    assert driver.send(SequenceTimer()) == [
        ExpireWaiting((start.request_id,)),
        RefuseRequest(follows.request_id, "not_started"),
    ]


def test_a_lost_instance_ends_its_sequences_and_no_other():
    driver = Driver(instances=2, slots=1)
    a, a2, b = driver.request("a", "s"), driver.request("a"), driver.request("b", "s")
    for request in (a, a2, b):
        driver.arrive(request)

    assert driver.send(InstanceLost(0)) == [
        RefuseRequest(a.request_id, "instance_lost"),
        RefuseRequest(a2.request_id, "instance_lost"),
        EndSequence("a", 0, 0, "instance_lost"),
    ]
    assert driver.over(a) == []
    late = driver.request("a")
    assert driver.arrive(late) == [RefuseRequest(late.request_id, "not_started")]
    again = driver.request("a", "s")
    assert driver.arrive(again) == [RunRequest(again, 0, 0)]
    assert driver.over(b) == []


def test_who_starts_anew_survives_the_loss():
    driver = Driver()
    a, a2, anew, follows = (driver.request("a", f) for f in ("s", "", "s", ""))
    for request in (a, a2, anew, follows):
        driver.arrive(request)
    assert driver.send(InstanceLost(0)) == [
        RefuseRequest(a.request_id, "instance_lost"),
        RefuseRequest(a2.request_id, "instance_lost"),
        EndSequence("a", 0, 0, "instance_lost"),
        RunRequest(anew, 0, 0),
    ]
    assert driver.over(anew) == [RunRequest(follows, 0, 0)]


def test_closing_refuses_what_waits_and_lets_run_what_runs():
    driver = Driver(slots=1)
    a, a2, b = driver.request("a", "s"), driver.request("a"), driver.request("b", "s")
    for request in (a, a2, b):
        driver.arrive(request)
    assert driver.send(SequencesClosed()) == [
        RefuseRequest(a2.request_id, "model_removed"),
        RefuseRequest(b.request_id, "model_removed"),
    ]
    late = driver.request("c", "s")
    assert driver.arrive(late) == [RefuseRequest(late.request_id, "model_removed")]
    assert driver.over(a) == [EndSequence("a", 0, 0, "withdrawn")]


def test_deadlines_of_the_dead_do_not_pile_up():
    driver = Driver()
    running = driver.request("a", "s")
    driver.arrive(running)
    for _ in range(1_000):
        following = driver.request("a", deadline_ns=10**12)
        driver.arrive(following)
        driver.over(running)
        running = following
    assert len(driver.machine._deadlines) < 200


# -- callers --------------------------------------------------------------------------------------


def test_equal_ids_of_two_callers_are_two_sequences():
    driver = Driver(slots=2)
    mine = [driver.request(7, flags, caller="me") for flags in ("s", "", "e")]
    guessed = driver.request(7, caller="other")
    start = driver.request(7, "se", caller="other")

    assert driver.arrive(mine[0]) == [RunRequest(mine[0], 0, 0)]
    assert driver.over(mine[0]) == []
    assert driver.arrive(guessed) == [RefuseRequest(guessed.request_id, "not_started")]
    assert driver.arrive(start) == [RunRequest(start, 0, 1)]
    assert driver.over(start) == [EndSequence(7, 0, 1, "end", "other")]
    assert driver.arrive(mine[1]) == [RunRequest(mine[1], 0, 0)]
    assert driver.over(mine[1]) == []
    assert driver.arrive(mine[2]) == [RunRequest(mine[2], 0, 0)]
    assert driver.over(mine[2]) == [EndSequence(7, 0, 0, "end", "me")]


def test_a_free_slot_goes_to_the_caller_with_the_fewest():
    driver = Driver(slots=2)
    many = [driver.request(number, "se", caller="many") for number in range(1, 6)]
    late = [driver.request(number, "se", caller="late") for number in (1, 2)]
    for request in (*many, *late):
        driver.arrive(request)  # many has both slots, because nobody else wanted one

    assert driver.over(many[0])[1:] == [RunRequest(late[0], 0, 0)]
    assert driver.over(many[1])[1:] == [RunRequest(many[2], 0, 1)]
    assert driver.over(late[0])[1:] == [RunRequest(late[1], 0, 0)]
    assert driver.over(late[1])[1:] == [RunRequest(many[3], 0, 0)]
    assert driver.over(many[2])[1:] == [RunRequest(many[4], 0, 1)]


def test_a_caller_owns_no_more_slots_than_it_may():
    driver = Driver(slots=3, max_per_caller=2)
    mine = [driver.request(number, "s", caller="me") for number in (1, 2, 3)]
    other = driver.request(1, "s", caller="other")

    assert driver.arrive(mine[0]) == [RunRequest(mine[0], 0, 0)]
    assert driver.arrive(mine[1]) == [RunRequest(mine[1], 0, 1)]
    assert driver.arrive(mine[2]) == []
    assert driver.arrive(other) == [RunRequest(other, 0, 2)]
    end = driver.request(1, "e", caller="me")
    driver.over(mine[0])
    driver.arrive(end)
    assert driver.over(end)[1:] == [RunRequest(mine[2], 0, 0)]
