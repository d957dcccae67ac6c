"""One instance of a model, told apart from the others: what a sequence needs.

A child that died is replaced, and the one that replaces it knows nothing of what the first one
kept. So whoever was served here must be told before anything of theirs runs there again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from headrace.errors import InstanceDied
from headrace.runtimes.base import LoadedModel, ShapePolicy
from headrace.runtimes.python.child import Child
from headrace.runtimes.python.pool import Pool
from headrace.types import TensorSpec


class Place:
    """The child of one place, and whether it is still the one that was here before."""

    def __init__(self, pool: Pool, number: int, model: str) -> None:
        self._pool = pool
        self._number = number
        self._model = model
        self._child: Child | None = None

    @property
    def lost(self) -> bool:
        """The child that was used here has died, and nobody has said yet that this is known."""
        child = self._child
        return child is not None and (child.broken or child.died.is_set())

    def renew(self) -> None:
        """Whoever is here from now on is welcome: nothing is expected of it."""
        self._child = None

    @contextmanager
    def child(self) -> Iterator[Child]:
        """Lends the child.

        Raises:
            InstanceDied: it is not the one that was used since :meth:`renew`, or none is alive
                here and none will be soon.
        """
        child = self._pool.take(self._number)
        try:
            if self._child is None:
                self._child = child
            elif self._child is not child:
                raise InstanceDied(
                    f"the child process of {self._model!r} that kept the state was replaced",
                    hint="begin the sequence anew",
                    model=self._model,
                )
            yield child
        finally:
            self._pool.put(child)


class PinnedProcess:
    """One child of a :class:`.process.ProcessModel`; a ``runtimes.base.PinnedInstance``."""

    may_run_inline = False
    concurrency = 1

    def __init__(self, model: LoadedModel, place: Place) -> None:
        self.inputs: tuple[TensorSpec, ...] = model.inputs
        self.outputs: tuple[TensorSpec, ...] = model.outputs
        self.shape_policy: ShapePolicy = model.shape_policy
        self._place = place

    @property
    def lost(self) -> bool:
        """See :class:`headrace.runtimes.base.PinnedInstance`."""
        return self._place.lost

    def renew(self) -> None:
        """See :class:`headrace.runtimes.base.PinnedInstance`."""
        self._place.renew()

    def execute(self, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """See :meth:`headrace.runtimes.base.LoadedModel.execute`."""
        with self._place.child() as child:
            return child.call(inputs)

    def unload(self) -> None:
        """Nothing: the model it is of is unloaded."""


class Call(Protocol):
    """What runs one batch on one object."""

    def __call__(self, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """As ``LoadedModel.execute``."""
        ...


class PinnedThread:
    """One object of a :class:`.runtime.ThreadModel`. It cannot die."""

    concurrency = 1
    lost = False

    def __init__(self, model: LoadedModel, call: Call) -> None:
        self.inputs: tuple[TensorSpec, ...] = model.inputs
        self.outputs: tuple[TensorSpec, ...] = model.outputs
        self.shape_policy: ShapePolicy = model.shape_policy
        self._call = call

    def renew(self) -> None:
        """Nothing: nothing is ever lost."""

    def execute(self, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """See :meth:`headrace.runtimes.base.LoadedModel.execute`."""
        return self._call(inputs)

    def unload(self) -> None:
        """Nothing: the model it is of is unloaded."""
