"""Answers to texts that mean the same, by the distance of their embeddings.

Law: it is a guess, and says so. Off unless a model names the model that embeds; never across
tenants, parameters or outputs asked for; marked in the answer's parameters
(``headrace_cache: "semantic"``, ``headrace_similarity``); and a part of the hits is run all the
same, so that the share of false ones is measured and not hoped for.

An answer is false where the one that was run differs: strings and integers at all, floating-point
numbers by more than a twentieth, absolute or relative.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from typing import Protocol

import numpy as np

from headrace.engine.catalog import Catalog
from headrace.engine.inflight import Reply, Ticket
from headrace.engine.response_cache import scope_of
from headrace.engine.served import Intake, ServedModel
from headrace.errors import HeadraceError
from headrace.telemetry.instruments import RequestRecord
from headrace.types import InferenceRequest, InferenceResponse, Tensor

_LOG = logging.getLogger("headrace.engine")

_INLINE_MAX = 256
"""Embeddings that are compared on the event loop; more go to a thread: a millisecond there is a
millisecond for everybody."""

_CLOSE = 0.05


class Engine(Protocol):
    """What is needed of the engine."""

    catalog: Catalog

    def submit(self, request: InferenceRequest, reply: Reply, *, nested: bool = False) -> Ticket:
        """Takes a request in."""
        ...

    def answer(self, ticket: Ticket, response: InferenceResponse) -> None:
        """Ends a request with a response."""
        ...

    def fail(self, ticket: Ticket, outcome: str, error: HeadraceError) -> None:
        """Ends a request with an error."""
        ...


class Neighbours:
    """Embeddings of unit length and what they stand for; the oldest goes first.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._vectors = np.empty((0, 0), np.float32)
        self._scopes: list[Hashable] = []
        self._responses: list[InferenceResponse] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._responses)

    def nearest(
        self, vector: np.ndarray, scope: Hashable
    ) -> tuple[float, InferenceResponse | None]:
        """The cosine of the nearest of its scope, and the response; (0.0, None): there is none."""
        count = len(self._responses)
        if not count or self._vectors.shape[1] != len(vector):
            return 0.0, None
        cosines = self._vectors[:count] @ vector
        for index in np.argsort(cosines)[::-1]:
            if self._scopes[index] == scope:
                return float(cosines[index]), self._responses[index]
            if cosines[index] <= 0.0:
                break
        return 0.0, None

    def add(self, vector: np.ndarray, scope: Hashable, response: InferenceResponse) -> None:
        """Keeps one more."""
        if self._vectors.shape[1] != len(vector):  # the first, or another model embeds now
            self._vectors = np.empty((min(self._most, 64), len(vector)), np.float32)
            self._scopes, self._responses, self._next = [], [], 0
        if len(self._responses) < self._most:
            if len(self._responses) == len(self._vectors):
                room = np.empty((min(self._most, 2 * len(self._vectors)), len(vector)), np.float32)
                room[: len(self._vectors)] = self._vectors
                self._vectors = room
            self._vectors[len(self._responses)] = vector
            self._scopes.append(scope)
            self._responses.append(response)
            return
        self._vectors[self._next] = vector
        self._scopes[self._next] = scope
        self._responses[self._next] = response
        self._next = (self._next + 1) % self._most


class SemanticCache:
    """One for a model. On the event loop.

    Args:
        told: called with "hit", "miss", "verified" or "false".
    """

    def __init__(
        self,
        served: ServedModel,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        told: Callable[[str], None],
    ) -> None:
        self._settings = served.config.cache
        self._engine = engine
        self._loop = loop
        self._told = told
        self._neighbours = Neighbours(self._settings.semantic_entries)
        self._unverified = 0.0
        self._warned = False

    def before(self, then: Intake) -> Intake:
        """The intake that answers what it can and hands the rest to ``then``."""

        def take(ticket: Ticket) -> None:
            text = _text_of(ticket.request)
            if text is None:
                then(ticket)
            else:
                self._embed(ticket, text, then)

        return take

    def _embed(self, ticket: Ticket, text: np.ndarray, then: Intake) -> None:
        settings = self._settings
        name, request = settings.semantic_model, ticket.request
        reply = _Embedded(self, ticket, then)
        try:
            (spec, *_) = self._engine.catalog.metadata(name, "").inputs
            shape = (1,) * len(spec.shape)
            tensor = Tensor(spec.name, "BYTES", shape, text.reshape(shape))
            embedder = InferenceRequest(name, [tensor], tenant=request.tenant)
            embedder.timeout_ns = request.timeout_ns or ticket.served.timeout_ns
            asked = self._engine.submit(embedder, reply, nested=True)
        except HeadraceError as error:
            self.without(ticket, then, error)
            return
        ticket.when_ended(lambda _: asked.cancel())

    def without(self, ticket: Ticket, then: Intake, error: HeadraceError) -> None:
        """There is no embedding: the model is asked."""
        if not self._warned:
            self._warned = True
            _LOG.warning(
                "model %s: no semantic cache while '%s' does not embed: %s",
                ticket.model,
                self._settings.semantic_model,
                error.message,
            )
        self._run(ticket, then)

    def embedded(self, ticket: Ticket, then: Intake, vector: np.ndarray) -> None:
        """The embedding of its text is there."""
        length = float(np.linalg.norm(vector))
        if ticket.done or not length:
            if not ticket.done:
                self._run(ticket, then)
            return
        unit = (vector / length).astype(np.float32)
        scope = scope_of(ticket)
        if len(self._neighbours) <= _INLINE_MAX:
            self._decide(ticket, then, unit, self._neighbours.nearest(unit, scope))
            return
        search = self._loop.run_in_executor(None, self._neighbours.nearest, unit, scope)
        search.add_done_callback(lambda found: self._decide(ticket, then, unit, found.result()))

    def _decide(
        self,
        ticket: Ticket,
        then: Intake,
        vector: np.ndarray,
        nearest: tuple[float, InferenceResponse | None],
    ) -> None:
        if ticket.done:
            return
        cosine, kept = nearest
        if kept is None or cosine < self._settings.semantic_threshold:
            self._told("miss")
            ticket.reply = _Keeping(self, ticket, vector)
            self._run(ticket, then)
            return
        self._told("hit")
        self._unverified += self._settings.semantic_verify
        if self._unverified >= 1.0:
            self._unverified -= 1.0
            ticket.reply = _Verifying(self._told, kept, ticket.reply)
            self._run(ticket, then)
            return
        marks = {"headrace_cache": "semantic", "headrace_similarity": round(cosine, 4)}
        self._engine.answer(
            ticket,
            InferenceResponse(
                ticket.served.name,
                ticket.served.version,
                ticket.request.id,
                list(kept.outputs),
                (kept.parameters or {}) | marks,
                kept.usage,
            ),
        )

    def keep(self, ticket: Ticket, vector: np.ndarray, response: InferenceResponse) -> None:
        """The model has answered."""
        outputs = [
            Tensor(t.name, t.datatype, t.shape, np.array(t.data, order="C"))
            for t in response.outputs
        ]
        kept = InferenceResponse(
            response.model_name, response.model_version, "", outputs, response.parameters, None
        )
        self._neighbours.add(vector, scope_of(ticket), kept)

    def _run(self, ticket: Ticket, then: Intake) -> None:
        try:
            then(ticket)
        except HeadraceError as error:
            self._engine.fail(ticket, "reject", error)


class _Embedded:
    """Where the embedding goes."""

    def __init__(self, cache: SemanticCache, ticket: Ticket, then: Intake) -> None:
        self._cache, self._ticket, self._then = cache, ticket, then

    def complete(self, response: InferenceResponse, _record: RequestRecord) -> None:
        """It is there."""
        vector = np.asarray(response.outputs[0].data, np.float32).reshape(-1)
        self._cache.embedded(self._ticket, self._then, vector)

    def fail(self, error: HeadraceError) -> None:
        """There is none."""
        if not self._ticket.done:
            self._cache.without(self._ticket, self._then, error)


class _Keeping:
    """The reply of a request whose answer is to be kept."""

    def __init__(self, cache: SemanticCache, ticket: Ticket, vector: np.ndarray) -> None:
        self._cache, self._ticket, self._vector = cache, ticket, vector
        self._reply = ticket.reply

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        """Keeps the answer and passes it on."""
        self._cache.keep(self._ticket, self._vector, response)
        self._reply.complete(response, record)

    def fail(self, error: HeadraceError) -> None:
        """Passes it on."""
        self._reply.fail(error)


class _Verifying:
    """The reply of a request that would have been answered from here."""

    def __init__(self, told: Callable[[str], None], kept: InferenceResponse, reply: Reply) -> None:
        self._told, self._kept, self._reply = told, kept, reply

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        """Compares what is with what would have been."""
        self._told("verified" if _same(self._kept, response) else "false")
        self._reply.complete(response, record)

    def fail(self, error: HeadraceError) -> None:
        """Passes it on."""
        self._reply.fail(error)


def can_be_semantic(served: ServedModel) -> bool:
    """Whether what is asked of the model is a text, and nothing else."""
    inputs = served.metadata.inputs
    return len(inputs) == 1 and inputs[0].datatype == "BYTES"


def _text_of(request: InferenceRequest) -> np.ndarray | None:
    """Its one text; None: it has none, or several."""
    tensors = request.inputs
    if len(tensors) != 1 or tensors[0].datatype != "BYTES" or tensors[0].data.size != 1:
        return None
    return tensors[0].data


def _same(kept: InferenceResponse, response: InferenceResponse) -> bool:
    if len(kept.outputs) != len(response.outputs):
        return False
    for before, now in zip(kept.outputs, response.outputs, strict=True):
        if before.data.shape != now.data.shape:
            return False
        if before.data.dtype.kind == "f":
            if not np.allclose(before.data, now.data, rtol=_CLOSE, atol=_CLOSE, equal_nan=True):
                return False
        elif not np.array_equal(before.data, now.data):
            return False
    return True
