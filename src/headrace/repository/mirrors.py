"""Stores behind a server's paths: each mirrored into a folder of the cache, which is served.

A store that cannot be reached takes nothing away: what was mirrored before is served, and said so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from headrace.errors import PullError
from headrace.repository.stores.spec import StoreSpec, parse_store
from headrace.repository.stores.sync import SyncResult, sync

_LOG = logging.getLogger("headrace.repository")

FOLDER = "stores"
"""Of the cache."""


class Mirror(msgspec.Struct, frozen=True):
    """One store and where it is mirrored."""

    spec: StoreSpec
    folder: Path


class Mirrors:
    """The stores among what a server was told to serve.

    Args:
        given: files, folders and stores, as a person typed them.
        cache_dir: of this server.
        max_bytes: of each mirror.
        redirect_hosts: that web servers may redirect to, beside themselves.

    Raises:
        StoreError: something looks like a store and is none.
    """

    def __init__(
        self,
        given: Sequence[str],
        cache_dir: Path,
        max_bytes: int,
        redirect_hosts: Sequence[str] = (),
    ) -> None:
        self.paths: list[Path] = []
        """What is to be served, in the order in which it was given."""
        self.mirrors: list[Mirror] = []
        self._max_bytes = max_bytes
        self._redirect_hosts = redirect_hosts
        for each in given:
            spec = parse_store(each)
            if spec is None:
                self.paths.append(Path(each))
                continue
            mirror = Mirror(spec, cache_dir / FOLDER / spec.folder_name)
            self.mirrors.append(mirror)
            self.paths.append(mirror.folder)

    def fetch(self, *, first: bool = False) -> None:
        """Makes every mirror what its store is now. Blocks.

        Raises:
            PullError, MissingExtra: at the ``first`` time, if nothing was mirrored before either.
        """
        for mirror in self.mirrors:
            try:
                result = sync(
                    mirror.spec,
                    mirror.folder,
                    max_bytes=self._max_bytes,
                    redirect_hosts=self._redirect_hosts,
                    progress=_LOG.debug,
                )
            except PullError as error:
                if first and not _holds_something(mirror.folder):
                    raise
                _LOG.error("%s; what was fetched before is served", error.message)
            else:
                _tell(mirror.spec.label, result)


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(not each.name.startswith(".") for each in folder.iterdir())


def _tell(label: str, result: SyncResult) -> None:
    if result.landed or result.removed:
        _LOG.info(
            "%s: %d landed (%s bytes in %d files), %d removed",
            label,
            len(result.landed),
            f"{result.fetched_bytes:,}",
            result.fetched_files,
            len(result.removed),
        )
    for refused in result.refused:
        _LOG.error("%s: %s is refused: %s", label, refused.target, refused.error.message)
    if result.size_only:
        count = len(result.size_only)
        _LOG.warning("%s tells no digest of %d files: only sizes were compared", label, count)
