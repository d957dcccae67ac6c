"""Which models have their compiled form kept, where, and what names their content."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.artifacts import ArtifactCache
from headrace.digests import DigestMemory
from headrace.repository.base import ModelSource

_LOG = logging.getLogger("headrace.engine")

COMPILED = "compiled"
"""Folder of the compiled models, in the cache."""

MIN_BYTES = 4 * 1024 * 1024
"""Below this ONNX Runtime loads the original as quickly, and every start would look for nothing.
Eight dense layers, original and kept (ms, two cores): ONNX Runtime 2.6 and 3.0 at 1 MB, 6.0 and
5.9 at 4 MB, 24 and 17 at 16 MB; OpenVINO 50 and 20, 54 and 25, 93 and 58. Hashing 4 MB and
writing them takes 50 ms of a processor, once."""


class SourceChanged(Exception):
    """The model's files are not those any more that were loaded."""


class ModelCache:
    """The compiled forms of one model. A :class:`headrace.runtimes.base.CompiledCache`.

    They are written some time after the model was loaded, from its files: if these were
    replaced meanwhile, nothing is kept, or it would stand under the name of the old ones.
    """

    def __init__(self, cache: ArtifactCache, files: Sequence[Path]) -> None:
        self._cache = cache
        self._files = tuple(files)
        self._seen = self._look()

    def find(self, key: str) -> Path | None:
        """See :class:`headrace.runtimes.base.CompiledCache`."""
        return self._cache.find(key)

    def entry(self, key: str, build: Callable[[Path], None]) -> Path:
        """See :class:`headrace.runtimes.base.CompiledCache`.

        Raises:
            SourceChanged: the model's files were replaced.
        """

        def build_unchanged(folder: Path) -> None:
            build(folder)
            if self._look() != self._seen:
                raise SourceChanged("its files have been replaced since it was loaded")

        return self._cache.entry(key, build_unchanged)

    def discard(self, key: str) -> None:
        """See :class:`headrace.runtimes.base.CompiledCache`."""
        self._cache.discard(key)

    def _look(self) -> list[tuple[int, int, int]]:
        infos = [file.stat() for file in self._files]
        return [(info.st_ino, info.st_size, info.st_mtime_ns) for info in infos]


def compiled_of(
    source: ModelSource,
    external_files: Sequence[str],
    cache_dir: Path,
    *,
    max_bytes: int,
    min_bytes: int = MIN_BYTES,
) -> tuple[str, ModelCache | None]:
    """The digest of a model's content, and where its compiled forms go; None: nowhere.

    Args:
        external_files: what the model file refers to, relative to the source's folder.
        max_bytes: of all compiled models; 0 keeps none.
    """
    if not max_bytes or source.format not in {"onnx", "openvino"}:
        return source.digest, None
    files = [source.path, *(source.folder / name for name in sorted(external_files))]
    if source.format == "openvino":
        files.append(source.path.with_suffix(".bin"))
    try:
        if sum(file.stat().st_size for file in files) < min_bytes:
            return source.digest, None
        cache = ModelCache(ArtifactCache(cache_dir / COMPILED, max_bytes), files)
        return source.digest or _digest(files, DigestMemory(cache_dir / "digests")), cache
    except OSError as error:  # a runtime will say better what is missing
        _LOG.info("model %s is loaded without a cache: %s", source.name, error)
        return source.digest, None


def _digest(files: Sequence[Path], memory: DigestMemory) -> str:
    told = "\0".join(f"{file.name}\0{memory.sha256(file)}" for file in files)
    return f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"
