"""Measures a freshly loaded model: does batching work, does it pay, how far, and what is cheap.

Nothing here is asked of the user: how many rows or tokens make a good batch, and whether the
model is cheaper than a thread hop, are questions to the model on this machine. Batching is
*proved* on sample inputs (two rows together must give what each gives alone) before any two
callers are put into one execution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from headrace.clock import MonotonicClock
from headrace.core.events import LearntCost
from headrace.engine.collate import collate, split
from headrace.engine.served import Profile
from headrace.engine.stopwatch import Inputs, time_each, time_execution
from headrace.errors import HeadraceError
from headrace.limits import MIB
from headrace.runtimes.base import LoadedModel
from headrace.tasks.base import Item, Padding
from headrace.types import DTYPE_OF, DYNAMIC, TensorSpec
from headrace.units import size_text

_now_ns = MonotonicClock.now_ns

ROWS_MAX = 256
"""Largest batch tried. Beyond it even the tiniest models gain less than a per cent."""

DEFAULT_BATCH_TOKENS = 512
"""Used until something better was measured: on AVX2 and AVX-512 machines larger batches of a
small encoder leave the cache, smaller ones pay the overhead more often."""

DEFAULT_OVERHEAD_TOKENS = 16
"""Until measured: starting an execution of a small encoder costs as much as so many tokens."""

MEASURED_IN_PART = "measured in part"

TOKEN_BUDGETS = (256, 512, 1024)
_PROBE_LENGTH = 32
_NEAR = 1.05
"""The smallest batch whose cost per row (or token) is this near the best: what a larger one
gains does not repay that everybody in it waits longer."""

SAMPLE_ROW_BYTES = 256 * MIB
"""A model whose rows are larger is not measured: its shape is what its file says, and eight rows
are made up at one time."""

_FREE_SIZES = (8, 32, 224, 1)
"""Tried, in this order, for dimensions that the model leaves open."""


class NotMeasured(Exception):
    """The model takes none of the sample inputs; it is served one request at a time."""


def sample_inputs(
    specs: Sequence[TensorSpec], rows: int, free: int, seed: int = 0, high: int = 2
) -> Inputs:
    """Random inputs of the signature: ``rows`` along the first axis, ``free`` along open ones.

    Integers stay below ``high``, so that they are valid indices of almost anything.
    """
    rng = np.random.default_rng(seed)
    inputs: Inputs = []
    for spec in specs:
        shape = tuple(
            (rows if axis == 0 else free) if size == DYNAMIC else size
            for axis, size in enumerate(spec.shape)
        )
        dtype = DTYPE_OF[spec.datatype]
        if spec.name.endswith("mask"):
            array = np.ones(shape, dtype=dtype)  # a masked token would not take part
        elif spec.datatype == "BYTES":
            array = np.full(shape, b"a", dtype=object)
        elif spec.datatype == "BF16":
            # The upper half of a float32 is a bfloat16.
            array = (rng.random(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        elif dtype.kind == "f":
            array = rng.random(shape, np.float32).astype(dtype)
        else:
            array = rng.integers(0, high, shape).astype(dtype)
        inputs.append(array)
    return inputs


def calibrate(
    loaded: LoadedModel, padding: Padding | None, *, hop_ns: int, budget_ns: int
) -> Profile:
    """Measures within about ``budget_ns`` (at least the few runs that decide correctness).

    The model must be idle if its ``concurrency`` is 1.
    """
    deadline_ns = _now_ns() + budget_ns
    if not getattr(loaded, "may_run_inline", True):
        hop_ns = 0
    try:
        free = _PROBE_LENGTH if padding is not None else working_size(loaded)
        row_ns = time_execution(loaded, sample_inputs(loaded.inputs, 1, free))
    except NotMeasured as error:
        return Profile(reason=str(error))
    endless: Callable[[], bool] | None = getattr(loaded, "may_be_endless", None)
    if row_ns < hop_ns and endless is not None and endless():
        hop_ns = 0
    reason = _why_not_batchable(loaded, free)
    if not reason and padding is not None:
        reason = _why_not_paddable(loaded, padding)
    if reason:
        return Profile(
            inline_rows=int(row_ns < hop_ns),
            row_ns=row_ns,
            reason=reason,
            costs=_costs([(1, row_ns)]),
        )
    if padding is not None:
        return _calibrate_tokens(loaded, row_ns, deadline_ns)
    return _calibrate_rows(loaded, free, row_ns, hop_ns=hop_ns, deadline_ns=deadline_ns)


def _calibrate_rows(
    loaded: LoadedModel, free: int, row_ns: int, *, hop_ns: int, deadline_ns: int
) -> Profile:
    inline_rows = int(row_ns < hop_ns)
    measured = [(1, row_ns)]
    while (rows := 2 * measured[-1][0]) <= ROWS_MAX:
        if _now_ns() + 3 * 2 * measured[-1][1] > deadline_ns:
            break
        taken_ns = time_execution(loaded, sample_inputs(loaded.inputs, rows, free))
        measured.append((rows, taken_ns))
        if taken_ns < hop_ns:
            inline_rows = rows
        if rows >= 8 * _smallest_near_best(measured):
            break  # three doublings without gain: it has flattened out
    best_rows = _smallest_near_best(measured)
    return Profile(
        max_rows=best_rows,
        inline_rows=inline_rows,
        row_ns=row_ns,
        batchable=True,
        costs=_costs(measured),
    )


def _calibrate_tokens(loaded: LoadedModel, row_ns: int, deadline_ns: int) -> Profile:
    shapes = [
        sample_inputs(loaded.inputs, tokens // _PROBE_LENGTH, _PROBE_LENGTH)
        for tokens in (_PROBE_LENGTH, *TOKEN_BUDGETS)
    ]
    times = time_each(loaded, shapes, deadline_ns)
    row_ns = min(row_ns, times[0])
    measured = list(zip(TOKEN_BUDGETS, times[1:], strict=False))
    budget = _smallest_near_best(measured) if measured else DEFAULT_BATCH_TOKENS
    overhead = DEFAULT_OVERHEAD_TOKENS
    if measured:
        # t = a + c x tokens through one row and the best batch; a / c is in tokens.
        per_token = min(taken_ns / tokens for tokens, taken_ns in measured)
        overhead = min(max(0, round(row_ns / per_token) - _PROBE_LENGTH), _PROBE_LENGTH)
    return Profile(
        max_rows=ROWS_MAX,
        batch_tokens=budget,
        overhead_tokens=overhead,
        row_ns=row_ns,
        batchable=True,
        costs=_costs([(_PROBE_LENGTH, row_ns), *measured]),
        reason="" if len(measured) == len(TOKEN_BUDGETS) else MEASURED_IN_PART,
    )


def _costs(measured: Sequence[tuple[int, int]]) -> dict[int, LearntCost]:
    """Where learning begins, on instances of the one kind that there is."""
    return {0: LearntCost(tuple([(float(units), float(ns)) for units, ns in measured]))}


def _smallest_near_best(measured: Sequence[tuple[int, int]]) -> int:
    """Of (size, nanoseconds) pairs, ascending, the smallest size with nearly the best price."""
    best = min(taken_ns / size for size, taken_ns in measured)
    return next(size for size, taken_ns in measured if taken_ns / size <= best * _NEAR)


def working_size(loaded: LoadedModel) -> int:
    """A size for open dimensions that the model accepts."""
    row_bytes = sum(_row_bytes(spec) for spec in loaded.inputs)
    if row_bytes > SAMPLE_ROW_BYTES:
        raise NotMeasured(f"a row has {size_text(row_bytes)} of inputs, too much to make up")
    open_axes = any(DYNAMIC in spec.shape[1:] for spec in loaded.inputs)
    problem = ""
    for free in _FREE_SIZES if open_axes else (1,):
        try:
            loaded.execute(sample_inputs(loaded.inputs, 1, free))
        except HeadraceError as error:
            problem = problem or error.message
        else:
            return free
    raise NotMeasured(f"no sample input could be run: {problem}")


def _row_bytes(spec: TensorSpec) -> int:
    """What one row takes, where open dimensions are 1."""
    sizes = (max(1, size) for size in spec.shape[1:])
    return math.prod(sizes) * DTYPE_OF[spec.datatype].itemsize


def _why_not_batchable(loaded: LoadedModel, free: int) -> str:
    """ "" where rows go through the model independently of one another."""
    for spec in (*loaded.inputs, *loaded.outputs):
        if not spec.shape or spec.shape[0] != DYNAMIC:
            return f"the first dimension of '{spec.name}' is not free"
    first = sample_inputs(loaded.inputs, 1, free, seed=1)
    second = sample_inputs(loaded.inputs, 1, free, seed=2)
    together = [
        np.concatenate([a, b])
        for a, b in zip(first, second, strict=True)
        if a is not None
        if b is not None
    ]
    try:
        alone = [loaded.execute(first), loaded.execute(second)]
        both = loaded.execute(together)
    except HeadraceError as error:
        return f"two rows together fail: {error.message}"
    for spec, a, b, ab in zip(loaded.outputs, *alone, both, strict=True):
        if a.shape[0] != 1 or ab.shape[0] != 2:
            return f"output '{spec.name}' does not have one row per row of input"
        if not (_close(a, ab[:1]) and _close(b, ab[1:])):
            return f"output '{spec.name}' of a row depends on its neighbours"
    return ""


def _why_not_paddable(loaded: LoadedModel, padding: Padding) -> str:
    """ "" where padding a row to a longer neighbour leaves its answer as it was."""
    items = [
        Item(tuple(sample_inputs(loaded.inputs, 1, length, seed=length)), 1, length)
        for length in (_PROBE_LENGTH // 4, _PROBE_LENGTH)
    ]
    try:
        alone = [loaded.execute(list(item.arrays)) for item in items]
        batch, rows = collate(items, padding, loaded.shape_policy)
        pieces = split(loaded.execute(batch), [1, 1], rows)
    except HeadraceError as error:
        return f"rows of different length together fail: {error.message}"
    for item, expected, piece in zip(items, alone, pieces, strict=True):
        for spec, want, got in zip(loaded.outputs, expected, piece, strict=True):
            if got.ndim > padding.axis and got.shape != want.shape:
                where = (slice(None),) * padding.axis
                got = got[(*where, slice(0, item.length))]  # noqa: PLW2901 - the real part of it
            if not _close(want, got):
                return f"output '{spec.name}' of a row changes when the row is padded"
    return ""


def _close(alone: np.ndarray, together: np.ndarray) -> bool:
    if alone.shape != together.shape:
        return False
    if alone.dtype.kind != "f":
        return bool(np.array_equal(alone, together))
    scale = float(np.abs(np.nan_to_num(alone)).max(initial=1e-6))
    return bool(np.allclose(alone, together, rtol=1e-3, atol=1e-3 * scale, equal_nan=True))
