"""What can happen to sequences, and what must be done about it. Ids and flags; no payload.

Times are nanoseconds of one monotonic clock. Every request that arrives is either run once
(:class:`RunRequest`, and its end reported with :class:`RequestOver`), refused once
(:class:`RefuseRequest`) or expired once (:class:`ExpireWaiting`).
"""

from __future__ import annotations

import msgspec

from headrace.core.events import NEVER_NS

SequenceId = int | str
"""What the caller names a sequence by; a number and a text are never the same."""

SequenceKey = tuple[str, SequenceId]
"""Caller and id."""


class SequenceRequest(msgspec.Struct, frozen=True, gc=False):
    """One request of a sequence. ``start``: it begins it anew; ``end``: it is its last.

    ``caller``: who sent it. Equal ids of two callers are two sequences.
    """

    request_id: int
    sequence: SequenceId
    start: bool = False
    end: bool = False
    deadline_ns: int = NEVER_NS
    caller: str = ""

    @property
    def key(self) -> SequenceKey:
        """Whose sequence it is, and which of them."""
        return self.caller, self.sequence


class SequenceLimits(msgspec.Struct, frozen=True):
    """How much may be under way.

    slots           sequences of one instance at a time; the rest wait for one to end
    max_per_caller  slots of all instances that one caller may own; 0: as many as are free
    max_queue_size  requests waiting, in and behind slots; one more is refused
    idle_timeout_ns a sequence with nothing to do for so long is over
    """

    slots: int = 1
    max_queue_size: int = 4096
    idle_timeout_ns: int = NEVER_NS
    max_per_caller: int = 0


# -- events --------------------------------------------------------------------------------


class SequenceArrived(msgspec.Struct, frozen=True, gc=False):
    """One more request."""

    request: SequenceRequest


class RequestOver(msgspec.Struct, frozen=True, gc=False):
    """A request has ended, in whatever way, or was withdrawn. Unknown ids are ignored.

    ``ran`` False: the model was never told of it, although its turn had come.
    """

    request_id: int
    ran: bool = True


class InstanceLost(msgspec.Struct, frozen=True):
    """What an instance kept is gone. It, or who replaces it, can serve new sequences."""

    instance: int


class SequencesClosed(msgspec.Struct, frozen=True):
    """The model is being unloaded: what waits is refused, and so is whatever comes."""


class SequenceTimer(msgspec.Struct, frozen=True):
    """``next_wakeup_ns`` has come."""


SequenceEvent = SequenceArrived | RequestOver | InstanceLost | SequencesClosed | SequenceTimer


# -- actions -------------------------------------------------------------------------------


class RunRequest(msgspec.Struct, frozen=True, gc=False):
    """Run it there, now. ``request.start`` says that the sequence begins with it."""

    request: SequenceRequest
    instance: int
    slot: int


class RefuseRequest(msgspec.Struct, frozen=True, gc=False):
    """It will not be run, or not to its end.

    ``reason``: ``not_started``, ``queue_full``, ``instance_lost`` or ``model_removed``.
    """

    request_id: int
    reason: str


class ExpireWaiting(msgspec.Struct, frozen=True):
    """Their deadline passed before their turn came."""

    request_ids: tuple[int, ...]


class EndSequence(msgspec.Struct, frozen=True, gc=False):
    """It is over and its slot is free: forget what was kept for it.

    ``reason``: ``end``, ``idle``, ``withdrawn``, ``instance_lost`` or ``model_removed``.
    """

    sequence: SequenceId
    instance: int
    slot: int
    reason: str
    caller: str = ""


SequenceAction = RunRequest | RefuseRequest | ExpireWaiting | EndSequence
