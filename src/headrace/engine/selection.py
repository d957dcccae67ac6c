"""Runtime ``auto``: loads the model in every runtime that can run it and keeps the faster.

The first candidate is the reference. Another may only win if its answers agree with the
reference's on sample inputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np

from headrace.clock import MonotonicClock
from headrace.engine.calibrate import NotMeasured, sample_inputs, working_size
from headrace.engine.stopwatch import Inputs, time_execution, time_once
from headrace.errors import HeadraceError, ModelLoadError
from headrace.runtimes.base import InstanceConfig, LoadedModel

_LOG = logging.getLogger("headrace.engine")

_SLOW_NS = 50_000_000
"""A lone request that takes longer than this is waited for by a person; below it throughput
per core counts more, and one thread per execution wastes nothing."""

_WORTH = 1.5
"""All cores on one execution must make it this much faster, or they serve better apart."""

_ROWS = (1, 8)
_TURNS = 5
_TURNS_NS = 1_000_000_000
"""Candidates are timed in turns, so that a disturbance hits all alike; for this long, but
never less than two turns."""

_TINY_NS = 30_000
"""Below this nothing is left to win: another runtime costs memory and gives no time back."""

_AGREE = 1e-3
"""Largest difference, relative to the largest magnitude of the output, that still counts as
the same answer: fp32 kernels differ by 1e-6 to 1e-4, a lower precision by more."""


def keep_faster(
    candidates: Sequence[str], load: Callable[[str], LoadedModel], *, padded: bool
) -> tuple[str, LoadedModel]:
    """Loads the candidates, measures, unloads all but the winner.

    Raises:
        ModelLoadError: none of them could load it; the first one's error.
    """
    loaded: dict[str, LoadedModel] = {}
    first_error: HeadraceError | None = None
    for name in candidates:
        if loaded and not _worth_comparing(next(iter(loaded.values())), padded=padded):
            break
        try:
            loaded[name] = load(name)
        except HeadraceError as error:
            first_error = first_error or error
            _LOG.info("runtime %s cannot load it: %s", name, error.message)
    if not loaded:
        raise first_error or ModelLoadError("no installed runtime can run this model")
    winner = next(iter(loaded)) if len(loaded) == 1 else _winner(loaded, padded=padded)
    for name, model in loaded.items():
        if name != winner:
            model.unload()
    return winner, loaded[winner]


def _worth_comparing(reference: LoadedModel, *, padded: bool) -> bool:
    """Whether another runtime could serve this model better and as well.

    Not if it is tiny already. Not if it computes with 64-bit integers that are no token ids:
    a runtime that narrows them to 32 bits overflows in silence, and samples do not show it.
    """
    wide = any(spec.datatype == "INT64" for spec in (*reference.inputs, *reference.outputs))
    if wide and not padded:
        return False
    try:
        free = 32 if padded else working_size(reference)
    except NotMeasured:
        return False
    return time_execution(reference, sample_inputs(reference.inputs, 1, free)) > _TINY_NS


def choose_threads(
    model: LoadedModel, load: Callable[[InstanceConfig], LoadedModel], *, cores: int, padded: bool
) -> tuple[InstanceConfig, LoadedModel]:
    """One thread for each of several executions, or all cores on one: measured, for slow models.

    ``model`` is loaded with the first. On a busy machine the second never looks better than
    it is, so a disturbed measurement keeps the first.
    """
    apart = InstanceConfig(threads=1, concurrency=cores)
    if cores == 1:
        return apart, model
    try:
        free = 32 if padded else working_size(model)
    except NotMeasured:
        return apart, model
    inputs = sample_inputs(model.inputs, 1, free)
    alone_ns = time_execution(model, inputs)
    if alone_ns < _SLOW_NS:
        return apart, model
    together = InstanceConfig(threads=cores, concurrency=1)
    other = load(together)
    if time_execution(other, inputs) * _WORTH < alone_ns:
        model.unload()
        return together, other
    other.unload()
    return apart, model


def _winner(loaded: dict[str, LoadedModel], *, padded: bool) -> str:
    reference = next(iter(loaded))
    signature = loaded[reference].inputs
    free = 32 if padded else working_size(loaded[reference])
    shapes = [sample_inputs(signature, rows, free) for rows in _ROWS]
    expected = [loaded[reference].execute(inputs) for inputs in shapes]
    fit: dict[str, LoadedModel] = {}
    for name, model in loaded.items():
        try:
            _check_agreement(model, loaded[reference], shapes, expected)
        except HeadraceError as error:
            _LOG.info("runtime %s is out: %s", name, error.message)
        else:
            fit[name] = model
    scores = _scores(fit, shapes)
    _LOG.info(
        "runtime auto: %s",
        ", ".join(f"{name} {math.exp(score) / 1e6:.2f} ms" for name, score in scores.items()),
    )
    return min(scores, key=scores.__getitem__)


def _scores(models: dict[str, LoadedModel], shapes: Sequence[Inputs]) -> dict[str, float]:
    """The mean logarithm of each one's best execution times; lower is faster."""
    best = {name: [float("inf")] * len(shapes) for name in models}
    started_ns = MonotonicClock.now_ns()
    for turn in range(_TURNS):
        if turn >= 2 and MonotonicClock.now_ns() - started_ns > _TURNS_NS:
            break
        for index, inputs in enumerate(shapes):
            for name, model in models.items():
                best[name][index] = min(best[name][index], time_once(model, inputs))
    return {name: sum(map(math.log, times)) / len(times) for name, times in best.items()}


def _check_agreement(
    model: LoadedModel,
    reference: LoadedModel,
    shapes: Sequence[Inputs],
    expected: Sequence[Sequence[np.ndarray]],
) -> None:
    """The same signature, and the same answers on the samples.

    Raises:
        ModelLoadError: not the same.
    """
    if (model.inputs, model.outputs) != (reference.inputs, reference.outputs):
        raise ModelLoadError("it sees another signature than the reference runtime")
    for inputs, outputs in zip(shapes, expected, strict=True):
        for want, got in zip(outputs, model.execute(inputs), strict=True):
            if not _same(want, got):
                raise ModelLoadError("its answers differ from the reference runtime's")


def _same(want: np.ndarray, got: np.ndarray) -> bool:
    if want.dtype.kind != "f":
        return bool(np.array_equal(want, got))
    scale = float(np.abs(np.nan_to_num(want)).max(initial=0)) or 1.0
    return want.shape == got.shape and bool(
        np.allclose(want, got, atol=_AGREE * scale, rtol=0, equal_nan=True)
    )
