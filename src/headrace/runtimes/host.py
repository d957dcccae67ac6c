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


class Host(Protocol):
    """Any thread may call these."""

    def submit(self, request: InferenceRequest, reply: HostReply) -> None:
        """Asks a model. ``reply`` is called on the server's event loop, and must be quick."""
        ...

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a model can be asked."""
        ...
