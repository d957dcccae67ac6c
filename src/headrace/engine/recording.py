"""A recording of all that a scheduler was told and decided: ids and numbers, nothing that was sent.

JSON, one object a line: the first says the format, each other one event, when it was handled, and
what was decided. The scheduler has no clock and no chance, so the same events at the same times
give the same actions; ``headrace replay`` does that, and ``headrace simulate --trace`` takes the
arrivals of a recording.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import msgspec

from headrace.core.actions import Action
from headrace.core.events import Event
from headrace.digests import open_private
from headrace.errors import ConfigError

_LOG = logging.getLogger("headrace.engine")

FORMAT = "headrace recording 1"

_EVENTS: dict[str, type] = {kind.__name__: kind for kind in Event.__args__}
_ACTIONS: dict[str, type] = {kind.__name__: kind for kind in Action.__args__}

_UNWRITTEN_MAX = 65_536
"""Events that wait for the disk. A disk that is slower than this ends the recording, not the
server."""


class Entry(msgspec.Struct, frozen=True):
    """One event of a recording: what was handled when, and what was decided."""

    line: int
    now_ns: int
    event: Event
    actions: list[Action]


class Line(msgspec.Struct, frozen=True):
    """How it stands in the file: names of the types beside their values."""

    t: int
    e: tuple[str, msgspec.Raw]
    a: list[tuple[str, msgspec.Raw]] = []


class Head(msgspec.Struct, frozen=True):
    """The first line."""

    format: str


def read_recording(path: Path) -> Iterator[Entry]:
    """Its events in order. A last line that is cut short is left out.

    Raises:
        ConfigError: it cannot be read, is no recording, or a line is wrong; names the line.
    """
    try:
        with path.open("rb") as file:
            _check_head(path, file.readline())
            for number, line in enumerate(file, 2):
                if not line.endswith(b"\n"):
                    return  # the server was killed while it wrote
                yield _entry(path, number, line)
    except OSError as error:
        raise ConfigError(f"cannot read the recording {path}: {error.strerror}") from None


def _check_head(path: Path, line: bytes) -> None:
    try:
        head = msgspec.json.decode(line, type=Head)
    except msgspec.MsgspecError:
        head = Head("")
    if head.format != FORMAT:
        raise ConfigError(
            f"{path} is no recording of this version",
            hint="recordings are made by headrace serve --record FILE",
        )


def _entry(path: Path, number: int, text: bytes) -> Entry:
    try:
        line = msgspec.json.decode(text, type=Line)
        event: Event = msgspec.json.decode(line.e[1], type=_EVENTS[line.e[0]])
        decided: list[Action] = [
            msgspec.json.decode(raw, type=_ACTIONS[name]) for name, raw in line.a
        ]
    except (msgspec.MsgspecError, KeyError) as error:
        raise ConfigError(f"{path}:{number}: not an event of this version: {error}") from None
    return Entry(number, line.t, event, decided)


def encode_entry(now_ns: int, event: Event, decided: list[Action]) -> bytes:
    """The line of one event, with its line feed."""
    line = {
        "t": now_ns,
        "e": (type(event).__name__, event),
        "a": [(type(action).__name__, action) for action in decided],
    }
    return msgspec.json.encode(line) + b"\n"


def encode_head() -> bytes:
    """The first line."""
    return msgspec.json.encode(Head(FORMAT)) + b"\n"


class Recorder:
    """Writes beside the server, in a thread of its own.

    Args:
        path: a new file; an old one of the name is replaced.
        max_bytes: where the recording ends.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        try:
            self._file = open_private(path, "wb")
            self._file.write(encode_head())
        except OSError as error:
            raise ConfigError(
                f"cannot write the recording {path}: {error.strerror}",
                hint="--record names a file in a folder that can be written",
            ) from None
        self._path = path
        self._left = max_bytes
        self._lines: SimpleQueue[tuple[int, Event, list[Action]] | None] = SimpleQueue()
        self._open = True
        self._thread = Thread(target=self._work, name="headrace-recorder", daemon=True)
        self._thread.start()

    def around(self, handle: Callable[..., list[Action]]) -> Callable[..., list[Action]]:
        """``Scheduler.handle`` that writes down what it is told and what it says."""

        def recorded(event: Event, *, now_ns: int) -> list[Action]:
            decided = handle(event, now_ns=now_ns)
            if self._open:
                if self._lines.qsize() < _UNWRITTEN_MAX:
                    self._lines.put((now_ns, event, decided))
                else:
                    self._end("the disk is too slow")
            return decided

        return recorded

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._lines.put(None)
        self._thread.join(10.0)
        self._open = False

    def _end(self, why: str) -> None:
        if self._open:
            self._open = False
            _LOG.warning("the recording %s ends here: %s", self._path, why)

    def _work(self) -> None:
        try:
            with self._file:
                while (line := self._lines.get()) is not None:
                    encoded = encode_entry(*line)
                    self._left -= len(encoded)
                    if self._left < 0:
                        self._end("it is as large as it may become")
                        return
                    self._file.write(encoded)
                    if self._lines.empty():
                        self._file.flush()
        except OSError as error:
            self._end(str(error.strerror))
