"""What the engine tells its instrument, and the answer it builds; no decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.engine.inflight import Ticket
from headrace.engine.instances import BatchJob
from headrace.errors import CapacityError, HeadraceError
from headrace.tasks.base import Item
from headrace.telemetry.instruments import BatchRecord, Instrument, RequestRecord
from headrace.types import InferenceResponse, Tensor, Usage


class Outcomes:
    """Turns jobs and tickets into records and responses."""

    def __init__(self, instrument: Instrument, now_ns: Callable[[], int]) -> None:
        self._instrument = instrument
        self._now_ns = now_ns

    def completed(self, tickets: Sequence[Ticket]) -> None:
        """These succeeded."""
        if tickets:
            records = [ticket.record for ticket in tickets]
            self._instrument.requests_completed(records, self._now_ns())

    def ended(self, record: RequestRecord, outcome: str, reason: str) -> None:
        """One request ended in another way."""
        self._instrument.request_failed(record, outcome, reason, self._now_ns())

    def refused(self, record: RequestRecord, error: HeadraceError) -> None:
        """One request was not taken in at all."""
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

    @staticmethod
    def response(ticket: Ticket) -> InferenceResponse:
        """The answer, with the outputs asked for in the order asked for."""
        served, request = ticket.served, ticket.request
        usage = None
        if served.task is None:
            arrays = ticket.result
            assert arrays is not None
            outputs = [
                Tensor(name, datatype, array.shape, array)
                for (name, datatype), array in zip(served.output_kinds, arrays, strict=True)
            ]
        else:
            parts = ticket.all_parts()
            items = [Item(tuple(part.arrays), part.rows, part.length) for part in parts]
            results = [part.result for part in parts if part.result is not None]
            outputs = served.task.finish(request, items, results)
            usage = Usage(ticket.tokens)
        if request.outputs is not None:
            index = served.output_index
            outputs = [outputs[index[wanted.name]] for wanted in request.outputs]
        return InferenceResponse(served.name, served.version, request.id, outputs, None, usage)
