"""The same bytes again: an answer that is kept, as it was encoded the last time.

Law: what is given from here is what would have been given by decoding, looking up and encoding. So
an entry counts only while the very response it was made of is still kept for its model (not
evicted, not over its time), while that model still answers for the name and version asked for, and
for the same tenant. Equal bytes ask for equal ids and outputs, so the whole answer is equal.

It saves the parse, the check, the digest and the encoding, which is nearly all that a hit costs.
"""

from __future__ import annotations

from collections import OrderedDict

from headrace.clock import MonotonicClock
from headrace.engine.engine import Engine
from headrace.engine.response_cache import Kept

_now_ns = MonotonicClock.now_ns

ENTRIES_MAX = 8192
BODY_MAX_BYTES = 4096
ANSWER_MAX_BYTES = 16_384
"""At most 160 MiB; a hundredth of that where requests are small. Large ones are dear to compare,
and their decoding is a smaller part of what they cost."""

_ELSEWHERE = b"shared_memory"
"""Equal bytes that name a region of memory ask about what is in it now."""

Name = tuple[str, str, bytes | None, bytes]
"""Model, version, tenant and body, as they came."""


class Answered:
    """Encoded answers by the bytes of their requests. On the event loop."""

    def __init__(self, engine: Engine) -> None:
        self._resolve = engine.catalog.resolve
        self._entries: OrderedDict[Name, tuple[Kept, bytes]] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether anything is kept, which costs nothing where no model has a cache."""
        return bool(self._entries)

    def find(self, name: Name, arrived_ns: int) -> bytes | None:
        """The answer, which counts as one hit of the model's cache; None: there is none."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        kept, body = entry
        if self._resolve(name[0], name[1]) is kept.served and kept.again(arrived_ns):
            return body
        del self._entries[name]
        return None

    def keep(self, name: Name, kept: Kept, answer: bytes) -> None:
        """Remembers how an answer was encoded."""
        if len(name[3]) > BODY_MAX_BYTES or len(answer) > ANSWER_MAX_BYTES:
            return
        if _ELSEWHERE in name[3]:
            return
        if len(self._entries) >= ENTRIES_MAX:
            self._entries.popitem(last=False)
        self._entries[name] = kept, answer
