"""A newcomer runs what its predecessor was given lately, before anybody asks it anything.

Memory for the shapes that really come is then there, kernels are compiled, and one that cannot
run them is found out while the one before it still answers. The values are made up: only shapes
are remembered, because what callers send is theirs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import msgspec
import numpy as np

from headrace.engine.calibrate import sample_inputs
from headrace.engine.health import Shapes
from headrace.engine.served import ServedModel
from headrace.errors import HeadraceError, ModelLoadError
from headrace.runtimes.base import LoadedModel

_LOG = logging.getLogger("headrace.engine")


def shadow_warm(
    newcomer: ServedModel,
    shapes: Sequence[Shapes],
    before: ServedModel | None,
    seconds: float,
) -> int:
    """Runs batches of these shapes, the most frequent first. Blocks; any thread.

    Args:
        newcomer: loaded, not yet published.
        shapes: of the predecessor's batches.
        before: the predecessor, asked the same where the newcomer fails: what neither can do
            with made-up values proves nothing.
        seconds: when to stop.

    Returns:
        How many shapes were run.

    Raises:
        ModelLoadError: the newcomer fails at what its predecessor does.
    """
    if newcomer.takes_requests or newcomer.sequence_inputs is not None or newcomer.steps:
        return 0  # what keeps a state must not be told what is not true
    ends_s = time.monotonic() + seconds
    ran = 0
    for each in shapes:
        if time.monotonic() >= ends_s:
            break
        inputs = _made_up(newcomer.loaded, each)
        if inputs is None:  # its signature is another
            continue
        try:
            newcomer.loaded.execute(inputs)
        except HeadraceError as error:
            if before is None or not _can(before.loaded, inputs):
                continue
            raise ModelLoadError(
                f"model '{newcomer.name}' version {newcomer.version} failed at a batch of shapes "
                f"{_text(each)} that the version before it runs: {error.message}",
                code="warm_up_failed",
                hint="it was not published; the version before it goes on serving",
                model=newcomer.name,
            ) from error
        ran += 1
    if ran:
        _LOG.info(
            "model %s version %s: warmed with %d recorded shapes",
            newcomer.name,
            newcomer.version,
            ran,
        )
    return ran


def _made_up(loaded: LoadedModel, shapes: Shapes) -> list[np.ndarray | None] | None:
    if len(shapes) != len(loaded.inputs):
        return None
    inputs: list[np.ndarray | None] = []
    for spec, shape in zip(loaded.inputs, shapes, strict=True):
        if shape is None:
            if not spec.optional:
                return None
            inputs.append(None)
            continue
        fits = len(shape) == len(spec.shape) and all(
            size in (-1, given) for size, given in zip(spec.shape, shape, strict=True)
        )
        if not fits:
            return None
        inputs += sample_inputs([msgspec.structs.replace(spec, shape=shape)], 1, 1)
    return inputs


def _can(loaded: LoadedModel, inputs: Sequence[np.ndarray | None]) -> bool:
    try:
        loaded.execute(inputs)
    except HeadraceError:
        return False
    return True


def _text(shapes: Shapes) -> str:
    return ", ".join("x".join(map(str, shape)) if shape else "-" for shape in shapes)
