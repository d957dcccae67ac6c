"""Batches whose rows stand at the slots of their sequences: Triton's direct strategy.

A model that keeps what it learns of a sequence by the number of its row needs that: the row of
a sequence is the same in every batch, and where a sequence has no request just now its row is
empty, which the control READY says. Models whose state is an input, or that are told whose
request it is, need no such thing; their batches have no empty rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from headrace.engine.inflight import Member
from headrace.engine.sequence_inputs import SequenceInputs
from headrace.runtimes.base import PinnedInstance


class SlotArrays(list["np.ndarray | None"]):
    """The arrays of one request, one row each, for the slot of its sequence.

    ``life``: which one of those that were in its instance's place, one after another.
    """

    __slots__ = ("life", "slot")

    def __init__(self, arrays: Sequence[np.ndarray | None], slot: int, life: int) -> None:
        super().__init__(arrays)
        self.slot = slot
        self.life = life


class SlotRows:
    """An instance as a model that is given requests in the order of their slots, or any other.

    One batch at a time: :meth:`collate`, then :meth:`execute`, by one thread.
    """

    def __init__(self, instance: PinnedInstance, inputs: SequenceInputs) -> None:
        self._instance = instance
        self._empty = {control.index: control.false for control in inputs.controls}
        self._slots: list[int] = []
        self.inputs = instance.inputs
        self.outputs = instance.outputs
        self.concurrency = 1
        self.shape_policy = instance.shape_policy

    @property
    def lost(self) -> bool:
        """See :class:`headrace.runtimes.base.PinnedInstance`."""
        return self._instance.lost

    def renew(self) -> None:
        """See :class:`headrace.runtimes.base.PinnedInstance`."""
        self._instance.renew()

    def collate(self, parts: Sequence[Member]) -> tuple[list[np.ndarray | None], int]:
        """Every request in the row of its slot; rows without one are zeros, and not READY."""
        columns = [cast("SlotArrays", part.arrays) for part in parts]
        self._slots = [arrays.slot for arrays in columns]
        total = max(self._slots) + 1
        batch: list[np.ndarray | None] = []
        for index, first in enumerate(columns[0]):
            if first is None:
                batch.append(None)
                continue
            rows = np.zeros((total, *first.shape[1:]), first.dtype)
            if index in self._empty:
                rows[:] = self._empty[index]
            elif first.dtype == object:
                rows[:] = b""
            for arrays in columns:
                rows[arrays.slot] = cast("np.ndarray", arrays[index])[0]
            batch.append(rows)
        return batch, len(parts)

    def execute(self, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """The rows of the requests alone, in the order in which they were collated."""
        outputs = self._instance.execute(inputs)
        return [output[self._slots] for output in outputs]

    def unload(self) -> None:
        """Nothing: the model it is of is unloaded."""
