"""Which instance serves a sequence, and which of its requests runs now.

Law: one sequence always meets one instance. From the request that starts it to the one that
ends it (or until it was idle too long, or its instance was lost) a sequence owns one slot of
one instance, and its requests run there one at a time, in the order in which they came.

Nothing here is said about how slots become rows: with Triton's *direct* strategy a slot is a
row, with *oldest* it is only one of so many candidates, and both are decided where batches
are made. What they share is here: slots, the line of those who wait for one, and the end.

* A new sequence takes the lowest slot that is free in any instance, which spreads sequences
  over instances; where none is free it waits behind those that its caller began before it. A slot
  that becomes free goes to the waiting caller who owns the fewest; among equals they take turns.
* Equal ids of two callers are two sequences: neither can go on with, end or restart the other's.
* A request that does not start a sequence belongs to the one that its predecessor belonged to.
  If that one is over, or was never begun because its first request was withdrawn, the request
  is refused: it must never meet the state of another sequence.
* A request that starts a sequence whose id is in use ends that one, once what was asked of it
  before has been done.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any

from headrace.core.events import NEVER_NS
from headrace.core.sequence_backlog import Backlog
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
    SequenceKey,
    SequenceLimits,
    SequenceRequest,
    SequencesClosed,
    SequenceTimer,
)

_DEAD_MAX = 64
"""Deadlines of requests that no longer wait, kept before they are cleared out."""


def _number(request: SequenceRequest) -> int:
    return request.request_id


class _Sequence:
    """One id that is in use. ``open``: takes a request that starts nothing."""

    __slots__ = ("key", "open", "place", "queue", "running")

    def __init__(self, key: SequenceKey) -> None:
        self.key = key
        self.open = True
        self.place: tuple[int, int] | None = None  # (slot, instance), so that slots sort first
        self.queue: deque[SequenceRequest] = deque()
        self.running: SequenceRequest | None = None


class Sequences:
    """See the module. Not thread-safe: one owner drives it.

    Args:
        limits: see there; ``slots`` at least 1.
        instances: their numbers are 0 to one less than this; at least 1.
    """

    def __init__(self, limits: SequenceLimits, instances: int) -> None:
        self._limits = limits
        self._free = [
            (slot, instance) for slot in range(limits.slots) for instance in range(instances)
        ]
        self._sequences: dict[SequenceKey, _Sequence] = {}
        self._backlog = Backlog(limits.max_per_caller)
        # Since when; the first ends first. To empty a dict from its front would cost n squared.
        self._idle: OrderedDict[SequenceKey, int] = OrderedDict()
        self._requests: dict[int, _Sequence] = {}  # waiting and running
        self._deadlines: list[tuple[int, int]] = []  # a heap of those that waited, with the dead
        self._waiting = 0
        self._closed = False
        self._handlers: dict[type, Callable[[Any, int, list[SequenceAction]], None]] = {
            SequenceArrived: self._on_arrived,
            RequestOver: self._on_request_over,
            InstanceLost: self._on_instance_lost,
            SequencesClosed: self._on_closed,
            SequenceTimer: self._on_timer,
        }

    @property
    def waiting(self) -> int:
        """Requests whose turn has not come."""
        return self._waiting

    @property
    def live(self) -> int:
        """Sequences that own a slot or wait for one."""
        return len(self._sequences)

    def handle(self, event: SequenceEvent, *, now_ns: int) -> list[SequenceAction]:
        """Takes in one event and says what must be done, in order."""
        actions: list[SequenceAction] = []
        self._handlers[type(event)](event, now_ns, actions)
        while self._free and (key := self._backlog.take()) is not None:
            sequence = self._sequences[key]
            sequence.place = heappop(self._free)
            self._run_next(sequence, now_ns, actions)
        return actions

    def next_wakeup_ns(self) -> int | None:
        """When a :class:`SequenceTimer` is wanted at the latest, or None. A lower bound."""
        wakeup_ns = self._deadlines[0][0] if self._deadlines else NEVER_NS
        for since_ns in self._idle.values():
            wakeup_ns = min(wakeup_ns, since_ns + self._limits.idle_timeout_ns)
            break
        return None if wakeup_ns >= NEVER_NS else wakeup_ns

    # -- what arrives ----------------------------------------------------------------------

    def _on_arrived(
        self, event: SequenceArrived, now_ns: int, actions: list[SequenceAction]
    ) -> None:
        request = event.request
        key = request.key
        sequence = self._sequences.get(key)
        if self._closed:
            actions.append(RefuseRequest(request.request_id, "model_removed"))
            return
        if not request.start and (sequence is None or not sequence.open):
            actions.append(RefuseRequest(request.request_id, "not_started"))
            return
        must_wait = self._must_wait(sequence, request.caller)
        if must_wait and self._waiting >= self._limits.max_queue_size:
            actions.append(RefuseRequest(request.request_id, "queue_full"))
            return
        if sequence is None:
            sequence = self._sequences[key] = _Sequence(key)
            self._backlog.add(key)
        sequence.open = not request.end
        sequence.queue.append(request)
        self._requests[request.request_id] = sequence
        self._waiting += 1
        self._idle.pop(key, None)
        if must_wait:
            self._expect(request)
        elif sequence.place is not None:
            self._run_next(sequence, now_ns, actions)

    def _must_wait(self, sequence: _Sequence | None, caller: str) -> bool:
        if sequence is None:
            return not self._free or not self._backlog.may_own_more(caller)
        return sequence.place is None or sequence.running is not None

    def _expect(self, request: SequenceRequest) -> None:
        if request.deadline_ns >= NEVER_NS:
            return
        if len(self._deadlines) > 2 * self._waiting + _DEAD_MAX:
            self._deadlines = [entry for entry in self._deadlines if self._waits(entry[1])]
            heapify(self._deadlines)
        heappush(self._deadlines, (request.deadline_ns, request.request_id))

    # -- what ends -------------------------------------------------------------------------

    def _on_request_over(
        self, event: RequestOver, now_ns: int, actions: list[SequenceAction]
    ) -> None:
        sequence = self._requests.pop(event.request_id, None)
        if sequence is None:
            return
        over = sequence.running
        if over is None or over.request_id != event.request_id:
            self._withdraw(sequence, event.request_id, actions)
            return
        sequence.running = None
        if over.end:
            self._end(sequence, "end" if event.ran else "withdrawn", actions)
            return
        if over.start and not event.ran:
            self._refuse_until_start(sequence, 0, "not_started", actions)
            sequence.open = sequence.open and bool(sequence.queue)
        self._run_next(sequence, now_ns, actions)

    def _withdraw(
        self, sequence: _Sequence, request_id: int, actions: list[SequenceAction]
    ) -> None:
        """Takes out one that waited; without its first request nothing of a sequence can run."""
        index = bisect_left(sequence.queue, request_id, key=_number)  # numbers only grow
        request = sequence.queue[index]
        del sequence.queue[index]
        self._waiting -= 1
        if request.start:
            self._refuse_until_start(sequence, index, "not_started", actions)
            if index == len(sequence.queue):
                sequence.open = False
        if not sequence.open and not sequence.queue and sequence.running is None:
            self._end(sequence, "withdrawn", actions)

    def _refuse_until_start(
        self, sequence: _Sequence, index: int, reason: str, actions: list[SequenceAction]
    ) -> None:
        queue = sequence.queue
        while index < len(queue) and not queue[index].start:
            request = queue[index]
            del queue[index]
            del self._requests[request.request_id]
            self._waiting -= 1
            actions.append(RefuseRequest(request.request_id, reason))

    def _end(self, sequence: _Sequence, reason: str, actions: list[SequenceAction]) -> None:
        """Frees the slot. What has been asked of the next one of this id waits like anybody."""
        key = sequence.key
        self._idle.pop(key, None)
        if sequence.place is not None:
            slot, instance = sequence.place
            caller, name = key
            actions.append(EndSequence(name, instance, slot, reason, caller))
            self._backlog.gave_back(caller)
            heappush(self._free, sequence.place)
            sequence.place = None
        if sequence.queue:
            self._backlog.add(key)
        else:
            self._backlog.discard(key)
            del self._sequences[key]

    # -- what runs -------------------------------------------------------------------------

    def _run_next(self, sequence: _Sequence, now_ns: int, actions: list[SequenceAction]) -> None:
        assert sequence.place is not None
        if sequence.queue:
            request = sequence.queue.popleft()
            self._waiting -= 1
            sequence.running = request
            slot, instance = sequence.place
            actions.append(RunRequest(request, instance, slot))
        elif sequence.open:
            self._idle[sequence.key] = now_ns
        else:
            self._end(sequence, "withdrawn", actions)

    # -- what is lost, and time ------------------------------------------------------------

    def _on_instance_lost(
        self, event: InstanceLost, now_ns: int, actions: list[SequenceAction]
    ) -> None:
        for sequence in tuple(self._sequences.values()):
            if sequence.place is not None and sequence.place[1] == event.instance:
                self._lose(sequence, "instance_lost", actions)

    def _lose(self, sequence: _Sequence, reason: str, actions: list[SequenceAction]) -> None:
        """Ends it at once, and what was asked of it: all before the next request that starts."""
        running = sequence.running
        if running is not None:
            sequence.running = None
            del self._requests[running.request_id]
            actions.append(RefuseRequest(running.request_id, reason))
        self._refuse_until_start(sequence, 0, reason, actions)
        self._end(sequence, reason, actions)

    def _on_closed(
        self, event: SequencesClosed, now_ns: int, actions: list[SequenceAction]
    ) -> None:
        """What runs may finish; nothing follows it."""
        self._closed = True
        for sequence in tuple(self._sequences.values()):
            while sequence.queue:
                request = sequence.queue.popleft()
                del self._requests[request.request_id]
                self._waiting -= 1
                actions.append(RefuseRequest(request.request_id, "model_removed"))
            sequence.open = False
            if sequence.running is None:
                self._end(sequence, "model_removed", actions)

    def _on_timer(self, event: SequenceTimer, now_ns: int, actions: list[SequenceAction]) -> None:
        expired: list[int] = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, request_id = heappop(self._deadlines)
            if self._waits(request_id):
                expired.append(request_id)
                self._withdraw(self._requests.pop(request_id), request_id, actions)
        if expired:
            actions.insert(0, ExpireWaiting(tuple(expired)))
        for key, since_ns in tuple(self._idle.items()):
            if since_ns + self._limits.idle_timeout_ns > now_ns:
                break
            self._end(self._sequences[key], "idle", actions)

    def _waits(self, request_id: int) -> bool:
        sequence = self._requests.get(request_id)
        if sequence is None:
            return False
        return sequence.running is None or sequence.running.request_id != request_id

    # -- what must always hold -------------------------------------------------------------

    def check_invariants(self) -> None:
        """Asserts what must hold between any two events. O(everything); for tests.

        Raises:
            AssertionError: this class has a defect; the message says which law broke.
        """
        places = [s.place for s in self._sequences.values() if s.place is not None]
        assert len(places) == len(set(places)), "two sequences in one slot"
        assert not set(places) & set(self._free), "a slot is free and taken"
        assert len(places) + len(self._free) == len(set(places) | set(self._free))
        assert not (self._free and self._backlog.can_take), "a slot is free and one waits for it"
        self._backlog.check_invariants(s.key[0] for s in self._sequences.values() if s.place)
        lowest = [self._free[(i - 1) // 2] <= place for i, place in enumerate(self._free) if i]
        assert all(lowest), "free slots are no heap"
        requests = {}
        for sequence in self._sequences.values():
            self._check_sequence(sequence)
            for request in sequence.queue:
                requests[request.request_id] = sequence
            if sequence.running is not None:
                requests[sequence.running.request_id] = sequence
        assert requests == self._requests, "a request is misfiled"
        assert self._waiting == sum(len(s.queue) for s in self._sequences.values())
        since = list(self._idle.values())
        assert since == sorted(since), "idle sequences out of order"
        watched = {request_id for _, request_id in self._deadlines}
        due = {
            r.request_id
            for s in self._sequences.values()
            for r in s.queue
            if r.deadline_ns < NEVER_NS
        }
        assert due <= watched, "a deadline would be missed"

    def _check_sequence(self, sequence: _Sequence) -> None:
        name, queue = sequence.key, sequence.queue
        placed = sequence.place is not None
        assert placed != (name in self._backlog), f"{name} neither has a slot nor waits for one"
        busy = sequence.running is not None
        assert busy or not (placed and queue), f"{name} could run and does not"
        assert (name in self._idle) == (placed and not busy), f"{name}'s idle time is not watched"
        assert placed or (queue and queue[0].start), f"{name} waits without a first request"
        assert busy or queue or sequence.open, f"{name} is over and still there"
        for before, after in zip(queue, list(queue)[1:], strict=False):
            assert after.start or not before.end, f"{name} goes on after its end"
