"""Stateful models: every request goes to the instance that knows its sequence.

Each instance of such a model is a *lane*: a clone of the served model with a number of its own
in the core, so that requests of different sequences meet in a batch where they share an
instance and nowhere else. Which lane a request takes, and when, is decided by
``core.sequences``; this module does what is decided, as the engine does what the scheduler
decides.

What happens to a request that runs when its caller leaves is what happens to any: it is not
interrupted, and its result is dropped. The model may have kept what it learned of it; a state
that is kept here is as it was before.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

import msgspec
import numpy as np

from headrace.core.actions import RejectRequest
from headrace.core.events import NEVER_NS, BatchLimits
from headrace.core.sequence_events import (
    EndSequence,
    ExpireWaiting,
    InstanceLost,
    RefuseRequest,
    RequestOver,
    RunRequest,
    SequenceArrived,
    SequenceEvent,
    SequenceId,
    SequenceKey,
    SequenceLimits,
    SequenceRequest,
    SequencesClosed,
    SequenceTimer,
)
from headrace.core.sequences import Sequences
from headrace.engine import endings
from headrace.engine.collate import collate
from headrace.engine.inflight import Member, Ticket
from headrace.engine.limits import limits_of
from headrace.engine.sequence_inputs import SequenceInputs, States
from headrace.engine.served import Collate, ServedModel
from headrace.engine.slot_rows import SlotArrays, SlotRows
from headrace.errors import HeadraceError, InferenceFailed, InstanceDied, InvalidRequest
from headrace.runtimes.base import LoadedModel, PinnedInstance, PinnedModel
from headrace.types import Tensor

_MANY = 2**31
"""What a lane's own queue may hold: it never has more than one request of each sequence."""


_LAST_ID = 2**31 - 1
"""Fits every datatype that a CORRID control can have; clients count from 1."""


class Host(Protocol):
    """The side of the engine that sequences need."""

    def now_ns(self) -> int:
        """Of the engine's clock."""
        ...

    def add_lane(self, lane: ServedModel, limits: BatchLimits) -> None:
        """Gives the lane a number."""
        ...

    def admit(self, ticket: Ticket, lane: ServedModel | None = None) -> None:
        """Queues the request for the lane."""
        ...

    def fail(self, ticket: Ticket, outcome: str, error: HeadraceError) -> None:
        """Ends the request."""
        ...


class _Run:
    """One request on its way. ``number`` and ``name``: the core's, of it and its sequence."""

    __slots__ = ("begun", "lane", "name", "number", "slot", "ticket")

    def __init__(self, number: int, name: SequenceKey, ticket: Ticket) -> None:
        self.number = number
        self.name = name
        self.ticket = ticket
        self.lane: ServedModel | None = None
        self.slot = 0
        self.begun = False  # the model is being told of it, or was


class SequenceIntake:
    """The intake of one stateful model. On the event loop.

    Made before the model is published; its lanes are made when the first request comes, when
    all is known about the model.
    """

    def __init__(self, host: Host, served: ServedModel, inputs: SequenceInputs) -> None:
        config = served.config.sequence
        assert config is not None
        self._host = host
        self._served = served
        self._config = config
        self._inputs = inputs
        self._loop = asyncio.get_running_loop()
        self._keeps_state = hasattr(served.loaded, "instance")
        self._keeps_rows = False
        self._lanes: list[ServedModel] = []
        self._lives: list[int] = []  # of each lane: how often its instance was lost
        self._core = Sequences(SequenceLimits(), 1)
        self._next_number = 1
        self._runs: dict[int, _Run] = {}
        self._of_ticket: dict[int, _Run] = {}
        self._states: dict[SequenceKey, States] = {}
        self._shown: dict[SequenceKey, SequenceId] = {}  # what the model is told for an id
        self._events: deque[SequenceEvent] = deque()
        self._driving = self._closed = False
        self._taking: _Run | None = None
        self._refusal: HeadraceError | None = None
        self._cause: HeadraceError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = NEVER_NS
        self._carry_out: dict[type, Callable[[Any], None]] = {
            RunRequest: self._run,
            RefuseRequest: self._refuse,
            ExpireWaiting: self._expire,
            EndSequence: self._end,
        }
        self._finish = served.finish
        served.finish = self._finish_run
        served.sole_output = None
        served.intake = self.take
        served.sequences = self

    # -- what the engine calls -------------------------------------------------------------

    def take(self, ticket: Ticket) -> None:
        """A request that fits the model's signature.

        Raises:
            InvalidRequest: it names no sequence, has several rows, or its sequence was never
                started.
            Overloaded: as many as may wait do so already.
            ModelNotReady: the model is being unloaded.
        """
        if self._closed:
            raise endings.rejected(ticket, RejectRequest(0, "model_removed"))
        if not self._lanes:
            self._begin()
        request, served = ticket.request, self._served
        number = self._next_number
        self._next_number += 1
        name: SequenceId = request.sequence_id
        if self._config.iterative:
            # Such a request is a sequence of its own; callers' ids are never below zero.
            request.sequence_start = request.sequence_end = True
            if not name:
                request.sequence_id, name = number, -number
        if not name:
            raise InvalidRequest(
                f"inference request to model '{served.name}' must specify a non-zero or "
                "non-empty correlation ID",
                code="missing_sequence_id",
                hint="send the parameter sequence_id",
                model=served.name,
            )
        self._check_rows(ticket)
        self._inputs.check(request)
        ticket.admitted_ns = self._host.now_ns()
        if not ticket.arrived_ns:
            ticket.arrived_ns = ticket.decoded_ns = ticket.admitted_ns
        deadline_ns = ticket.arrived_ns + (request.timeout_ns or served.timeout_ns)
        # A sequence of its own has a number that no other has: callers do not matter to it, but
        # they do to whose turn it is.
        asked = SequenceRequest(
            number, name, request.sequence_start, request.sequence_end, deadline_ns, request.caller
        )
        run = self._runs[number] = _Run(number, asked.key, ticket)
        self._of_ticket[id(ticket)] = run
        ticket.on_end = partial(self._on_end, run, ticket.on_end)
        arrived = SequenceArrived(asked)
        if self._driving:  # the answer to one request made its caller send another
            self._events.append(arrived)
            return
        self._taking = run
        self._drive(arrived)
        self._taking = None
        if self._refusal is not None:
            error, self._refusal = self._refusal, None
            raise error

    def again(self, ticket: Ticket) -> bool:
        """A batch is over and a request of it has no final answer yet: whether it runs again."""
        run = self._of_ticket.get(id(ticket))
        if not self._config.iterative or run is None or run.lane is None:
            return False
        ticket.request.sequence_start = False
        self._admit(run)
        return True

    def begin(self, parts: Sequence[Member]) -> None:
        """A batch of these is handed to its instance: they will be run, whoever leaves."""
        for part in parts:
            run = self._of_ticket.get(id(part))
            if run is not None:
                run.begun = True

    def failed(self, lane: ServedModel, parts: Sequence[Member], error: HeadraceError) -> bool:
        """A batch failed: whether its requests are not to be run again, one by one.

        A model that keeps a state may have taken some of them in. If the instance died, its
        sequences are over, with this error.
        """
        if not self._keeps_state:
            return False
        index = self._lanes.index(lane)
        if isinstance(error, InstanceDied) and self._is_of_this_life(index, parts):
            self._cause = error
            self._drive(InstanceLost(index))
            self._cause = None
        return True

    def close(self) -> None:
        """The model is being removed: refuses what waits; what runs may finish."""
        self._closed = True
        self._drive(SequencesClosed())
        if self._timer is not None:
            self._timer.cancel()

    # -- the loop between core and engine --------------------------------------------------

    def _drive(self, event: SequenceEvent) -> None:
        self._events.append(event)
        if self._driving:
            return
        self._driving = True
        for index, lane in enumerate(self._lanes):
            if self._keeps_state and cast("PinnedInstance", lane.loaded).lost:
                self._events.appendleft(InstanceLost(index))
        try:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, InstanceLost):
                    self._lives[event.instance] += 1
                    cast("PinnedInstance", self._lanes[event.instance].loaded).renew()
                for action in self._core.handle(event, now_ns=self._host.now_ns()):
                    self._carry_out[type(action)](action)
        finally:
            self._driving = False
        self._served.preparing = self._core.waiting
        self._set_timer()

    def _set_timer(self) -> None:
        wakeup_ns = self._core.next_wakeup_ns()
        if wakeup_ns is None or wakeup_ns >= self._timer_ns:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ns = wakeup_ns
        delay_s = max(0.0, (wakeup_ns - self._host.now_ns()) / 1e9)
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_ns = None, NEVER_NS
        self._drive(SequenceTimer())

    def _on_end(self, run: _Run, before: Callable[[Ticket], Any] | None, ticket: Ticket) -> None:
        self._forget(run)
        self._drive(RequestOver(run.number, run.begun))
        if before is not None:
            before(ticket)

    def _forget(self, run: _Run) -> None:
        self._runs.pop(run.number, None)
        self._of_ticket.pop(id(run.ticket), None)

    # -- what is decided -------------------------------------------------------------------

    def _run(self, action: RunRequest) -> None:
        run = self._runs.get(action.request.request_id)
        if run is None:
            return  # it ended by what was done a moment ago, which the core is about to be told
        run.lane, run.slot = self._lanes[action.instance], action.slot
        if action.request.start:
            self._states[run.name] = self._inputs.initial
            self._shown.pop(run.name, None)  # of the sequence that this one replaces
            self._shown[run.name] = self._free_id(run.ticket.request.sequence_id)
        run.ticket.request.sequence_id = self._shown[run.name]
        self._admit(run)

    def _free_id(self, wanted: SequenceId) -> SequenceId:
        """``wanted``, unless another caller's sequence has it: a model may keep states by id."""
        number, taken = _LAST_ID, self._shown.values()
        while wanted in taken:
            wanted = str(number) if isinstance(wanted, str) else number
            number -= 1
        return wanted

    def _admit(self, run: _Run) -> None:
        ticket = run.ticket
        arrays = self._inputs.fill(ticket.arrays, ticket.request, self._states[run.name])
        if self._keeps_state:
            assert run.lane is not None
            life = self._lives[self._lanes.index(run.lane)]
            arrays = SlotArrays(arrays, run.slot, life)
        ticket.arrays = arrays
        self._host.admit(ticket, run.lane)

    def _refuse(self, action: RefuseRequest) -> None:
        run = self._runs.get(action.request_id)
        if run is None:
            return
        error = self._refused(run, action.reason)
        if run is self._taking:
            self._forget(run)
            run.ticket.on_end = None
            self._refusal = error
        else:
            outcome = "fail" if isinstance(error, InstanceDied) else "reject"
            self._host.fail(run.ticket, outcome, error)

    def _refused(self, run: _Run, reason: str) -> HeadraceError:
        served = self._served
        if reason == "not_started":
            return InvalidRequest(
                f"inference request for sequence {run.name[1]} to model '{served.name}' must "
                "specify the START flag on the first request of the sequence",
                code="sequence_not_started",
                hint="a sequence ends with sequence_end, and when it was idle for too long",
                model=served.name,
            )
        if reason == "instance_lost":
            return self._cause or InstanceDied(
                f"the instance of model '{served.name}' that served sequence {run.name[1]} died",
                hint="begin the sequence anew, with sequence_start",
                model=served.name,
            )
        return endings.rejected(run.ticket, RejectRequest(run.number, reason))

    def _expire(self, action: ExpireWaiting) -> None:
        now_ns = self._host.now_ns()
        for number in action.request_ids:
            run = self._runs.get(number)
            if run is None:
                continue
            ticket = run.ticket
            waited_ns = now_ns - ticket.arrived_ns
            error = endings.expired(ticket, waited_ns=waited_ns, running=False)
            self._host.fail(ticket, "expire", error)

    def _end(self, action: EndSequence) -> None:
        key = action.caller, action.sequence
        self._states.pop(key, None)
        self._shown.pop(key, None)

    # -- answers ---------------------------------------------------------------------------

    def _finish_run(self, ticket: Ticket) -> list[Tensor]:
        run, result = self._of_ticket.get(id(ticket)), ticket.result or ()
        if run is not None and result and self._inputs.has_states:
            self._states[run.name] = self._inputs.next_states(result, self._states[run.name])
        if self._finish is not None:
            return self._finish(ticket)
        return _public(self._served, result)

    # -- lanes -----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Gives every instance a lane, and every lane its slots."""
        served, config = self._served, self._config
        limits = msgspec.structs.replace(
            limits_of(served), max_concurrency=1, max_queue_size=_MANY, max_padded_tokens=0
        )
        rows = served.config.batching.max_batch_size or limits.max_rows
        slots = config.max_sequences or rows
        self._keeps_rows = (
            config.strategy == "direct"
            and self._keeps_state
            and served.batchable
            and not served.takes_requests
            and self._inputs.ready is not None
        )
        if self._keeps_rows:
            slots = min(slots, limits.max_rows)  # a slot is a row
        self._lanes = [self._lane(index) for index in range(max(1, served.loaded.concurrency))]
        self._lives = [0] * len(self._lanes)
        for lane in self._lanes:
            self._host.add_lane(lane, limits)
        served.lanes = tuple(self._lanes)
        idle_timeout_ns = int(config.idle_timeout_s * 1e9)
        self._core = Sequences(
            SequenceLimits(
                slots, served.config.queue.max_queue_size, idle_timeout_ns, config.max_per_caller
            ),
            len(self._lanes),
        )

    def _lane(self, index: int) -> ServedModel:
        served, inputs = self._served, self._inputs
        lane = copy.copy(served)
        lane.whole = served
        lane.intake = lane.on_idle = None
        lane.uniform_rows = served.uniform_rows and inputs.fixed
        if self._config.iterative and served.takes_requests:
            lane.decoupled = True  # that a batch is over does not mean that a request is
        if not self._keeps_state:
            return lane
        instance = cast("PinnedModel", served.loaded).instance(index)
        lane.loaded = instance
        if self._keeps_rows:
            slots = SlotRows(instance, inputs)
            lane.loaded = slots
            lane.collate = partial(self._unless_lost, index, slots.collate)
        elif served.collate is None:
            lane.collate = partial(self._unless_lost, index, partial(_collate, instance))
        return lane

    def _unless_lost(
        self, index: int, collate_: Collate, parts: Sequence[Member]
    ) -> tuple[list[np.ndarray | None], int]:
        """In an instance's thread: what was meant for one that is gone is not run by the next.

        The next one knows nothing of these sequences, and the requests have failed already.
        """
        if not self._is_of_this_life(index, parts):
            raise InferenceFailed("the instance that the requests were for is gone")
        return collate_(parts)

    def _is_of_this_life(self, index: int, parts: Sequence[Member]) -> bool:
        """Whether no loss of the instance has become known since these were sent there.

        One answer for all: those that are run by one batch were sent within one life.
        """
        return cast("SlotArrays", parts[0].arrays).life == self._lives[index]

    def _check_rows(self, ticket: Ticket) -> None:
        served = self._served
        rows = ticket.rows
        if served.rows_declared and not served.rows_sent:
            firsts = [ticket.arrays[check.index] for check in served.checks.values()]
            rows = max([len(array) for array in firsts if array is not None], default=1)
        if rows != 1:
            raise InvalidRequest(
                f"inference request to model '{served.name}' must specify batch-size 1 due to "
                "requirements of sequence batcher",
                code="wrong_batch_size",
                hint="one request carries one step of one sequence",
                model=served.name,
                got=rows,
            )


def attach_sequences(host: Host, served: ServedModel) -> None:
    """Makes a stateful model take its requests by sequence. Before it is published."""
    if served.sequence_inputs is not None:
        SequenceIntake(host, served, served.sequence_inputs)


def _collate(model: LoadedModel, parts: Sequence[Member]) -> tuple[list[np.ndarray | None], int]:
    return collate(parts, None, model.shape_policy)


def _public(served: ServedModel, result: Sequence[np.ndarray | None]) -> list[Tensor]:
    """The model's outputs, without its states."""
    by_name = dict(zip([spec.name for spec in served.loaded.outputs], result, strict=False))
    return [
        Tensor(spec.name, spec.datatype, array.shape, array)
        for spec in served.metadata.outputs
        if (array := by_name.get(spec.name)) is not None
    ]
