"""One child process, seen from the server: start it, call it, end it.

Two threads meet here. The supervisor's thread starts and ends children; the engine's
threads call them. A child that died is hung up on (so that whoever waits for its answer
wakes up) and closed by whichever of the two has it last, never while the other uses it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from headrace import machine
from headrace.errors import (
    InferenceFailed,
    InstanceDied,
    ModelLoadError,
    PayloadTooLarge,
    kind_named,
)
from headrace.runtimes.python.confine import environment_for
from headrace.runtimes.python.messages import (
    Call,
    Channel,
    Disconnected,
    Raised,
    Refused,
    Returned,
    Start,
    Started,
    ToServer,
)
from headrace.runtimes.python.native_start import NativeStart
from headrace.runtimes.python.options import PythonOptions
from headrace.runtimes.python.triton_start import TritonStart
from headrace.runtimes.shared_tensors import TensorReader, TensorWriter, create_segments

_log = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 1.0
"""How long a child that hung up may take to exit by itself (its ``atexit`` functions)."""

KILL_TIMEOUT_S = 5.0
"""How long a killed child may take to be gone. Only one that is stuck in the kernel takes
longer than an instant; its caller is not kept waiting."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class ChildSpec(msgspec.Struct, frozen=True):
    """What every child of one model is started with. ``threads``: for its number crunching.

    ``memory_bytes``: what it may allocate, 0: as much as there is.
    """

    model: str
    path: Path
    options: PythonOptions
    threads: int
    triton: TritonStart | None = None
    native: NativeStart | None = None
    memory_bytes: int = 0


class Child:
    """Starts a child process and asks it to load the model; does not wait for that.

    Create it on a thread that outlives it: Linux kills it when that thread ends. ``place`` is
    its number among the children of the model; whoever replaces it has the same.

    Raises:
        OSError: no more processes, memory or file descriptors.
        InferenceFailed: the options do not fit a message.
    """

    def __init__(self, spec: ChildSpec, place: int = 0) -> None:
        self.spec = spec
        self.place = place
        self.died = threading.Event()
        self.reason = ""
        """How it ended, once ``died`` is set."""
        self.broken = False
        """True once it was killed: it may still be dying, and is of no more use."""
        self.taken_by = 0
        """The thread that has it; see ``pool``."""
        self._killed_for = ""
        self._oom_kills = machine.oom_kills()
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as handed_over:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.channel = Channel(here, ToServer)
            undo.callback(self.channel.close)
            handed_over.callback(there.close)
            self.log, log_end = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, self.log)
            handed_over.callback(os.close, log_end)
            batches = create_segments(f"headrace-batches-{spec.model}")
            self._writer = TensorWriter(
                batches, max_bytes=spec.options.max_shared_bytes, too_large=PayloadTooLarge
            )
            undo.callback(self._writer.close)
            answers = create_segments(f"headrace-answers-{spec.model}")
            self._reader = TensorReader(answers)
            undo.callback(self._reader.close)
            self._process = _spawn(spec, there.fileno(), log_end, (batches, answers))
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            if spec.memory_bytes:  # before it is told what to load
                _limit(self._process.pid, spec.memory_bytes)
            self.pidfd = os.pidfd_open(self._process.pid)
            undo.callback(os.close, self.pidfd)
            self._start()
            undo.pop_all()
        self._segment = 0

    @property
    def pid(self) -> int:
        """Of the child process."""
        return self._process.pid

    def started(self) -> Started:
        """Reads the child's answer to its start; waits unless the channel is readable.

        Raises:
            ModelLoadError: it could not load the model; the traceback is logged.
            Disconnected: it ended without a word.
        """
        reply = self.channel.receive()
        if isinstance(reply, Refused):
            if reply.traceback:
                _log.error("model %s: %s\n%s", self.spec.model, reply.message, reply.traceback)
            raise ModelLoadError(reply.message, hint=reply.hint, code=reply.code, **reply.details)
        if not isinstance(reply, Started):
            raise Disconnected(f"{type(reply).__name__} is no answer to a start")
        self._segment = reply.next_segment
        return reply

    def call(self, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Runs one batch in the child. One caller at a time.

        Raises:
            RequestError: the batch is too large, or not what the model takes; it was not run.
            InferenceFailed: ``predict`` raised or returned what it must not; the child is
                ready for the next batch.
            InstanceDied: the child is gone; so is this object's use.
        """
        batch = self._writer.write(self._segment, inputs)
        try:
            reply = self._converse(Call(batch, self._reader.next_segment()))
            if isinstance(reply, Returned):
                return _complete(self._reader.read(reply.answer))
        except (Disconnected, ValueError, OSError) as error:
            raise self.obituary() from error
        except InferenceFailed:
            raise  # too large for a message: nothing was sent
        except BaseException:
            self.kill()  # an answer may be on its way, and nobody will read it
            raise
        if reply.traceback:
            _log.error("model %s: %s\n%s", self.spec.model, reply.message, reply.traceback)
        raise kind_named(reply.kind)(reply.message, hint=reply.hint, **reply.details)

    def hang_up(self) -> None:
        """Tells the child, and whoever waits for its answer, that it is over."""
        self.channel.hang_up()

    def terminate(self) -> None:
        """Interrupts what it is doing. Counts only after :meth:`hang_up`; see the worker."""
        self._signal(signal.SIGTERM)

    def kill(self, reason: str = "") -> None:
        """Ends it now. Harmless where it has ended already, as long as it is not closed."""
        self.broken = True
        self._killed_for = self._killed_for or reason
        self._signal(signal.SIGKILL)

    def reap(self) -> str:
        """Collects the dead process and what it left running. Supervisor's thread only.

        Returns:
            How it ended, in words.
        """
        try:
            # Before its zombie is gone, and with it the claim to this process group.
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # nothing was left
        self.reason = self._in_words(self._process.wait())
        self.hang_up()
        self.died.set()
        return self.reason

    def close(self) -> None:
        """Gives back descriptors and shared memory; arrays that were returned stay valid.

        May be called again, by one thread at a time.
        """
        if self.pidfd < 0:
            return
        self.channel.close()
        self._writer.close()
        self._reader.close()
        os.close(self.pidfd)
        self.pidfd = -1

    def _start(self) -> None:
        spec = self.spec
        pythonpath = os.environ.get("PYTHONPATH")
        try:
            triton = spec.triton
            if triton is not None:
                triton = msgspec.structs.replace(triton, place=self.place)
            start = Start(spec.model, str(spec.path), spec.options, pythonpath, triton, spec.native)
            self.channel.send(start)
        except Disconnected:
            pass  # it died already; whoever watches it will see

    def _converse(self, call: Call) -> Returned | Raised:
        self.channel.send(call)
        reply = self.channel.receive()
        if not isinstance(reply, Returned | Raised):
            raise Disconnected(f"{type(reply).__name__} is no answer to a batch")
        self._segment = reply.next_segment
        return reply

    def obituary(self) -> InstanceDied:
        """What is to be said of a child that does not answer any more; waits for its end."""
        # A process that exits closes its socket first, so give it the time to say how.
        if not self.died.wait(EXIT_TIMEOUT_S):
            self.kill()
            self.died.wait(KILL_TIMEOUT_S)
        reason = self.reason or "stopped answering"
        return InstanceDied(
            f"the child process of {self.spec.model!r} {reason} before it answered",
            hint="it is being started again; what it printed is in the server's log",
            model=self.spec.model,
            reason=reason,
        )

    def _in_words(self, code: int) -> str:
        if code >= 0:
            return f"exited with status {code}"
        if code != -signal.SIGKILL:
            return f"was killed by signal {-code} ({signal.strsignal(-code)})"
        if self.broken:
            return f"was killed: {self._killed_for}" if self._killed_for else "had to be killed"
        before, now = self._oom_kills, machine.oom_kills()
        if before is None or now is None:
            return "was killed by SIGKILL (out of memory, or by hand)"
        # The kernel counts before it kills, so the number is there when the child is gone.
        if now > before:
            return "was killed by the kernel: out of memory"
        return "was killed by SIGKILL (by hand: the kernel killed nobody for memory)"

    def _signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass  # already reaped


def _spawn(
    spec: ChildSpec, control: int, log: int, segments: tuple[list[int], list[int]]
) -> subprocess.Popen[bytes]:
    arguments = {
        "server_pid": os.getpid(),
        "control": control,
        "batches": segments[0],
        "answers": segments[1],
    }
    environment = environment_for(os.environ, spec.options.environment)
    environment.update(dict.fromkeys(_THREAD_VARIABLES, str(spec.threads)))
    # So that it finds what this process found, wherever that came from.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    worker = "headrace.runtimes.python.worker"
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
        [sys.executable, "-P", "-m", worker, spec.model, msgspec.json.encode(arguments)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(control, *segments[0], *segments[1]),
        process_group=0,  # out of the terminal's reach, and one kill for all it starts
        env=environment,
    )


def _limit(pid: int, memory_bytes: int) -> None:
    """Of what it allocates; files that it maps do not count."""
    resource.prlimit(pid, resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _complete(arrays: list[np.ndarray | None]) -> list[np.ndarray]:
    found = [array for array in arrays if array is not None]
    if len(found) != len(arrays):
        raise ValueError("an output is missing")
    return found
