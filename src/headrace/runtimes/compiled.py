"""What a library makes of a model while loading it, kept so that the next load is short.

A runtime asks :func:`place_of` where a model's compiled form belongs, loads it from there if it
is there, and otherwise loads the original. Writing it takes as long as loading again, so that
is done by whoever keeps the model, when it serves (``LoadedModel.keep_compiled``).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from headrace.artifacts import hold
from headrace.machine import cpu_flags
from headrace.runtimes.base import Artifact, CompiledCache

_LOG = logging.getLogger("headrace.runtimes")

_FORMAT = "1"
"""Part of every key: raise it when an entry is written in another way."""


class CompiledPlace:
    """The entry of one model, as one library with these options compiles it on this machine."""

    def __init__(self, cache: CompiledCache, key: str, model: str) -> None:
        self._cache = cache
        self._key = key
        self._model = model
        self._refused = False
        self._held: BinaryIO | None = None

    def find(self) -> Path | None:
        """The folder, held against removal until :meth:`release`; None where there is none."""
        entry = self._cache.find(self._key)
        if entry is not None:
            try:
                self._held = hold(entry)
            except OSError:  # removed by another process between the two
                return None
        return entry

    def refuse(self, why: str) -> None:
        """The library does not take what stands there: it goes, and this load leaves none."""
        _LOG.warning("the compiled form of model '%s' is thrown away: %s", self._model, why)
        self._refused = True
        self.release()
        self._cache.discard(self._key)

    def keep(self, build: Callable[[Path], None]) -> None:
        """Writes it, unless it is there or was refused. What goes wrong is logged."""
        if self._refused or self._held is not None:
            return
        try:
            self._cache.entry(self._key, build)
        except Exception as error:  # noqa: BLE001 # the model serves without it
            _LOG.warning(
                "the compiled form of model '%s' is not kept, so the next start compiles it "
                "again: %s",
                self._model,
                error,
            )

    def release(self) -> None:
        """It is not used any more, and may be removed."""
        if self._held is not None:
            with suppress(OSError):
                self._held.close()
            self._held = None


def place_of(artifact: Artifact, library: str, version: str, *facts: str) -> CompiledPlace | None:
    """Where the compiled form of an artefact belongs; None where nothing is to be kept.

    Named by all that it depends on: the model's content, the library and its version, the
    processor's instructions, and ``facts``.
    """
    if artifact.compiled is None or not artifact.digest:
        return None
    parts = (_FORMAT, artifact.digest, library, version, *sorted(cpu_flags()), "", *facts)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return CompiledPlace(artifact.compiled, key, artifact.name)
