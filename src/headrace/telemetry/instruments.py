"""Hooks that the engine calls when something happened. Telemetry may watch, never decide.

Removing every instrument changes no answer and no decision.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

OUTCOMES = ("complete", "reject", "expire", "cancel", "fail")
"""Every request ends in exactly one of these."""


class RequestRecord(msgspec.Struct, gc=False):
    """The stamps of one request on the engine's clock, in nanoseconds; 0 = never got there.

    arrived  the last byte of the request was read (front-end)
    decoded  it became an InferenceRequest
    admitted the scheduler took it
    batched  it was put in a batch
    started  the batch began to execute (after collate)
    finished the batch was back
    encoded  the answer is bytes
    written  the bytes were handed to the socket
    executed the model was done, and the batch not yet taken apart (0: not told apart)
    """

    model: str
    version: str
    rows: int = 0
    tokens: int = 0
    arrived_ns: int = 0
    decoded_ns: int = 0
    admitted_ns: int = 0
    batched_ns: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    encoded_ns: int = 0
    written_ns: int = 0
    executed_ns: int = 0


class QueueRecord(msgspec.Struct, frozen=True):
    """What the queue of a model is like now, and what became of due times so far.

    waiting       requests in the queue; ``running`` in a batch
    waiting_bytes of the input tensors of those that wait
    late          answered, but after the SLO (or the caller's own) had passed
    hurried       wanted sooner than an idle machine could have answered
    slowdown      how many times longer batches take now than they usually do
    """

    waiting: int
    running: int
    waiting_bytes: int = 0
    late: int = 0
    hurried: int = 0
    slowdown: float = 1.0


class BatchRecord(msgspec.Struct, gc=False):
    """One execution. Durations in nanoseconds.

    ``useful_tokens``/``padded_tokens`` are 0 for models without a length; padding waste is
    ``1 - useful / padded``.
    """

    model: str
    version: str
    requests: int
    rows: int
    collate_ns: int
    execute_ns: int
    split_ns: int
    useful_tokens: int = 0
    padded_tokens: int = 0
    inline: bool = False


class SeriesRecord(msgspec.Struct, frozen=True):
    """One series of a metric that a model makes itself, as it is now.

    ``kind`` is counter, gauge or histogram. The latter's ``value`` is the sum of what was
    observed, and ``counts``, one longer than ``bounds``, the observations in each bucket alone.
    """

    family: str
    kind: str
    description: str
    labels: dict[str, str]
    value: float
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


class Instrument:
    """Base of every watcher: override what you need; every method may stay as it is.

    All are called on the event loop and must be quick and must not raise.
    """

    def requests_completed(self, records: Sequence[RequestRecord], ended_ns: int) -> None:
        """The requests of one batch that succeeded, after their answers were handed on.

        They are all of one model, and were batched, started and finished at the same times.
        A front-end that encodes and writes at once has set ``encoded`` and ``written`` by
        now; otherwise these are 0.
        """

    def request_failed(
        self, record: RequestRecord, outcome: str, reason: str, ended_ns: int
    ) -> None:
        """One request ended in reject, expire, cancel or fail; ``reason`` is an error code."""

    def batch_executed(self, record: BatchRecord) -> None:
        """One batch ran to its end, with or without success."""

    def response_sent(
        self, record: RequestRecord, index: int, kind: str, since_ns: int, now_ns: int
    ) -> None:
        """A model with any number of answers gave one.

        Args:
            record: of the request.
            index: 0 for its first answer.
            kind: ``success``, ``empty`` (only the end was told), ``fail`` or ``cancel``.
            since_ns: when the one before it came, or the batch began.
            now_ns: when this one came.
        """

    def cache_looked_up(
        self, model: str, version: str, *, hit: bool, ns: int, rows: int = 1
    ) -> None:
        """The response cache was asked for a request of ``rows`` rows, which took ``ns``.

        With a miss ``ns`` includes keeping the answer.
        """

    def semantic_cache_asked(self, model: str, how: str) -> None:
        """A semantic cache said "hit" or "miss"; a hit that was run, "verified" or "false"."""

    def queue_changed(self, model: str, version: str, queue: QueueRecord) -> None:
        """What the queue of a model is like now."""

    def model_loaded(self, model: str, version: str, seconds: float) -> None:
        """A version became ready, ``seconds`` after its loading began."""

    def model_measured(self, model: str, version: str, instance: int, record: SeriesRecord) -> None:
        """An instance of a model has changed a metric of its own."""

    def model_unloaded(self, model: str, version: str) -> None:
        """A version is gone."""
