"""Who reads a line: whoever waits for an answer on it, and this thread while nobody does.

A thread that reads and hands on what it has read costs two changes of threads for each message;
so a thread that waits for an answer reads it itself. But messages may come when nobody waits for
one (a late answer, a call to another model). A line is then armed (epoll(7), EPOLLONESHOT: one
system call, and no thread wakes up), and this thread reads it when there is something to read.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

_ARMED = select.EPOLLIN | select.EPOLLONESHOT


class Watch:
    """One thread for any number of lines.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._readers: dict[int, Callable[[], None]] = {}
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, descriptor: int, read: Callable[[], None]) -> None:
        """``read`` is called, once each time, when there is something to read after :meth:`arm`."""
        self._readers[descriptor] = read
        self._epoll.register(descriptor, select.EPOLLONESHOT)

    def remove(self, descriptor: int) -> None:
        """Before it is closed."""
        if self._readers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def arm(self, descriptor: int) -> None:
        """``read`` is called from now on."""
        self._modify(descriptor, _ARMED)

    def disarm(self, descriptor: int) -> None:
        """``read`` is not called from now on, or once, if it is on its way."""
        self._modify(descriptor, select.EPOLLONESHOT)

    def _modify(self, descriptor: int, events: int) -> None:
        try:
            self._epoll.modify(descriptor, events)
        except (FileNotFoundError, ValueError):
            pass  # it was removed, or the watch was closed, a moment ago

    def close(self) -> None:
        """Ends the thread, after what it is reading."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor == self._wake:
                    return
                read = self._readers.get(descriptor)
                if read is not None:
                    read()


class Turns:
    """Who reads one line: whoever is inside ``with turns``, or the watch after :meth:`leave`.

    Args:
        watch: the thread.
        descriptor: of the line.
        read: reads one message without waiting for it, and does what it says.
    """

    def __init__(self, watch: Watch, descriptor: int, read: Callable[[], object]) -> None:
        self._watch = watch
        self._descriptor = descriptor
        self._read = read
        self._lock = threading.Lock()
        self._left = False
        self._over = False
        watch.add(descriptor, self._on_readable)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._left = False
        self._watch.disarm(self._descriptor)

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def leave(self) -> None:
        """To the watch. Not inside ``with``: it would find the line taken, and not come again."""
        self._left = True
        if not self._over:
            self._watch.arm(self._descriptor)

    def end(self) -> None:
        """Whoever reads has found the end of the line."""
        self._over = True
        self._watch.remove(self._descriptor)

    def _on_readable(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # whoever has it will leave it
        try:
            if not self._left:
                return  # it was on its way when somebody else took over
            self._read()
            if not self._over:
                self._watch.arm(self._descriptor)
        finally:
            self._lock.release()
