"""The child process: loads one model and answers batches until the server hangs up.

Started by :mod:`.child` as ``python -P -m headrace.runtimes.python.worker MODEL FDS``, with
a fresh interpreter: to fork a server that has threads would copy locks that nobody will
ever release.

What ends it: the server closes the socket; the server dies, whatever way (Linux sends
SIGKILL); the model calls ``sys.exit``, crashes, or is killed. What does not: SIGINT and
SIGTERM while the server is there. A terminal sends Ctrl-C, and a service manager SIGTERM,
to every process of the group, and the server still has requests to finish.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import msgspec
import numpy as np

from headrace.errors import HeadraceError, InferenceFailed, ModelLoadError, kind_of
from headrace.runtimes.python.confine import confine, limit_memory
from headrace.runtimes.python.hints import HintError
from headrace.runtimes.python.messages import (
    MAX_TEXT,
    Call,
    Channel,
    Disconnected,
    Raised,
    Refused,
    Returned,
    Start,
    Started,
    ToChild,
    cut,
)
from headrace.runtimes.python.triton_start import TritonStart
from headrace.runtimes.shared_tensors import TensorReader, TensorWriter

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ChildArguments(msgspec.Struct, frozen=True):
    """What a child needs before it can be spoken to: passed as JSON on its command line."""

    server_pid: int
    control: int
    batches: tuple[int, ...]
    answers: tuple[int, ...]


def main() -> None:
    """Runs one child; returns when the server has hung up."""
    arguments = msgspec.json.decode(sys.argv[2], type=ChildArguments)
    _die_with(arguments.server_pid)
    confine()
    channel = Channel(socket.socket(fileno=arguments.control), ToChild)
    _keep_from_children(arguments)
    _only_stop_when_told(channel)
    faulthandler.enable()  # a crash in C then leaves its Python stack in the log
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that the log keeps up
    try:
        start = channel.receive()
        if isinstance(start, Start):
            limit_memory(start.options.max_memory_bytes)
            _serve(channel, start, arguments)
    except Disconnected:
        pass  # the server stopped; there is nobody left to tell


class _Model(Protocol):
    """What a child holds: :class:`.predictor.OneOfFile` or :class:`.native_child.NativeModel`."""

    def started(self, next_segment: int) -> Started: ...

    def __call__(self, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]: ...

    def close(self) -> None: ...


def _serve(channel: Channel, start: Start, arguments: ChildArguments) -> None:
    _enter(start)
    if start.triton is not None:
        _serve_triton(channel, start, start.triton)
        return
    reader = TensorReader(arguments.batches)
    writer = TensorWriter(arguments.answers, max_bytes=start.options.max_shared_bytes)
    try:
        model = _load(start)
        channel.send(model.started(reader.next_segment()))
    except (ModelLoadError, InferenceFailed) as error:  # the latter: too large for a message
        channel.send(_refusal(error))
        return
    try:
        while True:
            _answer(channel, model, reader, writer)
    except Disconnected:
        model.close()  # only here: after sys.exit nothing may delay the end
        raise


def _load(start: Start) -> _Model:
    # What the one kind of model needs is a tenth of a second that the other starts sooner.
    if start.native is not None:
        from headrace.runtimes.python.native_child import NativeModel

        return NativeModel(start.model, start.path, start.native)
    from headrace.runtimes.python.predictor import OneOfFile

    return OneOfFile(Path(start.path), model=start.model, options=start.options)


def _serve_triton(channel: Channel, start: Start, told: TritonStart) -> None:
    from headrace.runtimes.python.triton.child import Child

    try:
        most = start.options.max_shared_bytes
        child = Child(Path(start.path), start.model, told, max_shared_bytes=most)
        channel.send(child.started())
    except (ModelLoadError, InferenceFailed) as error:
        channel.send(_refusal(error))
        return
    child.serve(channel.duplicate())


def _answer(channel: Channel, model: _Model, reader: TensorReader, writer: TensorWriter) -> None:
    call: Call = channel.receive()
    try:
        # No name for the arrays: they are to be gone when the next segment is named.
        answer = writer.write(call.next_segment, model(reader.read(call.batch)))
        channel.send(Returned(answer, reader.next_segment()))
    except HeadraceError as error:
        failure = _failure(error)
    else:
        return
    channel.send(Raised(*failure, reader.next_segment()))


def _failure(error: HeadraceError) -> tuple[str, str, str, dict[str, Any], str]:
    told = cut(error.message), error.hint, _plain(error.details), _traceback(error)
    return kind_of(error), *told


def _refusal(error: HeadraceError) -> Refused:
    details, code = _plain(error.details), cut(error.code)
    return Refused(cut(error.message), cut(error.hint), details, _traceback(error), code)


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    """Only what survives the way: details are small values, or they are not sent."""
    return dict(details) if len(repr(details)) <= MAX_TEXT else {}


def _traceback(error: BaseException) -> str:
    """Of what the model itself raised; "" where we refused what it returned."""
    cause = error.__cause__
    if cause is None or isinstance(cause, HintError):
        return ""
    return cut("".join(traceback.format_exception(cause)))


def _die_with(server_pid: int) -> None:
    """Asks Linux to kill this process when the thread that started it ends (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server_pid:  # it ended before we asked
        sys.exit(1)


def _keep_from_children(arguments: ChildArguments) -> None:
    for descriptor in (arguments.control, *arguments.batches, *arguments.answers):
        os.set_inheritable(descriptor, False)


def _only_stop_when_told(channel: Channel) -> None:
    """SIGTERM counts once the server has hung up, SIGINT never.

    Handlers and not ``SIG_IGN``, which programs that the model starts would inherit.
    """
    signal.signal(signal.SIGINT, lambda _signal, _frame: None)
    signal.signal(signal.SIGTERM, _exit_if(channel.at_end))
    # The server blocked both, so that none arrived before these handlers were there.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _exit_if(ended: Callable[[], bool]) -> Callable[[int, FrameType | None], None]:
    def handle(_signal: int, _frame: FrameType | None) -> None:
        if ended():
            sys.exit(0)

    return handle


def _enter(start: Start) -> None:
    """Makes this the environment of a program that was started as ``python model.py``."""
    sys.argv = [start.path]
    if start.native is None:  # beside a model that is data lies nothing to import
        sys.dont_write_bytecode = True  # a model's folder is read, never written
        sys.path.insert(0, str(Path(start.path).parent))
    if start.pythonpath is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = start.pythonpath


if __name__ == "__main__":
    main()
