"""The children that can take a batch: where callers and the supervisor meet."""

from __future__ import annotations

import math
import threading
import time

from headrace.errors import InstanceDied
from headrace.runtimes.python.child import Child

RECOVERY_WAIT_S = 2.0
"""How long a batch waits for the next child when none is alive. Most models are back in less
(a process starts in 0.2 s), and then a crash costs the one batch that met it instead of
everything queued behind it. Where the pause before the next attempt is known to be longer,
nothing waits at all."""


class Pool:
    """Hands out idle children. All methods may be called by any thread.

    A child is in one of three places: idle here, lent to a caller, or with the supervisor.
    While one child at least is alive, callers wait for it; a dead one costs capacity only. Who
    asks for the child of one place (a sequence, whose state it has) waits for that one alone.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._changed = threading.Condition(threading.Lock())
        self._idle: list[Child] = []
        self._lent: set[Child] = set()
        self._alive: list[int] = []  # the places of those that have loaded the model
        self._next_start_s = math.inf
        self._closed = False

    @property
    def serving(self) -> bool:
        """Whether a child is alive that has loaded the model."""
        with self._changed:
            return any(not child.broken for child in (*self._idle, *self._lent))

    def interrupt(self, thread: int, reason: str) -> None:
        """Kills the child that this thread has taken; nothing where it has none."""
        with self._changed:
            for child in self._lent:
                if child.taken_by == thread:
                    child.kill(reason)

    def take(self, place: int | None = None) -> Child:
        """An idle child, the one used last, or that of ``place``; give it back with :meth:`put`.

        Raises:
            InstanceDied: none is alive, and none will be within RECOVERY_WAIT_S;
                ``retry_after_s`` in the details says when the next one is started.
        """
        give_up_s = 0.0
        with self._changed:
            while (child := self._find(place)) is None:
                if self._closed:
                    raise InstanceDied(f"{self._model!r} was unloaded", model=self._model)
                if self._alive if place is None else place in self._alive:
                    give_up_s = 0.0
                    self._changed.wait()
                    continue
                now_s = time.monotonic()
                give_up_s = give_up_s or now_s + RECOVERY_WAIT_S
                if max(now_s, self._next_start_s) >= give_up_s:
                    raise self._none_alive(now_s)
                self._changed.wait(give_up_s - now_s)
            self._idle.remove(child)
            self._lent.add(child)
            child.taken_by = threading.get_ident()
            return child

    def put(self, child: Child) -> None:
        """Takes back what :meth:`take` gave, whatever became of it."""
        with self._changed:
            self._lent.discard(child)
            if child.died.is_set():
                child.close()
            elif not child.broken:
                self._idle.append(child)
                self._changed.notify_all()  # not everybody waits for this one

    def add(self, child: Child) -> None:
        """A child has loaded the model."""
        with self._changed:
            self._alive.append(child.place)
            self._idle.append(child)
            self._changed.notify_all()

    def remove(self, child: Child) -> None:
        """A child that was added has died; it is closed now, or when its caller is through."""
        with self._changed:
            self._alive.remove(child.place)
            self._next_start_s = 0.0  # not known before the supervisor's next expect()
            if child in self._idle:
                self._idle.remove(child)
            if child not in self._lent:
                child.close()
            self._changed.notify_all()

    def expect(self, next_start_s: float) -> None:
        """When the next child is started, on the monotonic clock; 0: one is starting."""
        with self._changed:
            if next_start_s != self._next_start_s:
                self._next_start_s = next_start_s
                self._changed.notify_all()

    def close(self) -> None:
        """From now on there is nothing to take."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _find(self, place: int | None) -> Child | None:
        for child in reversed(self._idle):
            # One that has died may still be here for a moment: remove() is on its way.
            here = place is None or child.place == place
            if here and not child.broken and not child.died.is_set():
                return child
        return None

    def _none_alive(self, now_s: float) -> InstanceDied:
        pause_s = self._next_start_s - now_s
        when = f"the next is started in {pause_s:.1f} s" if pause_s > 0 else "one is starting"
        return InstanceDied(
            f"no child process of {self._model!r} is alive: {when}",
            hint="what the last one printed is in the server's log",
            model=self._model,
            retry_after_s=round(max(pause_s, 0.0), 3) if math.isfinite(pause_s) else None,
        )
