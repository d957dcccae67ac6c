"""One model's waiting requests, in order of arrival.

Law: a queue holds a request exactly once, never forgets one, and its length is bounded by
whoever appends (the scheduler checks ``max_queue_size`` first).

Appending and taking from the front are O(1). Taking from the middle (a batch picked by
length, a cancellation) leaves a tombstone, which is skipped later; when tombstones are the
majority the queue is rebuilt, so memory follows the number of live requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from headrace.core.events import QueuedRequest

_TOMBSTONES_MIN = 64
"""Below this many tombstones rebuilding costs more than skipping them."""


class ModelQueue:
    """First in, first out, with removal from anywhere."""

    __slots__ = ("_entries", "_gone", "append")

    def __init__(self) -> None:
        self._entries: deque[QueuedRequest] = deque()
        self._gone: set[int] = set()
        self.append: Callable[[QueuedRequest], None] = self._entries.append
        """Adds at the back. The deque's own method: it is called for every request."""

    def __len__(self) -> int:
        return len(self._entries) - len(self._gone)

    def __iter__(self) -> Iterator[QueuedRequest]:
        """The live entries, oldest first."""
        if not self._gone:
            return iter(self._entries)
        return (entry for entry in self._entries if entry.request_id not in self._gone)

    def head(self) -> QueuedRequest | None:
        """The oldest, or None. Drops tombstones that have reached the front."""
        entries, gone = self._entries, self._gone
        while entries:
            entry = entries[0]
            if not gone or entry.request_id not in gone:
                return entry
            gone.discard(entry.request_id)
            entries.popleft()
        return None

    def oldest_arrival_ns(self) -> int | None:
        """When the oldest came, or None."""
        head = self.head()
        return None if head is None else head.arrival_ns

    def pop(self) -> QueuedRequest:
        """Removes and returns the oldest.

        Raises:
            IndexError: the queue is empty.
        """
        self.head()
        return self._entries.popleft()

    def take_front(self, max_rows: int) -> list[QueuedRequest]:
        """Removes the oldest and those behind it, while they have its shape and fit.

        The oldest is taken even if it alone has more than ``max_rows``. The queue must not
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
        """The ``count`` oldest live entries, without removing them."""
        window: list[QueuedRequest] = []
        for entry in self:
            window.append(entry)
            if len(window) == count:
                break
        return window

    def remove(self, request_ids: Iterable[int]) -> None:
        """Removes these, wherever they stand. Each must be in the queue."""
        self._gone.update(request_ids)
        self.head()
        if len(self._gone) > _TOMBSTONES_MIN and 2 * len(self._gone) > len(self._entries):
            self._entries = deque(self)
            self._gone.clear()
            self.append = self._entries.append
