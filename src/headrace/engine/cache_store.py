"""What the response cache keeps, and what goes when it is full: S3-FIFO, sized in bytes.

Law: the bytes never exceed the bound, every operation is O(1) amortised, and what is asked for once
does not push out what is asked for often. New entries stand in a small queue, a tenth of the
bytes; those asked for again before they reach its end go on to the main queue, the rest leave and
are only remembered by name (a *ghost*), so that one that comes back is believed at once. In the
main queue an entry goes round as many times as it was asked for, at most three.
(J. Yang, Y. Zhang, Z. Qiu, Y. Yue, R. Vigfusson: "FIFO queues are all you need for cache
eviction", SOSP 2023.)
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")

_SMALL = 0.1
_GHOSTS_MAX = 65_536
_FREQUENT = 3


class Entry(Generic[Value]):
    """One kept value. ``expires_ns`` 0: never."""

    __slots__ = ("asked", "expires_ns", "group", "key", "live", "main", "size_bytes", "value")

    def __init__(
        self, key: Hashable, value: Value, size_bytes: int, group: Hashable, expires_ns: int
    ) -> None:
        self.key = key
        self.value = value
        self.size_bytes = size_bytes
        self.group = group
        self.expires_ns = expires_ns
        self.asked = 0
        self.main = False
        self.live = True


class CacheStore(Generic[Value]):
    """Values by key.

    Args:
        max_bytes: of all together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.evicted = 0
        self._small_bytes = 0
        self._entries: dict[Hashable, Entry[Value]] = {}
        self._small: deque[Entry[Value]] = deque()
        self._main: deque[Entry[Value]] = deque()
        self._ghosts: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, now_ns: int) -> Value | None:
        """What is kept, unless its time is over."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_ns and entry.expires_ns <= now_ns:
            self._drop(entry)
            return None
        if entry.asked < _FREQUENT:
            entry.asked += 1
        return entry.value

    def put(
        self,
        key: Hashable,
        value: Value,
        size_bytes: int,
        *,
        group: Hashable = None,
        expires_ns: int = 0,
        now_ns: int = 0,
    ) -> bool:
        """Keeps it, whatever has to go; False: it alone is larger than all there may be."""
        old = self._entries.get(key)
        if old is not None:
            self._drop(old)
        if size_bytes > self.max_bytes:
            return False
        while self.size_bytes + size_bytes > self.max_bytes:
            self._evict(now_ns)
        entry = Entry(key, value, size_bytes, group, expires_ns)
        self._entries[key] = entry
        self.size_bytes += size_bytes
        if key in self._ghosts:
            del self._ghosts[key]
            entry.main = True
            self._main.append(entry)
        else:
            self._small_bytes += size_bytes
            self._small.append(entry)
        return True

    def forget(self, group: Hashable) -> None:
        """Drops all of a group."""
        for entry in [entry for entry in self._entries.values() if entry.group == group]:
            self._drop(entry)

    def _drop(self, entry: Entry[Value]) -> None:
        """It is gone; its place in the queue is skipped when that comes to its end."""
        entry.live = False
        del self._entries[entry.key]
        self.size_bytes -= entry.size_bytes
        if not entry.main:
            self._small_bytes -= entry.size_bytes
        for queue in (self._small, self._main):
            while queue and not queue[0].live:
                queue.popleft()

    def _evict(self, now_ns: int) -> None:
        """One step towards more room."""
        if self._small and (self._small_bytes > _SMALL * self.max_bytes or not self._main):
            self._pass_small(now_ns)
        elif self._main:
            self._pass_main(now_ns)

    def _pass_small(self, now_ns: int) -> None:
        entry = self._small.popleft()
        if not entry.live:
            return
        if entry.asked and not (entry.expires_ns and entry.expires_ns <= now_ns):
            entry.asked = 0
            entry.main = True
            self._small_bytes -= entry.size_bytes
            self._main.append(entry)
            return
        self._drop(entry)
        self.evicted += 1
        self._ghosts[entry.key] = None
        if len(self._ghosts) > min(_GHOSTS_MAX, max(16, len(self._entries))):
            self._ghosts.popitem(last=False)

    def _pass_main(self, now_ns: int) -> None:
        entry = self._main.popleft()
        if not entry.live:
            return
        if entry.asked and not (entry.expires_ns and entry.expires_ns <= now_ns):
            entry.asked -= 1
            self._main.append(entry)
            return
        self._drop(entry)
        self.evicted += 1
