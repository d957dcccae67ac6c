"""Keeps the children of one model alive: starts, watches, restarts and ends them.

One thread for each model does all of it. It has to be one thread that lives as long as the
children, because Linux's "kill me when my parent dies" means the parent *thread*; and
because everything that can happen to a child is then handled by one loop, in one order.

A place for a child goes round like this::

            launch             Started              dies
    PAUSING -------> STARTING ---------> SERVING ---------> PAUSING (a doubling while)
       ^                | dies, Refused, too late
       +----------------+
    stop:  LEAVING (hung up) --LEAVE_TIMEOUT_S--> TERMINATING (SIGTERM) --KILL_TIMEOUT_S--> SIGKILL
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum
from functools import partial

from headrace.errors import InferenceFailed, ModelLoadError
from headrace.runtimes.python.child import Child, ChildSpec
from headrace.runtimes.python.childlog import ChildLog
from headrace.runtimes.python.confine import hidden_names
from headrace.runtimes.python.messages import Channel, Disconnected, Started
from headrace.runtimes.python.pool import Pool

_log = logging.getLogger(__name__)

MAX_RESTART_DELAY_S = 30.0
"""The longest pause between two attempts: a model that cannot start costs little, and one
whose cause is repaired (a disk, a licence server) is back within half a minute."""

HEALTHY_S = 60.0
"""A child that lived so long did not die of starting: the next pause is the first again."""

LEAVE_TIMEOUT_S = 1.0
"""What a child that was hung up on has to leave by itself, its ``atexit`` functions run,
before SIGTERM interrupts whatever it is doing."""

KILL_TIMEOUT_S = 5.0
"""From that SIGTERM to SIGKILL."""


class Backoff:
    """The pauses between attempts: ``first_s``, doubled each time up to a limit.

    Args:
        first_s: the first pause; where it is above MAX_RESTART_DELAY_S, every pause.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = self._next_s = first_s

    def pause_s(self, lived_s: float) -> float:
        """The pause after a child that lived ``lived_s`` (0: it never started)."""
        if lived_s >= HEALTHY_S:
            self._next_s = self._first_s
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, max(MAX_RESTART_DELAY_S, self._first_s))
        return pause_s


class _State(Enum):
    PAUSING = "pausing"
    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"
    TERMINATING = "terminating"
    GONE = "gone"


class _Place:
    """Room for one child. ``due_s``: when the time of its state is up."""

    def __init__(self, number: int, backoff: Backoff) -> None:
        self.number = number
        self.backoff = backoff
        self.state = _State.PAUSING
        self.due_s = 0.0
        self.since_s = 0.0
        self.child: Child | None = None
        self.log: ChildLog | None = None
        self.pooled = False


class Supervisor:
    """The children of one model and the thread that looks after them.

    Args:
        spec: what to start.
        children: how many, which is how many batches run at one time.
        notify: is told in a line what becomes of them, on the supervisor's thread.
    """

    def __init__(
        self, spec: ChildSpec, *, children: int, notify: Callable[[str], None] | None = None
    ) -> None:
        self.pool = Pool(spec.model)
        self._spec = spec
        self._notify = notify
        self._places = [
            _Place(number, Backoff(spec.options.restart_delay_s)) for number in range(children)
        ]
        self._loaded: Future[Started] = Future()
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, self._begin_to_stop)
        self._thread = threading.Thread(
            target=self._run, name=f"headrace-supervisor-{spec.model}", daemon=True
        )

    def start(self) -> Started:
        """Starts every child and waits until all have loaded the model.

        Raises:
            ModelLoadError: one could not; nothing is left running.
        """
        self._thread.start()
        hidden = hidden_names(os.environ, self._spec.options.environment)
        secrets = sorted(name for name in hidden if not name.startswith("HEADRACE_"))
        if secrets:
            _log.info(
                "model %s: its processes are not given %s: see runtime_options.environment",
                self._spec.model,
                ", ".join(secrets),
            )
        try:
            return self._loaded.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends every child and waits for that: LEAVE_TIMEOUT_S + KILL_TIMEOUT_S at most."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._selector.close()
        os.close(self._wake)

    def process_ids(self) -> tuple[int, ...]:
        """The children that are alive now. Any thread; one may have died when it is read."""
        children = [place.child for place in self._places]
        return tuple(child.pid for child in children if child and not child.died.is_set())

    def _run(self) -> None:
        # Inherited by the children, who let them through when they can handle them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            while True:
                self._attend(time.monotonic())
                if all(place.state is _State.GONE for place in self._places):
                    return
                timeout_s = min(place.due_s for place in self._places) - time.monotonic()
                for key, _ in self._selector.select(None if math.isinf(timeout_s) else timeout_s):
                    handle: Callable[[], None] = key.data
                    handle()
        finally:
            self.pool.close()
            if not self._loaded.done():
                message = f"the supervisor of {self._spec.model!r} failed"
                self._loaded.set_exception(ModelLoadError(message, hint="see the log"))

    def _attend(self, now_s: float) -> None:
        """Does what is due, and tells the pool when the next start is."""
        for place in self._places:
            if now_s < place.due_s:
                continue
            if place.state is _State.PAUSING:
                self._launch(place, now_s)
            elif place.state is _State.STARTING:
                limit_s = self._spec.options.start_timeout_s
                error = ModelLoadError(
                    f"{self._spec.path} was not loaded within start_timeout_s = {limit_s:g}",
                    hint="raise start_timeout_s in runtime_options if load needs longer",
                )
                self._give_up(place, error, now_s)
            elif place.state is _State.LEAVING and place.child is not None:
                place.child.terminate()
                place.state, place.due_s = _State.TERMINATING, now_s + KILL_TIMEOUT_S
            elif place.state is _State.TERMINATING and place.child is not None:
                place.child.kill()
                place.due_s = math.inf
        starts_s = [
            place.due_s if place.state is _State.PAUSING else 0.0
            for place in self._places
            if place.state not in (_State.SERVING, _State.GONE)
        ]
        self.pool.expect(min(starts_s, default=math.inf))

    # Beginnings

    def _launch(self, place: _Place, now_s: float) -> None:
        try:
            child = Child(self._spec, place.number)
        except (OSError, InferenceFailed) as error:
            message = f"a child process for {self._spec.model!r} cannot start: {error}"
            self._start_failed(ModelLoadError(message))
            self._pause(place, 0.0)
            return
        place.child, place.log = child, ChildLog(child.log, self._spec.model)
        place.state = _State.STARTING
        place.due_s = now_s + self._spec.options.start_timeout_s
        watch = partial(self._selector.register, events=selectors.EVENT_READ)
        watch(child.pidfd, data=partial(self._child_died, place, child))
        watch(child.channel, data=partial(self._child_spoke, place, child))
        watch(place.log, data=partial(self._child_printed, place, place.log))

    def _child_spoke(self, place: _Place, child: Child) -> None:
        if place.child is not child or place.state is not _State.STARTING:
            return
        self._unwatch(child.channel)
        try:
            started = child.started()
            self._check_unchanged(started)
        except ModelLoadError as error:
            self._give_up(place, error, time.monotonic())
        except Disconnected:
            child.kill()  # if it is not dead yet; what follows is the same
        else:
            self._serve(place, child, started)

    def _serve(self, place: _Place, child: Child, started: Started) -> None:
        place.state, place.due_s, place.pooled = _State.SERVING, math.inf, True
        place.since_s = time.monotonic()
        self.pool.add(child)
        if self._loaded.done():
            self._tell(logging.INFO, f"child process {child.pid} serves")
        elif all(place.state is _State.SERVING for place in self._places):
            self._loaded.set_result(started)

    def _check_unchanged(self, started: Started) -> None:
        """After a restart the model must be the one that clients were told about."""
        if not self._loaded.done() or self._stopping:
            return
        first = self._loaded.result()
        if (first.inputs, first.outputs) != (started.inputs, started.outputs):
            raise ModelLoadError(
                f"{self._spec.path} has changed its inputs or outputs since it was loaded",
                hint="load the model again",
            )

    # Ends

    def _give_up(self, place: _Place, error: ModelLoadError, now_s: float) -> None:
        """This start has failed, though the process may still be there."""
        self._start_failed(error)
        self._end(place, now_s)

    def _start_failed(self, error: ModelLoadError) -> None:
        if not self._loaded.done():
            self._loaded.set_exception(error)
            self._begin_to_stop()
        elif not self._stopping:
            _log.error("model %s: restart failed: %s", self._spec.model, error)

    def _end(self, place: _Place, now_s: float) -> None:
        if place.child is None:
            place.state, place.due_s = _State.GONE, math.inf
        elif place.state in (_State.STARTING, _State.SERVING):
            place.state, place.due_s = _State.LEAVING, now_s + LEAVE_TIMEOUT_S
            self._unwatch(place.child.channel)
            place.child.hang_up()

    def _begin_to_stop(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        self._stopping = True
        self.pool.close()
        for place in self._places:
            self._end(place, time.monotonic())

    def _child_died(self, place: _Place, child: Child) -> None:
        if place.child is not child:
            return
        self._unwatch(child.pidfd)
        self._unwatch(child.channel)
        if place.log is not None:
            self._unwatch(place.log)
            place.log.close()
        reason = child.reap()
        if not self._stopping:
            self._tell(logging.WARNING, f"child process {child.pid} {reason}")
        if place.state is _State.STARTING:
            self._start_failed(self._last_words(child))
        if place.pooled:
            self.pool.remove(child)
        else:
            child.close()
        place.child, place.log = None, None
        self._pause(place, time.monotonic() - place.since_s if place.pooled else 0.0)

    def _last_words(self, child: Child) -> ModelLoadError:
        """Why a child died while it started: of a refusal that was not read yet, or without."""
        try:
            # What it sent is still readable, and after the hang-up reading cannot block.
            child.started()
        except ModelLoadError as error:
            return error
        except Disconnected:
            pass
        return ModelLoadError(
            f"the child process {child.reason} while it loaded {self._spec.path}",
            hint="what it printed is in the server's log; a crash in a library, or sys.exit?",
            reason=child.reason,
        )

    def _pause(self, place: _Place, lived_s: float) -> None:
        place.pooled = False
        if self._stopping:
            place.state, place.due_s = _State.GONE, math.inf
            return
        pause_s = place.backoff.pause_s(lived_s)
        place.state, place.due_s = _State.PAUSING, time.monotonic() + pause_s
        _log.warning("model %s: next start in %.1f s", self._spec.model, pause_s)

    def _tell(self, level: int, event: str) -> None:
        _log.log(level, "model %s: %s", self._spec.model, event)
        if self._notify is not None:
            try:
                self._notify(event)
            except Exception:  # noqa: BLE001 - the children need this thread, whoever fails to listen
                _log.exception("model %s: whoever was told of it failed", self._spec.model)

    def _child_printed(self, place: _Place, log: ChildLog) -> None:
        if place.log is log and not log.forward():
            self._unwatch(log)

    def _unwatch(self, source: int | Channel | ChildLog) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(source)
