"""A model from a store or a load request is opened and run in a child process first.

What it asks for there costs a process with a deadline and a limit on its memory, and not the
server: a graph that never ends is killed with the child, one that asks for all memory is refused
it. A model that has passed is then opened in the server, where running it costs no hop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import msgspec

from headrace.engine import assembly
from headrace.engine.calibrate import calibrate
from headrace.engine.opening import Opened
from headrace.errors import HeadraceError, ModelLoadError, OperatorError
from headrace.limits import GIB
from headrace.repository.base import ModelSource
from headrace.runtimes import registry
from headrace.runtimes.base import Artifact, InstanceConfig, LoadedModel
from headrace.runtimes.ending import on_end

TRIAL_MEMORY_BYTES = 4 * GIB
"""What a child may allocate for any model: an interpreter with a runtime takes 0.3 GiB, the rest
is for intermediate results of a few rows."""

MEMORY_PER_BYTE = 8
"""What it may allocate on top for each byte of the model's files: weights are read, packed and
perhaps converted to another datatype."""

_MEASURE_NS = 60_000_000
"""As long as a model is measured in the server, at least."""

_NO_RESTART_S = 3600.0
"""A child that has failed is not started again: the trial is over."""

_OUT_OF_MEMORY = ("bad_alloc", "failed to allocate memory", "unable to allocate", "memoryerror")
"""What runtimes and numpy say of it."""


class Trials:
    """Tries models out.

    Args:
        timeout_s: from the start of a child to the end of its last run.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def run(
        self,
        source: ModelSource,
        runtime: str,
        artifact: Artifact,
        instances: InstanceConfig,
        model_bytes: int,
    ) -> None:
        """Opens the model, measures it and runs its warm-up requests, all in a child. Blocks.

        Raises:
            ModelLoadError: it could not be opened, died, asked for too much memory, or was not
                ready in time (``trial_timeout``).
        """
        due_s = time.monotonic() + self._timeout_s
        ours = {"start_timeout_s": self._timeout_s, "restart_delay_s": _NO_RESTART_S}
        tried = msgspec.structs.replace(
            artifact, options={**artifact.options, **ours}, compiled=None
        )
        alone = InstanceConfig(instances.threads, 1)
        memory = TRIAL_MEMORY_BYTES + MEMORY_PER_BYTE * model_bytes
        try:
            model = registry.load(runtime, tried, alone, isolated=True, memory_bytes=memory)
        except ModelLoadError as error:
            raise self._late(source) if time.monotonic() >= due_s else error from None
        over = threading.Event()

        def end() -> None:
            over.set()
            _kill(model)

        on_end(end)
        timer = threading.Timer(due_s - time.monotonic(), end)
        timer.daemon = True
        timer.start()
        try:
            _use(Opened(source, runtime, alone, model, None, "", 0), model)
        except HeadraceError as error:
            if over.is_set():
                raise self._late(source) from None
            if isinstance(error, OperatorError):
                raise
            raise _failed(source, error.message) from None
        finally:
            timer.cancel()
            model.unload()
        if over.is_set():  # measuring takes a failed run for an answer
            raise self._late(source)

    def _late(self, source: ModelSource) -> ModelLoadError:
        return ModelLoadError(
            f"model '{source.name}' was not opened and run once within server.trial_timeout_s = "
            f"{self._timeout_s:g}",
            code="trial_timeout",
            hint="raise server.trial_timeout_s if it needs longer; a model whose graph never ends "
            "cannot be served",
            model=source.name,
        )


def _use(opened: Opened, model: LoadedModel) -> None:
    served = assembly.served_of(opened)
    profile = assembly.trusted_profile(served)
    if profile is None:
        profile = calibrate(model, served.padding, hop_ns=0, budget_ns=_MEASURE_NS)
    died = not _children(model)
    if died or any(word in profile.reason.lower() for word in _OUT_OF_MEMORY):
        raise _failed(opened.source, profile.reason or "its process died")
    assembly.warm(served, opened.source, profile)


def _failed(source: ModelSource, reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"model '{source.name}' was tried in a process of its own, and cannot be run: {reason}",
        code="trial_failed",
        model=source.name,
    )


def _children(model: LoadedModel) -> tuple[int, ...]:
    pids: tuple[int, ...] = getattr(model, "process_ids", tuple)()
    return pids


def _kill(model: LoadedModel) -> None:
    """Its child, with whatever it is in."""
    for pid in _children(model):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
