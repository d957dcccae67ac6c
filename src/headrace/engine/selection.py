"""Runtime ``auto``: loads the model in every runtime that can run it and keeps the faster.

The first candidate is the reference. Another may only win if its answers agree with the
reference's on sample inputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np

from headrace.engine.calibrate import NotMeasured, sample_inputs, working_size
from headrace.engine.stopwatch import time_execution
from headrace.errors import HeadraceError, ModelLoadError
from headrace.runtimes.base import InstanceConfig, LoadedModel

_LOG = logging.getLogger("headrace.engine")

_SLOW_NS = 50_000_000
"""A lone request that takes longer than this is waited for by a person; below it throughput
per core counts more, and one thread per execution wastes nothing."""

_WORTH = 1.5
"""All cores on one execution must make it this much faster, or they serve better apart."""

_ROWS = (1, 8)
_AGREE = 1e-3
"""Largest difference, relative to the largest magnitude of the output, that still counts as
the same answer: fp32 kernels differ by 1e-6 to 1e-4, a lower precision by more."""


def keep_faster(
    candidates: Sequence[str], load: Callable[[str], LoadedModel], *, padded: bool
) -> tuple[str, LoadedModel]:
    """Loads every candidate, measures, unloads all but the winner.

    Raises:
        ModelLoadError: none of them could load it; the first one's error.
    """
    loaded: dict[str, LoadedModel] = {}
    first_error: HeadraceError | None = None
    for name in candidates:
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
    try:
        free = 32 if padded else working_size(loaded[reference])
    except NotMeasured:
        return reference
    expected = [
        loaded[reference].execute(sample_inputs(loaded[reference].inputs, rows, free))
        for rows in _ROWS
    ]
    scores: dict[str, float] = {}
    for name, model in loaded.items():
        try:
            scores[name] = _score(model, free, expected)
        except HeadraceError as error:
            _LOG.info("runtime %s is out: %s", name, error.message)
    winner = min(scores, key=scores.__getitem__)
    _LOG.info(
        "runtime auto: %s",
        ", ".join(f"{name} {math.exp(score) / 1e6:.2f} ms" for name, score in scores.items()),
    )
    return winner


def _score(model: LoadedModel, free: int, expected: Sequence[Sequence[np.ndarray]]) -> float:
    """The mean logarithm of the execution times; lower is faster."""
    total = 0.0
    for rows, outputs in zip(_ROWS, expected, strict=True):
        inputs = sample_inputs(model.inputs, rows, free)
        for want, got in zip(outputs, model.execute(inputs), strict=True):
            if want.dtype.kind == "f" and want.size:
                scale = float(np.abs(want).max()) or 1.0
                if not np.allclose(want, got, atol=_AGREE * scale, rtol=0, equal_nan=True):
                    raise ModelLoadError("its answers differ from the reference runtime's")
            elif not np.array_equal(want, got):
                raise ModelLoadError("its answers differ from the reference runtime's")
        total += math.log(time_execution(model, inputs))
    return total / len(_ROWS)
