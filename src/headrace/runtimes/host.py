"""How a model calls other models of the same server; implemented by ``engine.host``."""

from __future__ import annotations

from typing import Any, Protocol

from headrace.errors import HeadraceError
from headrace.types import InferenceRequest, InferenceResponse


class HostReply(Protocol):
    """Where the answers go: any number of parts, and exactly one of the other two."""

    def part(self, response: InferenceResponse) -> None:
        """One answer, and not the last."""
        ...

    def complete(self, response: InferenceResponse, record: Any) -> None:
        """The last one, perhaps without outputs."""
        ...

    def fail(self, error: HeadraceError) -> None:
        """It ended in any other way."""
        ...


class HostCalled(Protocol):
    """A call under way."""

    def cancel(self) -> None:
        """Nobody waits for its answers any more; its reply is not called. Any thread."""
        ...


class Measurement(Protocol):
    """One series of a metric of a model's own, as it is now.

    ``kind`` is counter, gauge or histogram; the latter's ``value`` is the sum of what was
    observed, and ``counts`` the number of observations in each of its buckets, up to ``bounds``
    and beyond the last one.
    """

    family: str
    kind: str
    description: str
    labels: dict[str, str]
    value: float
    bounds: tuple[float, ...]
    counts: tuple[int, ...]


class Host(Protocol):
    """Any thread may call these."""

    def submit(self, request: InferenceRequest, reply: HostReply) -> HostCalled:
        """Asks a model. ``reply`` is called on the server's event loop, and must be quick."""
        ...

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a model can be asked."""
        ...

    def measured(self, model: str, version: str, instance: int, measurement: Measurement) -> None:
        """An instance of a model has changed a metric of its own."""
        ...
