"""The imperative room: asks the core what to do, does it, and tells the core what happened.

Law: everything in :class:`Engine` runs on one event loop, and between an event and the last
of its actions nothing awaits, so the state cannot change under a decision.

A request comes in through :meth:`Engine.submit` and leaves through its ``Reply``, exactly once.
All that arrives in one turn of the loop is one event for the core, so what comes in together can
run together, and a lone request starts in the next step of the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from headrace.clock import Clock, MonotonicClock
from headrace.core.actions import (
    CancelRequests,
    CompleteRequests,
    ExecuteBatch,
    ExpireRequests,
    FailRequests,
    RejectRequest,
)
from headrace.core.events import (
    BatchCompleted,
    BatchFailed,
    BatchLimits,
    Event,
    LearntCost,
    LimitsChanged,
    ModelAdded,
    ModelRemoved,
    QueuedRequest,
    RequestsArrived,
    RequestsCancelled,
    TimerFired,
)
from headrace.core.pool import SchedulerStatistics
from headrace.core.scheduler import Scheduler
from headrace.engine import endings
from headrace.engine.catalog import Catalog
from headrace.engine.host import EngineHost
from headrace.engine.inflight import FutureReply, Member, Reply, Ticket, size_bytes, whole_of
from headrace.engine.instance_pool import InstancePool
from headrace.engine.instances import BatchJob
from headrace.engine.intakes import Intakes
from headrace.engine.limits import limits_of
from headrace.engine.lobby import Lobby
from headrace.engine.outcomes import Outcomes, response_of
from headrace.engine.recording import Recorder
from headrace.engine.served import Profile, ServedModel
from headrace.engine.shapes import ShapeKeys
from headrace.engine.shared_cache import SharedTier
from headrace.engine.streams import Streams
from headrace.engine.tenants import Tenants
from headrace.engine.validate import check_inputs, rows_of
from headrace.engine.wakeup import Wakeup
from headrace.errors import HeadraceError, InferenceFailed, detached
from headrace.telemetry.instruments import Instrument
from headrace.types import InferenceRequest, InferenceResponse

_LOG = logging.getLogger("headrace.engine")


class Engine:
    """One pool of instances and the models that share it. Made on a running event loop.

    Args:
        instances: batches that may run at one time (threads).
        preprocess_threads: threads for tasks.
        tenants: who is told apart from whom; None: nobody.
        response_cache_bytes: for the answers of models that ask for it; 0: none are kept.
        shared_cache: where they are kept too; ``recorder``: writes down what is decided.
        instrument: told of everything, asked nothing.
    """

    def __init__(
        self,
        *,
        instances: int,
        preprocess_threads: int,
        response_cache_bytes: int = 0,
        shared_cache: SharedTier | None = None,
        tenants: Tenants | None = None,
        instrument: Instrument | None = None,
        recorder: Recorder | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.now_ns = self._now_ns = (clock or MonotonicClock()).now_ns
        self._scheduler = Scheduler()
        handle = self._scheduler.handle
        self._handle = recorder.around(handle) if recorder is not None else handle
        self._tenants = tenants or Tenants({})
        self.catalog = Catalog()
        self.lobby: Lobby | None = None  # where requests wait for what is not in memory
        self._outcomes = Outcomes(instrument or Instrument(), self._now_ns)
        self._models: dict[int, ServedModel] = {}
        self._parts: dict[int, Member] = {}
        self._arrived: dict[int, QueuedRequest] = {}  # not reported to the core yet
        self._events: deque[tuple[Event, BatchJob | None]] = deque()
        self._job: BatchJob | None = None  # the batch that the current event is about
        self._driving = False
        self._next_request_id = self._next_model = 1
        self._tickets, self._draining = 0, False
        self._idle = asyncio.Event()
        self._idle.set()
        self._wakeup = Wakeup(self._loop, self._now_ns, lambda: self._drive(TimerFired()))
        self._shape_keys = ShapeKeys()
        self._intakes = Intakes(
            self,
            self._loop,
            self._now_ns,
            self._outcomes,
            preprocess_threads=preprocess_threads,
            cache_bytes=response_cache_bytes,
            shared=shared_cache,
        )
        self._streams = Streams(self._loop, self, self._outcomes)
        self._carry_out: dict[type, Callable[[Any], None]] = {
            ExecuteBatch: self._execute_batch,
            CompleteRequests: self._complete_requests,
            RejectRequest: self._reject_request,
            ExpireRequests: self._expire_requests,
            CancelRequests: self._forget_requests,
            FailRequests: self._fail_requests,
        }
        back, limit = self._on_batch_finished, self._scheduler.execution_limit_ns
        self._instances = InstancePool(
            self._loop, instances, back, self._drive, limit_ns=limit, now_ns=self.now_ns
        )
        self._tenants.tell(self._drive)

    # -- requests ------------------------------------------------------------------------

    def submit(self, request: InferenceRequest, reply: Reply, *, nested: bool = False) -> Ticket:
        """Takes a request in. Returns at once; ``reply`` is called later, exactly once.

        Raises:
            RequestError, CapacityError: known at once to be impossible; ``reply`` is then
                never called. That nothing new is taken in is no reason for a ``nested`` one.
        """
        served = self.catalog.resolve(request.model_name, request.model_version)
        try:
            if self._draining and not nested:
                raise endings.shutting_down()
            if served.decoupled and not hasattr(reply, "part"):
                raise endings.needs_stream(served)
            arrays = check_inputs(request, served)
            rows = rows_of(arrays, served) if served.rows_sent else 1
            ticket = Ticket(
                served.name,
                served.version,
                rows,
                0,
                request.arrived_ns,
                request.decoded_ns,
                engine=self,
                served=served,
                request=request,
                reply=reply,
                arrays=arrays,
            )
            if served.intake is None:
                self.admit(ticket)
            else:
                served.intake(ticket)
        except HeadraceError as error:
            self._outcomes.refused(request, served, error)
            raise
        self._tickets += 1
        served.busy += 1
        return ticket

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Waits for the answer. Cancelling the awaiting task cancels the request.

        Raises:
            HeadraceError: any way in which a request can end but success.
        """
        reply = FutureReply(self._loop)
        ticket = self.submit(request, reply)
        try:
            return await reply.future
        except asyncio.CancelledError:
            self.cancel(ticket)
            raise
        finally:
            del reply, ticket  # or this frame and the error would hold one another

    def cancel(self, ticket: Ticket) -> None:
        """Nobody wants the answer any more: what waits is removed, what runs is dropped.

        The reply is not called. Does nothing if the request has ended.
        """
        if not ticket.done:
            parts = ticket.all_parts()
            self._end(ticket)
            self._outcomes.ended(ticket, "cancel", "cancelled")
            self._withdraw(parts)

    def admit(self, ticket: Ticket, lane: ServedModel | None = None) -> None:
        """Gives every part an id and reports them all at the end of this turn of the loop."""
        served, request, now_ns = lane or ticket.served, ticket.request, self._now_ns()
        ticket.admitted_ns = ticket.admitted_ns or now_ns  # a sequence's turn was waited for
        if not ticket.arrived_ns:
            ticket.arrived_ns = ticket.decoded_ns = now_ns
        deadline_ns = due_ns = ticket.arrived_ns + (request.timeout_ns or served.timeout_ns)
        if slo_ns := request.slo_ns or served.slo_ns:
            due_ns = min(deadline_ns, ticket.arrived_ns + slo_ns)
        tenant = self._tenants.number(request.tenant)
        if not self._arrived:
            self._loop.call_soon(self._report_arrivals)
        request_id = self._next_request_id
        for part in ticket.parts or (ticket,):
            part.request_id = request_id
            self._parts[request_id] = part
            self._arrived[request_id] = QueuedRequest(
                request_id,
                served.number,
                part.rows,
                part.length,
                0 if served.uniform_rows else self._shape_keys.key(part.arrays, served),
                now_ns,
                deadline_ns,
                request.priority,
                tenant,
                due_ns,
                part.rows * served.row_bytes or size_bytes(part.arrays),
            )
            request_id += 1
        self._next_request_id = request_id

    def _report_arrivals(self) -> None:
        arrived, self._arrived = self._arrived, {}
        self._drive(RequestsArrived(list(arrived.values())))

    def watch_with(self, instrument: Instrument) -> None:
        """Tells ``instrument`` of everything from now on, and nobody else."""
        self._outcomes.watch_with(instrument)

    # -- models --------------------------------------------------------------------------

    def add_model(self, served: ServedModel, profile: Profile) -> None:
        """Publishes a loaded model: requests for it are taken from now on."""
        served.profile = profile
        served.batchable = profile.batchable
        served.rows_sent = profile.batchable and served.task is None
        self._intakes.lay(served)
        if (attach := getattr(served.loaded, "attach", None)) is not None:
            attach(EngineHost(self, self._loop, self._outcomes.measured))
        self.add_lane(served, limits_of(served), profile.costs)
        self.catalog.publish(served)

    def add_lane(
        self, lane: ServedModel, limits: BatchLimits, costs: dict[int, LearntCost] | None = None
    ) -> None:
        """Numbers a model, or one instance of it alone, to which only :meth:`admit` leads."""
        lane.number, self._next_model = self._next_model, self._next_model + 1
        self._models[lane.number] = lane
        self._drive(ModelAdded(lane.number, limits, lane.takes_requests, costs or {}))
        if lane.takes_requests:
            # It may call other models while it runs, which need the common instances then.
            self._instances.dedicate(lane, limits.max_concurrency)

    def set_profile(self, served: ServedModel, profile: Profile) -> None:
        """Something was measured anew: batches are formed by it from now on."""
        if served.number in self._models:
            served.profile = profile
            self._drive(LimitsChanged(served.number, limits_of(served)))

    def remove_model(self, served: ServedModel) -> None:
        """Withdraws a model: what waits for it is refused, what runs may finish."""
        self.catalog.withdraw(served)
        self._intakes.forget(served)
        if served.sequences is not None:
            served.sequences.close()
        for lane in (served, *served.lanes):
            del self._models[lane.number]
            self._drive(ModelRemoved(lane.number))
            self._instances.release(lane)

    # -- the loop between core and instances -----------------------------------------------

    def _drive(self, event: Event, job: BatchJob | None = None) -> None:
        """Tells the core and carries out what it answers; not re-entrant, never awaits."""
        self._events.append((event, job))
        if self._driving:
            return
        self._driving = True
        events, handle, carry_out = self._events, self._handle, self._carry_out
        try:
            while events:
                event, self._job = events.popleft()
                for action in handle(event, now_ns=self._now_ns()):
                    carry_out[type(action)](action)
        finally:
            self._driving = False
            self._job = None
        self._wakeup.at(self._scheduler.next_wakeup_ns())

    def _execute_batch(self, action: ExecuteBatch) -> None:
        served = self._models[action.model]
        parts = [self._parts[request_id] for request_id in action.request_ids]
        inline = action.rows <= served.profile.inline_rows
        served.batch_begins(parts)
        job = BatchJob(
            action.batch_id,
            action.instance_id,
            served,
            parts,
            action.rows,
            action.padded_length,
            inline,
            emitted=self._streams.emitted if served.decoupled else None,
        )
        if inline:
            job.run()
            self._events.append((self._after(job), job))
        else:
            self._instances.submit(job)

    def _on_batch_finished(self, job: BatchJob) -> None:
        self._drive(self._after(job), job)

    def _after(self, job: BatchJob) -> BatchCompleted | BatchFailed:
        self._outcomes.batch(job)
        served = job.served.whole or job.served
        served.busy -= 1
        if not served.busy and served.on_idle is not None:
            served.on_idle()
        if job.error is None:
            return BatchCompleted(job.batch_id)
        retry = job.served.batch_failed(job.parts, job.error)
        return BatchFailed(job.batch_id, retry_alone=retry)

    # -- how requests end ------------------------------------------------------------------

    def _complete_requests(self, action: CompleteRequests) -> None:
        job = self._job
        assert job is not None
        assert job.batch_id == action.batch_id
        parts, finished = self._parts, list[Ticket]()
        wanted = set(action.request_ids) if len(action.request_ids) < len(job.parts) else None
        batched_ns, started_ns = job.started_ns, job.collated_ns
        for part, piece in zip(job.parts, job.pieces, strict=True):
            if wanted is not None and part.request_id not in wanted:
                continue
            del parts[part.request_id]
            if isinstance(piece, HeadraceError):
                self.fail(whole_of(part), "fail", piece)
                continue
            part.result = cast("Sequence[np.ndarray]", piece)
            if isinstance(part, Ticket):
                ticket = part
                if job.emitted is not None:  # its answers come by themselves
                    self._streams.detach(ticket)
                    continue
            else:
                ticket = part.whole
                ticket.left -= 1
                if ticket.left:
                    continue
            ticket.batched_ns = batched_ns
            ticket.started_ns = started_ns
            ticket.executed_ns = job.executed_ns
            ticket.finished_ns = job.finished_ns
            finished.append(ticket)
        self._outcomes.completed([ticket for ticket in finished if self.respond(ticket)])

    def respond(self, ticket: Ticket) -> bool:
        """Answers with the ticket's results; whether it was a success that was answered."""
        if ticket.done:
            return False  # ended by the answer to another one, a moment ago
        try:
            response = response_of(ticket)
        except Exception as error:  # noqa: BLE001 - one answer must not stop the others
            self.fail(ticket, "fail", endings.unanswerable(ticket, error))
            return False
        self._complete(ticket, response)
        return True

    def answer(self, ticket: Ticket, response: InferenceResponse) -> None:
        """Ends a request that did not run in a batch of its own: an ensemble's, a cached one."""
        if not ticket.done:
            if not ticket.admitted_ns:
                ticket.never_ran(self._now_ns())
            elif not ticket.finished_ns:  # its answers came one after another
                ticket.executed_ns = ticket.finished_ns = self._now_ns()
                ticket.batched_ns = ticket.batched_ns or ticket.finished_ns
                ticket.started_ns = ticket.started_ns or ticket.batched_ns
            self._complete(ticket, response)
            self._outcomes.completed([ticket])

    def answer_unrun(self, ticket: Ticket) -> None:
        """Ends a request of which nothing was to be run: its task makes an answer of nothing."""
        ticket.never_ran(self._now_ns())
        self._outcomes.completed([ticket] if self.respond(ticket) else [])

    def _complete(self, ticket: Ticket, response: InferenceResponse) -> None:
        self._end(ticket)
        try:
            ticket.reply.complete(response, ticket)
        except Exception:  # noqa: BLE001 - one broken connection must not stop the others
            _LOG.exception("a reply could not be delivered")

    def _reject_request(self, action: RejectRequest) -> None:
        ticket = whole_of(self._parts.pop(action.request_id))
        self.fail(ticket, "reject", endings.rejected(ticket, action))

    def _expire_requests(self, action: ExpireRequests) -> None:
        now_ns = self._now_ns()
        for request_id in action.request_ids:
            ticket = whole_of(self._parts.pop(request_id))
            waited_ns = now_ns - ticket.arrived_ns
            error = endings.expired(ticket, waited_ns=waited_ns, running=action.running)
            self.fail(ticket, "expire", error)

    def _forget_requests(self, action: CancelRequests) -> None:
        for request_id in action.request_ids:
            del self._parts[request_id]

    def _fail_requests(self, action: FailRequests) -> None:
        job = self._job
        assert job is not None
        error = job.overtime or job.error or InferenceFailed("the batch failed without saying why")
        for request_id in action.request_ids:
            self.fail(whole_of(self._parts.pop(request_id)), "fail", error)

    def fail(self, ticket: Ticket, outcome: str, error: HeadraceError) -> None:
        """Ends a request without an answer; ``outcome`` is reject, expire or fail."""
        if ticket.done:
            return
        parts = ticket.all_parts()
        self._end(ticket)
        self._outcomes.ended(ticket, outcome, error.code)
        self._withdraw(parts)
        try:
            ticket.reply.fail(detached(error))
        except Exception:  # noqa: BLE001 - one broken connection must not stop the others
            _LOG.exception("a reply could not be delivered")

    def _withdraw(self, parts: Sequence[Member]) -> None:
        """Takes what is left of a request that has ended out of the queues."""
        reported: list[int] = []
        for part in parts:
            if part.request_id in self._parts:
                if self._arrived.pop(part.request_id, None) is None:
                    reported.append(part.request_id)
                else:  # it ended in the very turn it came in; the core need never know
                    del self._parts[part.request_id]
        if reported:
            self._drive(RequestsCancelled(tuple(reported)))
        self._streams.stop(parts)

    def _end(self, ticket: Ticket) -> None:
        ticket.done = True
        self._tickets -= 1
        served = ticket.served
        served.busy -= 1
        if not served.busy and served.on_idle is not None:
            served.on_idle()
        if ticket.on_end is not None:
            ticket.on_end(ticket)
            ticket.on_end = None
        if ticket.parts:
            # Whole and parts must not hold one another, or the garbage collector has to come.
            ticket.parts = ()
        if not self._tickets:
            self._idle.set()

    # -- the whole -------------------------------------------------------------------------

    def statistics(self) -> SchedulerStatistics:
        """The core's own snapshot."""
        return self._scheduler.statistics()

    async def drain(self, timeout_s: float) -> bool:
        """Refuses what is new and waits for what is under way; False if some is left."""
        self._draining = True
        if not self._tickets:
            return True
        self._idle.clear()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Ends the threads. Requests still under way are not answered: drain first."""
        self._wakeup.cancel()
        self._intakes.close()
        self._instances.close(timeout_s=5.0)
