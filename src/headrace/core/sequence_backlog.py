"""Which sequence gets the next free slot: that of the waiting caller who owns the fewest.

A caller may own every slot while no other waits, so that one client can use the whole model. Among
callers who own equally many they take turns; the sequences of one caller keep their order.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from headrace.core.sequence_events import SequenceKey


class Backlog:
    """The sequences that wait for a slot, and how many slots each caller owns.

    Args:
        max_per_caller: slots that one caller may own; 0: as many as there are.
    """

    def __init__(self, max_per_caller: int = 0) -> None:
        self._max = max_per_caller
        # Ordered: a dict that is emptied from its front is searched from where that was, so taking
        # the first n would cost n squared.
        self._waiting: dict[str, OrderedDict[SequenceKey, None]] = {}
        self._owned: dict[str, int] = {}
        self._ranks: dict[int, OrderedDict[str, None]] = {}
        """Who waits, by how many slots they own: callers may be thousands, slots are few."""

    def __contains__(self, key: SequenceKey) -> bool:
        return key in self._waiting.get(key[0], ())

    @property
    def can_take(self) -> bool:
        """Whether :meth:`take` would find one."""
        return self._next_caller() is not None

    def may_own_more(self, caller: str) -> bool:
        """Whether the caller is below its bound."""
        return not self._max or self._owned.get(caller, 0) < self._max

    def add(self, key: SequenceKey) -> None:
        """One more waits."""
        caller = key[0]
        if caller not in self._waiting:
            self._waiting[caller] = OrderedDict()
            self._enter(caller)
        self._waiting[caller][key] = None

    def discard(self, key: SequenceKey) -> None:
        """It waits no longer, if it did."""
        waiting = self._waiting.get(key[0])
        if waiting is not None:
            waiting.pop(key, None)
            if not waiting:
                self._leave(key[0])
                del self._waiting[key[0]]

    def take(self) -> SequenceKey | None:
        """The one that gets a slot, which its caller owns from now on; None: none may."""
        caller = self._next_caller()
        if caller is None:
            return None
        key, _ = self._waiting[caller].popitem(last=False)
        self._change(caller, 1)
        if not self._waiting[caller]:
            self._leave(caller)
            del self._waiting[caller]
        return key

    def gave_back(self, caller: str) -> None:
        """A slot of the caller is free."""
        self._change(caller, -1)

    def _change(self, caller: str, slots: int) -> None:
        """Counts slots of the caller, who is behind the others of its rank then."""
        waits = caller in self._waiting
        if waits:
            self._leave(caller)
        self._owned[caller] = self._owned.get(caller, 0) + slots
        if not self._owned[caller]:
            del self._owned[caller]
        if waits:
            self._enter(caller)

    def _enter(self, caller: str) -> None:
        self._ranks.setdefault(self._owned.get(caller, 0), OrderedDict())[caller] = None

    def _leave(self, caller: str) -> None:
        rank = self._owned.get(caller, 0)
        del self._ranks[rank][caller]
        if not self._ranks[rank]:
            del self._ranks[rank]

    def _next_caller(self) -> str | None:
        fewest = min(self._ranks, default=0)
        if not self._ranks or (self._max and fewest >= self._max):
            return None
        return next(iter(self._ranks[fewest]))

    def check_invariants(self, owners: Iterable[str]) -> None:
        """Raises AssertionError. ``owners``: the caller of each slot that is taken."""
        assert self._owned == Counter(owners), "slots are not counted to their callers"
        assert not self._max or max(self._owned.values(), default=0) <= self._max, "over its bound"
        assert all(self._waiting.values()), "a caller is kept who waits for nothing"
        ranks = {caller: rank for rank, callers in self._ranks.items() for caller in callers}
        found = {caller: self._owned.get(caller, 0) for caller in self._waiting}
        assert ranks == found, "a caller who waits is in the wrong place"
