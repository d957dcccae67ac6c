"""What the engine tells its instrument, and the answer it builds; no decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.engine.classify import classified
from headrace.engine.inflight import Ticket, whole_of
from headrace.engine.instances import BatchJob
from headrace.engine.served import ServedModel
from headrace.errors import CapacityError, HeadraceError, counts_against_model
from headrace.runtimes.host import Measurement
from headrace.tasks.base import Item, Task
from headrace.telemetry.instruments import BatchRecord, Instrument, RequestRecord, SeriesRecord
from headrace.types import InferenceRequest, InferenceResponse, Tensor, Usage


class Outcomes:
    """Turns jobs and tickets into records and responses."""

    def __init__(self, instrument: Instrument, now_ns: Callable[[], int]) -> None:
        self._instrument = self._first = instrument
        self.counts_only = True
        """Whether nobody looks at single requests (a trace does) beside who counts them."""
        self._now_ns = now_ns

    def watch_with(self, instrument: Instrument) -> None:
        """Tells ``instrument`` from now on, and nobody else."""
        self.counts_only = instrument is self._first
        self._instrument = instrument

    def cache_looked_up(self, model: str, version: str, *, hit: bool, ns: int, rows: int) -> None:
        """The response cache was asked."""
        self._instrument.cache_looked_up(model, version, hit=hit, ns=ns, rows=rows)

    def semantic_cache_asked(self, model: str, how: str) -> None:
        """A semantic cache was."""
        self._instrument.semantic_cache_asked(model, how)

    def completed(self, tickets: Sequence[RequestRecord]) -> None:
        """These succeeded."""
        if tickets:
            self._instrument.requests_completed(tickets, self._now_ns())

    def ended(self, record: RequestRecord, outcome: str, reason: str) -> None:
        """One request ended in another way."""
        if outcome == "cancel" and isinstance(record, Ticket) and record.served.decoupled:
            self.answered(record, "cancel")
        self._instrument.request_failed(record, outcome, reason, self._now_ns())

    def answered(self, ticket: Ticket, kind: str) -> None:
        """One of several answers came; ``kind`` as in ``Instrument.response_sent``."""
        now_ns = self._now_ns()
        since_ns = ticket.answered_ns or ticket.batched_ns or ticket.admitted_ns
        self._instrument.response_sent(ticket, ticket.answers, kind, since_ns, now_ns)
        ticket.answers += 1
        ticket.answered_ns = now_ns

    def refused(self, request: InferenceRequest, served: ServedModel, error: HeadraceError) -> None:
        """One request was not taken in at all."""
        record = RequestRecord(
            served.name,
            served.version,
            arrived_ns=request.arrived_ns,
            decoded_ns=request.decoded_ns,
        )
        outcome = "reject" if isinstance(error, CapacityError) else "fail"
        self.ended(record, outcome, error.code)

    def measured(self, model: str, version: str, instance: int, measurement: Measurement) -> None:
        """A model counts something itself."""
        record = SeriesRecord(
            measurement.family,
            measurement.kind,
            measurement.description,
            measurement.labels,
            measurement.value,
            measurement.bounds,
            measurement.counts,
        )
        self._instrument.model_measured(model, version, instance, record)

    def batch(self, job: BatchJob) -> None:
        """One batch ran. One that took too long was counted when it was given up."""
        if job.overtime is not None:
            return
        length = job.padded_length
        served = job.served.whole or job.served
        requests = len(job.parts)
        # Of a batch that failed together each is run again by itself, and counted then.
        if job.error is None or requests == 1 or served.takes_requests:
            failed, refused = failed_of(job)
            served.health.batch(
                requests - refused,
                failed,
                job.finished_ns - whole_of(job.parts[0]).arrived_ns,
                job.finished_ns,
            )
        useful = sum([part.rows * part.length for part in job.parts]) if length else 0
        self._instrument.batch_executed(
            BatchRecord(
                job.served.name,
                job.served.version,
                len(job.parts),
                job.rows,
                job.collated_ns - job.started_ns,
                job.executed_ns - job.collated_ns,
                job.finished_ns - job.executed_ns,
                useful,
                job.rows * length,
                job.inline,
            )
        )


def failed_of(job: BatchJob) -> tuple[int, int]:
    """How many of its requests failed by the model's fault, and how many by their callers'."""
    errors: Sequence[HeadraceError] = ()
    if job.error is not None:
        errors = [job.error] * len(job.parts)
    elif job.served.takes_requests:
        errors = [piece for piece in job.pieces if isinstance(piece, HeadraceError)]
    failed = sum([counts_against_model(error) for error in errors])
    return failed, len(errors) - failed


def response_of(ticket: Ticket) -> InferenceResponse:
    """The answer, with the outputs asked for in the order asked for.

    Raises:
        HeadraceError: the task could not make an answer of the results.
    """
    served, request = ticket.served, ticket.request
    sole, arrays, usage = served.sole_output, ticket.result, None
    if sole is not None and arrays is not None:  # the common case has nothing to pair
        array = arrays[0]
        outputs = [Tensor(sole.name, sole.datatype, array.shape, array)]
    elif served.finish is not None:
        outputs = wanted_of(served.finish(ticket), request, served)
        parameters = getattr(ticket.result, "parameters", None)
        return InferenceResponse(served.name, served.version, request.id, outputs, parameters, None)
    elif served.task is None:
        outputs = [
            Tensor(spec.name, spec.datatype, array.shape, array)
            for spec, array in zip(served.loaded.outputs, arrays or (), strict=True)
        ]
    else:
        usage = Usage(ticket.tokens)
        outputs = _finish(served.task, ticket)
    if request.outputs is not None:
        index = served.output_index
        outputs = [outputs[index[wanted.name]] for wanted in request.outputs]
        for wanted in request.outputs:
            if wanted.classification:
                outputs = classified(outputs, request.outputs, served)
                break
    return InferenceResponse(served.name, served.version, request.id, outputs, None, usage)


def wanted_of(
    outputs: list[Tensor], request: InferenceRequest, served: ServedModel
) -> list[Tensor]:
    """Those asked for, in that order and form; a model may have left some out.

    Raises:
        InvalidRequest: classes are wanted of an output that has none.
    """
    if request.outputs is None:
        return outputs
    there = {tensor.name: tensor for tensor in outputs}
    outputs = [there[wanted.name] for wanted in request.outputs if wanted.name in there]
    if any(wanted.classification for wanted in request.outputs):
        outputs = classified(outputs, request.outputs, served)
    return outputs


def _finish(task: Task, ticket: Ticket) -> list[Tensor]:
    parts = ticket.all_parts()
    items = [Item(tuple(part.arrays), part.rows, part.length) for part in parts]
    results = [part.result for part in parts if part.result is not None]
    return task.finish(ticket.request, items, results)
