"""When a model is in memory, and when a new version of it is taken back."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from headrace.limits import Seconds, Waiting
from headrace.units import Duration, duration_ns


class ResidencyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a model is in memory."""

    load: Literal["eager", "lazy"] = "eager"
    """``eager``: when the server starts. ``lazy``: when the first request comes."""

    idle_unload: Duration = ""
    """Without a request for so long it leaves memory, until the next one comes: ``"10m"``."""

    pinned: bool = False
    """True: it never leaves to make room for another."""

    max_waiting: Waiting = 256
    """Requests that may wait while it is loaded; the next is refused with ``Retry-After``."""

    max_wait_s: Seconds = 60.0
    """How long each of them waits at most."""

    @property
    def idle_unload_ns(self) -> int:
        """``idle_unload`` in nanoseconds; 0: never."""
        return duration_ns(self.idle_unload) if self.idle_unload else 0


class RolloutConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a new version that replaced another is taken back.

    The one before it stays in memory for ``guard``, if it has answered ``min_requests``: without
    those there is nothing to compare with.
    """

    guard: Duration = "2m"
    """How long a newcomer is watched; "": not at all, and the one before it leaves at once."""

    max_error_rate: Annotated[float, Meta(ge=0, le=1)] = 0.02
    """Of its requests more may fail than with the version before it, by this part of all."""

    max_slowdown: Annotated[float, Meta(ge=1)] = 2.0
    """More than 5 % of its requests may not take so many times what 95 % took before."""

    min_requests: Annotated[int, Meta(ge=10, le=1_000_000)] = 50
    """Before anything is decided."""

    shadow_warm_s: Annotated[float, Meta(ge=0, le=600)] = 5.0
    """Before it is asked, a newcomer runs batches of the shapes that the version before it had
    lately, for so long at most; 0: it does not."""

    @property
    def guard_ns(self) -> int:
        """``guard`` in nanoseconds; 0: none."""
        return duration_ns(self.guard) if self.guard else 0
