"""Traces of single requests, in the JSON that Triton's tools read.

A :class:`Tracer` is an instrument that is only there while somebody wants traces: the engine
is told of it by ``Engine.watch_with``, so that tracing that is off costs nothing. It samples by
the settings of a request's model, and hands what it took to a thread that owns the files.

One trace is one object: ``{"id", "model_name", "model_version", "request_id", "timestamps":
[{"name", "ns"}]}``, times on the machine's monotonic clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from headrace.config import TraceConfig
from headrace.telemetry.instruments import (
    BatchRecord,
    Instrument,
    QueueRecord,
    RequestRecord,
    SeriesRecord,
)
from headrace.telemetry.trace_files import TraceFiles
from headrace.telemetry.trace_settings import TraceSettings, parse_update

MAX_TENSOR_ELEMENTS = 4096
"""Of one tensor in a trace; what is larger is cut, and its shape tells how much was left out."""


class _Sampler:
    """Counts the requests that one setting is for."""

    def __init__(self, settings: TraceSettings) -> None:
        self.settings = settings
        self.seen = 0
        self.left = settings.count

    def take(self) -> bool:
        settings = self.settings
        if not settings.levels or not settings.rate or not self.left:
            return False
        self.seen += 1
        if self.seen % settings.rate:
            return False
        if self.left > 0:
            self.left -= 1
        return True


class Tracing:
    """The settings of the server and of its models, and what comes of them.

    Args:
        config: what it starts with.
        first_id, step: traces are numbered so, that those of several processes differ.
        watch: called with itself when there is something to trace, with None when not.
    """

    def __init__(
        self,
        config: TraceConfig,
        *,
        watch: Callable[[Tracing | None], None],
        first_id: int = 1,
        step: int = 1,
    ) -> None:
        self._default = TraceSettings.of(config)
        self._server = _Sampler(self._default)
        self._own: dict[str, dict[str, Any]] = {}  # what was set for a model
        self._models: dict[str, _Sampler] = {}
        self._watch = watch
        self.files = TraceFiles()
        self._ids = itertools.count(first_id, step)
        self._tell()

    def body(self, model: str = "") -> dict[str, Any]:
        """The settings as the protocol shows them; ``trace_count`` is what is left."""
        sampler = self._models.get(model, self._server)
        return msgspec.structs.replace(sampler.settings, count=sampler.left).body()

    def update(self, model: str, update: Mapping[str, Any]) -> None:
        """Changes the server's settings, or a model's; of a model ``{}`` takes all back.

        Raises:
            InvalidRequest, Unsupported: nothing was changed.
        """
        changes = parse_update(update, self._server.settings)
        recount = "count" in changes
        if model:
            own = {**self._own.get(model, {}), **changes} if update else {}
            self._own[model] = {name: value for name, value in own.items() if value is not None}
            if not self._own[model]:
                del self._own[model]
        else:
            for name, value in changes.items():
                if value is None:
                    changes[name] = getattr(self._default, name)
            self._server = _changed(self._server, changes, recount=recount)
        self._models = {
            name: _changed(
                self._models.get(name, self._server),
                {**_fields(self._server.settings), **own},
                recount=recount and model in ("", name),
            )
            for name, own in self._own.items()
        }
        self.files.flush()
        self._tell()

    def sampler(self, model: str) -> _Sampler:
        """Who decides for a model's requests."""
        return self._models.get(model, self._server)

    def record(self, settings: TraceSettings, record: RequestRecord, ended_ns: int) -> None:
        """One request was chosen."""
        trace = _trace(next(self._ids), record, ended_ns, tensors="TENSORS" in settings.levels)
        self.files.add(settings.file, settings.log_frequency, trace)

    def close(self) -> None:
        """Writes what is left and gives the files back. Blocks for as long as that takes."""
        self.files.close()

    def _tell(self) -> None:
        samplers = (self._server, *self._models.values())
        wanted = any(each.settings.levels and each.settings.file for each in samplers)
        self._watch(self if wanted else None)


def _fields(settings: TraceSettings) -> dict[str, Any]:
    return msgspec.structs.asdict(settings)


def _changed(sampler: _Sampler, changes: Mapping[str, Any], *, recount: bool) -> _Sampler:
    """A new one where something is different or is said again: its counting begins anew."""
    settings = msgspec.structs.replace(sampler.settings, **changes)
    return sampler if settings == sampler.settings and not recount else _Sampler(settings)


class Tracer(Instrument):
    """Passes everything on to ``instrument``, and takes samples of the requests."""

    def __init__(self, tracing: Tracing, instrument: Instrument) -> None:
        self._tracing = tracing
        self._instrument = instrument

    def requests_completed(self, records: Sequence[RequestRecord], ended_ns: int) -> None:
        """Counts and samples."""
        self._instrument.requests_completed(records, ended_ns)
        if records:
            self._sample(records, ended_ns)

    def request_failed(
        self, record: RequestRecord, outcome: str, reason: str, ended_ns: int
    ) -> None:
        """A request that failed is as good a sample as any."""
        self._instrument.request_failed(record, outcome, reason, ended_ns)
        self._sample((record,), ended_ns)

    def _sample(self, records: Sequence[RequestRecord], ended_ns: int) -> None:
        sampler = self._tracing.sampler(records[0].model)
        for record in records:
            if sampler.take():
                self._tracing.record(sampler.settings, record, ended_ns)

    def batch_executed(self, record: BatchRecord) -> None:
        """Passed on."""
        self._instrument.batch_executed(record)

    def response_sent(
        self, record: RequestRecord, index: int, kind: str, since_ns: int, now_ns: int
    ) -> None:
        """Passed on."""
        self._instrument.response_sent(record, index, kind, since_ns, now_ns)

    def cache_looked_up(
        self, model: str, version: str, *, hit: bool, ns: int, rows: int = 1
    ) -> None:
        """Passed on."""
        self._instrument.cache_looked_up(model, version, hit=hit, ns=ns, rows=rows)

    def semantic_cache_asked(self, model: str, how: str) -> None:
        """Passed on."""
        self._instrument.semantic_cache_asked(model, how)

    def queue_changed(self, model: str, version: str, queue: QueueRecord) -> None:
        """Passed on."""
        self._instrument.queue_changed(model, version, queue)

    def model_loaded(self, model: str, version: str, seconds: float) -> None:
        """Passed on."""
        self._instrument.model_loaded(model, version, seconds)

    def model_measured(self, model: str, version: str, instance: int, record: SeriesRecord) -> None:
        """See :class:`Instrument`."""
        self._instrument.model_measured(model, version, instance, record)

    def model_unloaded(self, model: str, version: str) -> None:
        """Passed on."""
        self._instrument.model_unloaded(model, version)


def _trace(number: int, record: RequestRecord, ended_ns: int, *, tensors: bool) -> dict[str, Any]:
    stamps = (
        ("REQUEST_START", record.arrived_ns or record.admitted_ns or ended_ns),
        ("QUEUE_START", record.admitted_ns),
        ("COMPUTE_START", record.batched_ns),
        ("COMPUTE_INPUT_END", record.started_ns),
        ("COMPUTE_OUTPUT_START", record.executed_ns or record.finished_ns),
        ("COMPUTE_END", record.finished_ns),
        ("REQUEST_END", ended_ns),
    )
    request = getattr(record, "request", None)  # a ticket's; one that was refused has none
    version = record.version
    trace: dict[str, Any] = {
        "id": number,
        "model_name": record.model,
        "model_version": int(version) if version.isascii() and version.isdigit() else version,
        "request_id": getattr(request, "id", ""),
        "timestamps": [{"name": name, "ns": ns} for name, ns in stamps if ns],
    }
    context = request.trace_context if request is not None else ""
    if context:
        trace["traceparent"] = context
    if tensors and request is not None:
        trace["tensors"] = [
            _tensor("TENSOR_QUEUE_INPUT", each.name, each.datatype, each.data)
            for each in request.inputs
        ] + [
            _tensor("TENSOR_BACKEND_OUTPUT", spec.name, spec.datatype, array)
            for spec, array in _results(record)
        ]
    return trace


def _results(record: Any) -> list[tuple[Any, np.ndarray]]:
    """What the model itself gave, where the request was run as a whole."""
    result, served = getattr(record, "result", None), getattr(record, "served", None)
    if result is None or served is None:
        return []
    pairs = zip(served.loaded.outputs, result, strict=False)
    return [(spec, array) for spec, array in pairs if array is not None]


def _tensor(activity: str, name: str, datatype: str, data: np.ndarray) -> dict[str, Any]:
    """As Triton's activities have it: data as text, elements separated by commas."""
    flat = data.reshape(-1)[:MAX_TENSOR_ELEMENTS]
    return {
        "activity": activity,
        "name": name,
        "dtype": datatype,
        "shape": ",".join(map(str, data.shape)),
        "data": ",".join(
            [
                each.decode(errors="replace") if isinstance(each, bytes) else str(each)
                for each in flat.tolist()
            ]
        ),
    }
