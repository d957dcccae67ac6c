"""What has to go so that a model fits: reserve first, load afterwards.

The value of keeping a model is what its absence would cost, for each byte it takes: how often it
is asked for, times how long it takes to bring back, over its size. That is the rule of
GreedyDual-Size-Frequency (Cherkasova, HP Labs 1998) with frequency as a rate that fades, so that
last week's favourite does not stay for ever.

Law: what is pinned never goes; nothing goes that need not; who cannot fit is told what would have
to go.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

HALF_LIFE_NS = 600 * 1_000_000_000
"""Of the interest in a model: after ten minutes without a request it counts half."""


class Interest:
    """How often a model is asked for, fading by half every :data:`HALF_LIFE_NS`."""

    __slots__ = ("_at_ns", "_weight", "since_ns")

    def __init__(self, now_ns: int) -> None:
        self._weight = 0.0
        self._at_ns = self.since_ns = now_ns

    def used(self, requests: int, now_ns: int) -> None:
        """So many requests came."""
        self._weight = self.at(now_ns) + requests
        self._at_ns = max(now_ns, self._at_ns)

    def at(self, now_ns: int) -> float:
        """Requests, those of one half-life ago counted half."""
        age_ns = max(0, now_ns - self._at_ns)
        return float(self._weight * 0.5 ** (age_ns / HALF_LIFE_NS))


class Resident(msgspec.Struct, frozen=True):
    """A model in memory.

    ``interest`` as :meth:`Interest.at`; ``reload_ns``: how long bringing it back takes;
    ``held``: it may not go, and ``why`` not ("pinned", "a step of ensemble 'x'").
    """

    name: str
    size_bytes: int
    interest: float = 0.0
    reload_ns: int = 0
    last_used_ns: int = 0
    busy: bool = False
    held: bool = False
    why: str = ""

    @property
    def value(self) -> float:
        """What each byte of it is worth: nanoseconds of waiting saved, by requests expected."""
        # Nobody's interest is quite nothing: among the unasked the dearest to reload stays.
        return (self.interest + 1e-3) * (self.reload_ns + 1) / max(1, self.size_bytes)


class Placement(msgspec.Struct, frozen=True):
    """What is to go, worst first; ``fits`` False: not even that would be enough.

    ``missing_bytes``: how much too little there would still be. ``held``: what may not go.
    """

    fits: bool
    evict: tuple[str, ...] = ()
    missing_bytes: int = 0
    held: tuple[Resident, ...] = ()


def place(
    needed_bytes: int, residents: Sequence[Resident], *, budget_bytes: int, used_bytes: int
) -> Placement:
    """What must go before ``needed_bytes`` more are taken.

    Args:
        needed_bytes: of the newcomer, at its worst moment.
        residents: everything that is in memory.
        budget_bytes: for all of it together.
        used_bytes: taken now; may be more than the residents' sizes say.
    """
    room = budget_bytes - used_bytes
    if needed_bytes <= room:
        return Placement(fits=True)
    movable = sorted(
        (each for each in residents if not each.held),
        # What has requests under way has to be waited for, so it goes after all others.
        key=lambda each: (each.busy, each.value, each.last_used_ns, each.name),
    )
    chosen: list[Resident] = []
    for each in movable:
        if needed_bytes <= room:
            break
        chosen.append(each)
        room += each.size_bytes
    held = tuple(sorted((r for r in residents if r.held), key=lambda r: -r.size_bytes))
    if needed_bytes > room:
        names = tuple(each.name for each in chosen)
        return Placement(False, names, needed_bytes - room, held)
    spared: list[Resident] = []
    for each in reversed(chosen):  # a large one may have made small ones' leaving needless
        if room - each.size_bytes >= needed_bytes:
            room -= each.size_bytes
            spared.append(each)
    return Placement(True, tuple(each.name for each in chosen if each not in spared))
