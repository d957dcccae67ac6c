"""What becomes of a request between its check and the queue, put together once for a model.

In this order, each only where the model needs it: answered from the cache; brought into the
model's own shape; prepared by a task, run as an ensemble, or made to wait for its turn in a
sequence (``served.intake``); queued. A model that needs none of it has no intake at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

from headrace.engine import declared
from headrace.engine.catalog import Catalog
from headrace.engine.inflight import Reply, Ticket
from headrace.engine.outcomes import Outcomes
from headrace.engine.prepared import Preparation
from headrace.engine.response_cache import ResponseCache
from headrace.engine.semantic_cache import SemanticCache, can_be_semantic
from headrace.engine.served import Intake, ServedModel
from headrace.engine.shared_cache import SharedTier
from headrace.errors import HeadraceError
from headrace.types import InferenceRequest, InferenceResponse

_LOG = logging.getLogger("headrace.engine")


class _Engine(Protocol):
    """What intakes need of the engine."""

    catalog: Catalog

    def submit(
        self, request: InferenceRequest, reply: Reply, *, nested: bool = False
    ) -> Ticket: ...

    def admit(self, ticket: Ticket) -> None: ...

    def fail(self, ticket: Ticket, outcome: str, error: HeadraceError) -> None: ...

    def answer(self, ticket: Ticket, response: InferenceResponse) -> None: ...

    def answer_unrun(self, ticket: Ticket) -> None: ...


class Intakes:
    """One for an engine. On the event loop.

    Args:
        preprocess_threads: of tasks.
        cache_bytes: what the response cache may hold; 0: there is none.
        shared: where answers are kept for other servers too; None: nowhere.
    """

    def __init__(
        self,
        engine: _Engine,
        loop: asyncio.AbstractEventLoop,
        now_ns: Callable[[], int],
        outcomes: Outcomes,
        *,
        preprocess_threads: int,
        cache_bytes: int,
        shared: SharedTier | None = None,
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._outcomes = outcomes
        self._admit = engine.admit
        self._preparation = Preparation(
            loop,
            preprocess_threads,
            admit=engine.admit,
            fail=engine.fail,
            answer=engine.answer_unrun,
        )
        self.cache = ResponseCache(
            cache_bytes,
            loop=loop,
            now_ns=now_ns,
            answer=engine.answer,
            fail=engine.fail,
            outcomes=outcomes,
            shared=shared,
        )

    def lay(self, served: ServedModel) -> None:
        """Completes ``served.intake``; before the model is published."""
        then = served.intake
        if then is None and served.task is not None:
            then = self._preparation.take
        signature = served.signature
        if signature is not None and (signature.reshapes or signature.rows_max):
            then = declared.shaping(signature, served, then or self._admit)
        if self._is_cached(served):
            if served.config.cache.semantic_model:
                then = self._semantic(served, then or self._admit)
            then = self.cache.before(then or self._admit)
        served.intake = then

    def _semantic(self, served: ServedModel, then: Intake) -> Intake:
        if not can_be_semantic(served):
            _LOG.warning(
                "model %s has no semantic cache: it takes other things than one text", served.name
            )
            return then
        told = partial(self._outcomes.semantic_cache_asked, served.name)
        return SemanticCache(served, self._engine, self._loop, told).before(then)

    def forget(self, served: ServedModel) -> None:
        """The model is gone."""
        self.cache.forget(served)

    def close(self) -> None:
        """Ends the threads."""
        self._preparation.close()

    def _is_cached(self, served: ServedModel) -> bool:
        config = served.config
        return (
            config.response_cache
            and self.cache.store.max_bytes > 0
            and not served.decoupled
            and config.sequence is None
        )
