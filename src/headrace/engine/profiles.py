"""Measurements that outlive the process: a restart is not a cold start.

One small JSON file per model, machine and runtime. A file that cannot be read, or was made by
another version, counts as absent; one that cannot be written is not an error, only a slower
next start.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from headrace.core.events import LearntCost
from headrace.engine.health import Shapes
from headrace.engine.served import Profile
from headrace.runtimes.base import InstanceConfig

_LOG = logging.getLogger("headrace.engine")
_FORMAT = 5

SHAPES_KEPT = 8
"""Of the batches that came most often; a start runs them before the model is ready."""

MAX_BYTES = 1024 * 1024
"""Of a file that is read; those that are written have a few kilobytes."""

_MAX_PARALLEL = 1024
"""Threads and instances that a file may ask for: more than any machine has cores for."""

_MAX_ELEMENTS = 2**28
"""Of one tensor of a batch that a start repeats: 1 GiB of FP32."""

_MAX_COUNT = 2**62


class StoredProfile(msgspec.Struct, frozen=True):
    """What is kept: the runtime and the threads that won, and what was measured with them.

    ``shapes``: of the batches that came most often.
    """

    runtime: str
    instances: InstanceConfig
    profile: Profile
    shapes: tuple[Shapes, ...] = ()


class ProfileStore:
    """A folder of measurements."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def key(self, path: Path, *facts: str) -> str:
        """Names a measurement by the file's identity (path, size, time) and ``facts``.

        Hashing a large model would cost more than measuring it again.
        """
        status = path.stat()
        parts = (str(_FORMAT), str(path.resolve()), str(status.st_size), str(status.st_mtime_ns))
        return hashlib.sha256("\0".join((*parts, *facts)).encode()).hexdigest()[:32]

    def load(self, key: str) -> StoredProfile | None:
        """What was measured before; None: nothing, or it cannot have been measured."""
        try:
            with self._path(key).open("rb") as file:
                stored = msgspec.json.decode(file.read(MAX_BYTES), type=StoredProfile)
        except (OSError, ValueError, msgspec.MsgspecError):
            return None
        return stored if _is_plausible(stored) else None

    def save(self, key: str, stored: StoredProfile) -> None:
        """Keeps it; readers see the old file or the new one, never half of one."""
        path = self._path(key)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(stored))
            temporary.replace(path)
        except OSError as error:
            _LOG.warning("could not keep the measured profile in %s: %s", self._folder, error)

    def save_learnt(self, key: str, costs: dict[int, LearntCost], shapes: Sequence[Shapes]) -> None:
        """Adds what was learnt since to what was measured; nothing where nothing was."""
        stored = self.load(key)
        if stored is not None and (costs or shapes):
            profile = stored.profile
            if costs:
                profile = msgspec.structs.replace(profile, costs=costs)
            kept = tuple(shapes[:SHAPES_KEPT]) or stored.shapes
            self.save(key, msgspec.structs.replace(stored, profile=profile, shapes=kept))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def _is_plausible(stored: StoredProfile) -> bool:
    """Whether the numbers can be used for loading and scheduling; others wrote them, perhaps."""
    profile, instances = stored.profile, stored.instances
    counts = (
        profile.inline_rows, profile.batch_tokens, profile.overhead_tokens, profile.row_ns,
    )  # fmt: skip
    parallel = (instances.threads, instances.concurrency)
    return (
        all(1 <= number <= _MAX_PARALLEL for number in parallel)
        and 1 <= profile.max_rows <= _MAX_COUNT
        and all(0 <= number <= _MAX_COUNT for number in counts)
        and all(map(_is_cost, profile.costs.values()))
        and len(stored.shapes) <= SHAPES_KEPT
        and all(_is_shape(shape) for shapes in stored.shapes for shape in shapes)
    )


def _is_cost(cost: LearntCost) -> bool:
    pairs = zip(cost.points, cost.points[1:], strict=False)
    return (
        cost.batches >= 0
        and math.isfinite(cost.spread)
        and cost.spread >= 0
        and all(0 <= value < _MAX_COUNT for point in cost.points for value in point)
        and all(one[0] < other[0] for one, other in pairs)
    )


def _is_shape(shape: tuple[int, ...] | None) -> bool:
    return shape is None or (min(shape, default=0) >= 0 and math.prod(shape) <= _MAX_ELEMENTS)
