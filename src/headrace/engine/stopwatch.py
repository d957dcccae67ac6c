"""How long an execution takes, on a machine that others use too.

A neighbour makes the wall clock late but not the processor clock of this process; a model
that uses several threads, or another process, makes the processor clock wrong but not the
wall clock. So the smaller of the two counts, where the processor clock can be believed. It cannot
be for a model in a child process: what this process computes meanwhile (it imports, it loads other
models) is not the model's time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from headrace.runtimes.base import LoadedModel

Inputs = list[np.ndarray | None]

_BELIEVABLE = 4
"""If the processor clock shows less than a quarter of the wall clock, the work was done
elsewhere (an accelerator, a remote service), and only the wall clock knows."""

_REPEATS = 5
_ENOUGH_NS = 20_000_000
"""A quick look stops repeating after this much time."""


def time_once(loaded: LoadedModel, inputs: Inputs) -> int:
    """Nanoseconds of one execution; at least 1."""
    cpu_ns, wall_ns = time.process_time_ns(), time.monotonic_ns()
    loaded.execute(inputs)
    taken_ns = time.monotonic_ns() - wall_ns
    busy_ns = time.process_time_ns() - cpu_ns
    computes_here = getattr(loaded, "may_run_inline", True)
    if computes_here and busy_ns * _BELIEVABLE >= taken_ns:
        taken_ns = min(taken_ns, busy_ns)
    return max(1, taken_ns)


def time_execution(loaded: LoadedModel, inputs: Inputs) -> int:
    """The best of a few, because noise only ever adds. The first of a shape does not count."""
    loaded.execute(inputs)
    best, spent = 2**62, 0
    for _ in range(_REPEATS):
        taken_ns = time_once(loaded, inputs)
        best = min(best, taken_ns)
        spent += taken_ns
        if spent > _ENOUGH_NS:
            break
    return best


def time_each(loaded: LoadedModel, shapes: Sequence[Inputs], deadline_ns: int) -> list[int]:
    """The best time of each, measured in turns so that a passing disturbance hits all alike.

    Goes round until ``deadline_ns`` (monotonic) or five times. What there was no time for at
    all is missing from the end of the list.
    """
    best: list[int] = []
    for inputs in shapes:
        if best and time.monotonic_ns() + 2 * best[-1] > deadline_ns:
            break
        loaded.execute(inputs)  # the first of a shape may compile or allocate
        best.append(time_once(loaded, inputs))
    for _ in range(_REPEATS - 1):
        for index in range(len(best)):
            if time.monotonic_ns() + best[index] > deadline_ns:
                return best
            best[index] = min(best[index], time_once(loaded, shapes[index]))
    return best
