"""What a person sends, turned into rows of tensors, and back.

A task stands between a model's *public* signature (texts, images, records) and the
tensors of the runtime. Its two methods block, so the engine calls them off the event loop.
The engine learns ``length`` from :class:`Item` before it forms a batch, which is what lets
it put like with like.

A task never sees a batch: ``prepare`` makes items of one request, the engine batches items
of many requests and pads them, and ``finish`` is given back exactly the rows of that one
request. So no task can mix up two callers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np

from headrace.types import InferenceRequest, Tensor, TensorSpec


class Padding(msgspec.Struct, frozen=True):
    """How items of different length become one batch.

    ``axis`` (counted with the row axis, so 1 for ``[rows, tokens]``) is padded with
    ``values[i]`` for input ``i``; None leaves that input alone. Padding must be harmless:
    the model's own mask must make every row's answer independent of it.
    """

    values: tuple[int | float | None, ...]
    axis: int = 1


class Item(msgspec.Struct, gc=False):
    """The smallest thing the scheduler may place in a batch: ``rows`` that stay together.

    ``arrays``: one for each input of the runtime's model, in its order, first axis =
    ``rows``. ``length``: size of the padded axis (0 for tasks without ``padding``).
    """

    arrays: tuple[np.ndarray | None, ...]
    rows: int = 1
    length: int = 0


class Prepared(msgspec.Struct, gc=False):
    """One request as items, in the order of the answer, and what it consumed in tokens."""

    items: list[Item]
    tokens: int = 0


class Task(Protocol):
    """See the module. ``kind`` is one of the names in ``tasks/registry.py``.

    Attributes:
        inputs, outputs: the public signature, shown by the protocols' metadata.
        padding: None where items are only batched with items of exactly the same shape.
    """

    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    padding: Padding | None

    def prepare(self, request: InferenceRequest) -> Prepared:
        """Texts, images or records -> items. Blocks; thread-safe.

        The request was already checked against ``inputs`` (names, datatypes, shapes).

        Raises:
            InvalidRequest: what was sent cannot be read (not an image, unknown column ...).
        """
        ...

    def finish(
        self,
        request: InferenceRequest,
        items: Sequence[Item],
        results: Sequence[Sequence[np.ndarray]],
    ) -> list[Tensor]:
        """The model's outputs for every item -> the request's outputs. Thread-safe.

        ``results[k]`` are the runtime's outputs for ``items[k]``, first axis = its rows
        (padded along ``padding.axis`` as the batch was, where the model keeps that axis).
        All of ``outputs`` are returned, in order; the engine drops those not asked for.
        """
        ...
