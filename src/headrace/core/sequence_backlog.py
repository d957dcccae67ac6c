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
        # Both ordered. A dict that is emptied from its front is searched from where that was, so
        # taking the first n would cost n squared.
        self._waiting: OrderedDict[str, OrderedDict[SequenceKey, None]] = OrderedDict()
        self._owned: dict[str, int] = {}

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
        self._waiting.setdefault(key[0], OrderedDict())[key] = None

    def discard(self, key: SequenceKey) -> None:
        """It waits no longer, if it did."""
        waiting = self._waiting.get(key[0])
        if waiting is not None:
            waiting.pop(key, None)
            if not waiting:
                del self._waiting[key[0]]

    def take(self) -> SequenceKey | None:
        """The one that gets a slot, which its caller owns from now on; None: none may."""
        caller = self._next_caller()
        if caller is None:
            return None
        waiting = self._waiting.pop(caller)
        key = next(iter(waiting))
        del waiting[key]
        if waiting:
            self._waiting[caller] = waiting  # behind the others
        self._owned[caller] = self._owned.get(caller, 0) + 1
        return key

    def gave_back(self, caller: str) -> None:
        """A slot of the caller is free."""
        self._owned[caller] -= 1
        if not self._owned[caller]:
            del self._owned[caller]

    def _next_caller(self) -> str | None:
        owned = self._owned
        callers = [caller for caller in self._waiting if self.may_own_more(caller)]
        return min(callers, key=lambda caller: owned.get(caller, 0), default=None)

    def check_invariants(self, owners: Iterable[str]) -> None:
        """Raises AssertionError. ``owners``: the caller of each slot that is taken."""
        assert self._owned == Counter(owners), "slots are not counted to their callers"
        assert not self._max or max(self._owned.values(), default=0) <= self._max, "over its bound"
        assert all(self._waiting.values()), "a caller is kept who waits for nothing"
