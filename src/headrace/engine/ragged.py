"""Rows of different size in one batch, one after another, without padding.

What Triton calls ragged batching: an input with ``allow_ragged_batch`` reaches the model as one
flat array of all that the requests sent, and a *batch input* tells it where one ends. The
kinds and their values are those of its ``model_config.proto`` (``BatchInput.Kind``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from headrace.config import BatchInputConfig
from headrace.engine.collate import collate
from headrace.engine.inflight import Member
from headrace.engine.served import Collate, ServedModel
from headrace.errors import ModelLoadError
from headrace.types import DTYPE_OF

_Sources = Sequence[np.ndarray]


def _element_count(sources: _Sources) -> np.ndarray:
    """How many elements each request sent."""
    return np.array([source.size for source in sources])


def _accumulated(sources: _Sources) -> np.ndarray:
    """Where each request's elements end."""
    return np.cumsum([source.size for source in sources])


def _accumulated_with_zero(sources: _Sources) -> np.ndarray:
    """Where they begin, and where the last one's end."""
    return np.concatenate([[0], _accumulated(sources)])


def _max_as_shape(sources: _Sources) -> np.ndarray:
    """As many elements as the largest request has; only the size means something."""
    return np.zeros(max(source.size for source in sources))


def _item_shape(sources: _Sources) -> np.ndarray:
    """The shape of every row, without its first axis: ``[rows, rank - 1]``."""
    return np.array([source.shape[1:] for source in sources for _ in range(len(source))])


def _item_shape_flat(sources: _Sources) -> np.ndarray:
    """The same as one row of numbers."""
    return _item_shape(sources).reshape(-1)


BATCH_INPUTS: Mapping[str, Callable[[_Sources], np.ndarray]] = MappingProxyType(
    {
        "BATCH_ELEMENT_COUNT": _element_count,
        "BATCH_ACCUMULATED_ELEMENT_COUNT": _accumulated,
        "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": _accumulated_with_zero,
        "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": _max_as_shape,
        "BATCH_ITEM_SHAPE": _item_shape,
        "BATCH_ITEM_SHAPE_FLATTEN": _item_shape_flat,
    }
)
"""Kind -> what it makes of the arrays that the requests of a batch sent for its source."""


class _BatchInput(msgspec.Struct, frozen=True):
    index: int
    source: int
    dtype: np.dtype[Any]
    values: Callable[[_Sources], np.ndarray]


def ragged_collate(served: ServedModel) -> Collate:
    """Replaces ``collate.collate`` for a model with ragged or batch inputs.

    Raises:
        ModelLoadError: a batch input is of an unknown kind or datatype, or its source is no
            input.
    """
    index = {spec.name: i for i, spec in enumerate(served.loaded.inputs)}
    made = [_batch_input(served.name, b, index) for b in served.config.batch_inputs]
    ragged, policy = sorted(served.ragged), served.loaded.shape_policy

    def ragged_batch(parts: Sequence[Member]) -> tuple[list[np.ndarray | None], int]:
        if ragged:
            rows = sum([part.rows for part in parts])
            batch: list[np.ndarray | None] = [
                _flat(parts, i) if i in served.ragged else _stacked(parts, i)
                for i in range(served.slots)
            ]
        else:
            batch, rows = collate(parts, served.padding, policy)
        for one in made:
            sources = [a for part in parts if (a := part.arrays[one.source]) is not None]
            if sources:
                batch[one.index] = one.values(sources).astype(one.dtype)
        return batch, rows

    return ragged_batch


def _batch_input(name: str, config: BatchInputConfig, index: Mapping[str, int]) -> _BatchInput:
    for what, known, said in (
        ("kind", BATCH_INPUTS, config.kind),
        ("datatype", DTYPE_OF, config.datatype),
        ("source", index, config.source),
        ("name", index, config.name),
    ):
        if said not in known:
            raise ModelLoadError(
                f"unable to load model '{name}', batch input '{config.name}' has an unknown "
                f"{what} '{said}'",
                code="wrong_signature",
                hint=f"one of {sorted(known)}",
                model=name,
            )
    return _BatchInput(
        index[config.name],
        index[config.source],
        DTYPE_OF[config.datatype],
        BATCH_INPUTS[config.kind],
    )


def _flat(parts: Sequence[Member], index: int) -> np.ndarray | None:
    arrays = [array.reshape(-1) for part in parts if (array := part.arrays[index]) is not None]
    return np.concatenate(arrays) if arrays else None


def _stacked(parts: Sequence[Member], index: int) -> np.ndarray | None:
    # Only equal shape keys meet, so an input is left out by all or by none.
    arrays = [array for part in parts if (array := part.arrays[index]) is not None]
    return np.concatenate(arrays) if arrays else None
