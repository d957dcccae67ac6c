"""One file: to the end, resumed where it broke off, and verified before anybody has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

from headrace.errors import StoreError
from headrace.repository.outbound import paced
from headrace.repository.stores.base import (
    STOPPED,
    UNREACHABLE,
    WRONG_DIGEST,
    Patience,
    Progress,
    RemoteFile,
    Stop,
    Store,
)
from headrace.repository.stores.digests import Digests

PROGRESS_BYTES = 1024 * 1024
"""What a try must gain to count as none: a line that drops now and then is not a dead one."""

_LOOK_S = 0.1
"""How long it may take until a stop is noticed while waiting."""

_T = TypeVar("_T")


class Fetcher:
    """Asks one store, again where that may help.

    Args:
        store: whom.
        patience: how often.
        progress: is told of each file, and of what is tried again.
        stop: whether to give up.
        sleep: waits so many seconds; the tests' own does not.
    """

    def __init__(
        self,
        store: Store,
        *,
        patience: Patience,
        progress: Progress,
        stop: Stop,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._patience = patience
        self._progress = progress
        self._stop = stop
        self._sleep = sleep

    def list(self) -> list[RemoteFile]:
        """As :meth:`Store.list`, tried again."""
        return self._patiently(self._store.list)

    def describe(self, file: RemoteFile) -> RemoteFile:
        """As :meth:`Store.describe`, tried again."""
        return self._patiently(lambda: self._store.describe(file))

    def fetch(self, file: RemoteFile, part: Path) -> str:
        """Brings ``part`` to its full size, and its content to what the store says it is.

        Args:
            file: as the store described it.
            part: what is there of it already, from the beginning on; need not exist.

        Returns:
            Its SHA-256.

        Raises:
            StoreError: UNREACHABLE, the part is kept for the next time. WRONG_DIGEST, the part
                is gone.
            OSError: it cannot be written.
        """
        here = _usable(file, part)
        self._say(file, here)
        digests = self._receive(file, part)
        wrong = digests.mismatch()
        if wrong and here:  # the old beginning may be the wrong half: a crash, another content
            part.unlink()
            digests = self._receive(file, part)
            wrong = digests.mismatch()
        if wrong:
            part.unlink()
            raise StoreError(
                f"{file.path} of {self._store.label} has {wrong.algorithm} {wrong.got}, "
                f"expected {wrong.expected}",
                code=WRONG_DIGEST,
                hint="it is damaged, or was changed without its digest; put it there again",
                file=file.path,
                expected=wrong.expected,
                got=wrong.got,
            )
        return digests.sha256

    def _receive(self, file: RemoteFile, part: Path) -> Digests:
        digests = Digests(file)
        part.touch()
        digests.read(part)
        before, failures = digests.size, 0
        with part.open("ab") as out:
            while digests.size < file.size:
                try:
                    self._go_on(file, out, digests)
                except StoreError as error:
                    gained, before = digests.size - before, digests.size
                    failures = 1 if gained >= PROGRESS_BYTES else failures + 1
                    self._wait(error, failures)
        return digests

    def _go_on(self, file: RemoteFile, out: IO[bytes], digests: Digests) -> None:
        """One answer of the store, appended; raises where it ends too early."""
        with self._store.open(file, digests.size) as body:
            if body.offset != digests.size:  # the store knows no ranges, or has other content
                out.truncate(0)
                digests.reset()
            label = f"{file.path} of {self._store.label}"
            slow = partial(StoreError, code=UNREACHABLE)
            for chunk in paced(body.chunks, label, error=slow):
                self._look()
                if digests.size + len(chunk) > file.size:
                    raise StoreError(
                        f"{file.path} of {self._store.label} is larger than the "
                        f"{file.size:,} bytes it claims"
                    )
                out.write(chunk)
                digests.update(chunk)
        if digests.size < file.size:
            raise StoreError(
                f"{file.path} of {self._store.label} broke off after {digests.size:,} of "
                f"{file.size:,} bytes",
                code=UNREACHABLE,
                hint="what came is kept, and the next sync goes on there",
            )

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        failures = 0
        while True:
            self._look()
            try:
                return ask()
            except StoreError as error:
                failures += 1
                self._wait(error, failures)

    def _wait(self, error: StoreError, failures: int) -> None:
        """Before the next try; raises ``error`` where there is none."""
        if error.code != UNREACHABLE or failures >= self._patience.tries:
            raise error
        pause_s = self._patience.pause_s(failures)
        self._progress(f"{error.message}; trying again in {pause_s:g} s")
        while pause_s > 0:
            self._look()
            self._sleep(min(pause_s, _LOOK_S))
            pause_s -= _LOOK_S

    def _look(self) -> None:
        if self._stop():
            raise StoreError(
                f"{self._store.label}: stopped", code=STOPPED, hint="the next sync goes on there"
            )

    def _say(self, file: RemoteFile, here: int) -> None:
        begin = f", {here:,} of them are here" if here else ""
        self._progress(f"fetching {file.path} ({file.size:,} bytes{begin})")


def _usable(file: RemoteFile, part: Path) -> int:
    """How much of ``part`` can be gone on with; what cannot be verified later is dropped."""
    here = part.stat().st_size if part.exists() else 0
    if here and (here > file.size or not file.has_digest):
        part.unlink()
        return 0
    return here
