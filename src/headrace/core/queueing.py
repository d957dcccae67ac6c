"""One model's waiting requests: earliest due time first, then in order of arrival.

Law: a queue holds a request exactly once, never forgets one, and its length is bounded by
whoever appends (the scheduler checks the bounds first).

Where everybody waits equally long the earliest due is the oldest, so appending is almost always
at the back, and that and taking from the front are O(1). Taking from the middle (a batch picked
by length, a cancellation) leaves a tombstone, which is skipped later; when tombstones are the
majority the queue is rebuilt, so memory follows the number of live requests.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from headrace.core.events import QueuedRequest

_TOMBSTONES_MIN = 64
"""Below this many tombstones rebuilding costs more than skipping them."""


def _due(request: QueuedRequest) -> int:
    return request.due_ns


class ModelQueue:
    """Earliest due first, with removal from anywhere."""

    __slots__ = ("_entries", "_gone")

    def __init__(self) -> None:
        self._entries: deque[QueuedRequest] = deque()
        self._gone: set[int] = set()

    def __len__(self) -> int:
        return len(self._entries) - len(self._gone)

    def __iter__(self) -> Iterator[QueuedRequest]:
        """The live entries, first to run first."""
        if not self._gone:
            return iter(self._entries)
        return (entry for entry in self._entries if entry.request_id not in self._gone)

    def append(self, request: QueuedRequest) -> None:
        """Adds behind all that are due as early."""
        entries = self._entries
        if entries and request.due_ns < entries[-1].due_ns:
            entries.insert(bisect_right(entries, request.due_ns, key=_due), request)
        else:
            entries.append(request)

    def head(self) -> QueuedRequest | None:
        """The first, or None. Drops tombstones that have reached the front."""
        entries, gone = self._entries, self._gone
        while entries:
            entry = entries[0]
            if not gone or entry.request_id not in gone:
                return entry
            gone.discard(entry.request_id)
            entries.popleft()
        return None

    def tail(self) -> QueuedRequest | None:
        """The last, or None. Drops tombstones that have reached the back."""
        entries, gone = self._entries, self._gone
        while entries:
            entry = entries[-1]
            if not gone or entry.request_id not in gone:
                return entry
            gone.discard(entry.request_id)
            entries.pop()
        return None

    def oldest_arrival_ns(self) -> int | None:
        """When the oldest came, or None. O(n) only where due times are not all alike."""
        head, tail = self.head(), self.tail()
        if head is None or tail is None:
            return None
        if head.due_ns - head.arrival_ns == tail.due_ns - tail.arrival_ns:
            return head.arrival_ns
        return min([entry.arrival_ns for entry in self])

    def pop(self) -> QueuedRequest:
        """Removes and returns the first.

        Raises:
            IndexError: the queue is empty.
        """
        self.head()
        return self._entries.popleft()

    def take_front(self, max_rows: int) -> list[QueuedRequest]:
        """Removes the first and those behind it, while they have its shape and fit.

        The first is taken even if it alone has more than ``max_rows``. The queue must not
        be empty.
        """
        entries, gone = self._entries, self._gone
        first = self.pop()
        taken = [first]
        key, rows = first.shape_key, first.rows
        while entries:
            entry = entries[0]
            if gone and entry.request_id in gone:
                gone.discard(entry.request_id)
            else:
                rows += entry.rows
                if entry.shape_key != key or rows > max_rows:
                    break
                taken.append(entry)
            entries.popleft()
        return taken

    def window(self, count: int) -> list[QueuedRequest]:
        """The ``count`` first live entries, without removing them."""
        return list(islice(self, count))

    def ahead_of(self, request: QueuedRequest) -> float:
        """How many would be served before it if it were added now; tombstones count."""
        entries = self._entries
        if not entries or request.due_ns >= entries[-1].due_ns:
            return float(len(self))
        return float(min(len(self), bisect_right(entries, request.due_ns, key=_due)))

    def remove(self, request_ids: Iterable[int]) -> None:
        """Removes these, wherever they stand. Each must be in the queue."""
        self._gone.update(request_ids)
        self.head()
        if len(self._gone) > _TOMBSTONES_MIN and 2 * len(self._gone) > len(self._entries):
            self._entries = deque(self)
            self._gone.clear()
