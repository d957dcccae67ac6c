"""What the engine tells its instrument, and the answer it builds; no decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.engine.inflight import Ticket
from headrace.engine.instances import BatchJob
from headrace.engine.served import ServedModel
from headrace.errors import CapacityError, HeadraceError
from headrace.tasks.base import Item, Task
from headrace.telemetry.instruments import BatchRecord, Instrument, RequestRecord
from headrace.types import InferenceRequest, InferenceResponse, Tensor, Usage


class Outcomes:
    """Turns jobs and tickets into records and responses."""

    def __init__(self, instrument: Instrument, now_ns: Callable[[], int]) -> None:
        self._instrument = instrument
        self._now_ns = now_ns

    def completed(self, tickets: Sequence[Ticket]) -> None:
        """These succeeded."""
        if tickets:
            self._instrument.requests_completed(tickets, self._now_ns())

    def ended(self, record: RequestRecord, outcome: str, reason: str) -> None:
        """One request ended in another way."""
        self._instrument.request_failed(record, outcome, reason, self._now_ns())

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

    def batch(self, job: BatchJob) -> None:
        """One batch ran."""
        length = job.padded_length
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
    return InferenceResponse(served.name, served.version, request.id, outputs, None, usage)


def _finish(task: Task, ticket: Ticket) -> list[Tensor]:
    parts = ticket.all_parts()
    items = [Item(tuple(part.arrays), part.rows, part.length) for part in parts]
    results = [part.result for part in parts if part.result is not None]
    return task.finish(ticket.request, items, results)
