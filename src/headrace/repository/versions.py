"""Which versions of a model are served: ``latest``, ``latest:N``, ``all``, or ``"1,3"``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from headrace.errors import ConfigError

VERSION_FOLDER = re.compile(r"[1-9][0-9]{0,18}")
"""Whole, positive, no leading zero, within 63 bits: Triton's rule for version folders."""

_LATEST = re.compile(r"latest(?::([1-9][0-9]{0,5}))?")


def is_version_folder(entry: Path) -> bool:
    """Whether it is a folder with the name of a version."""
    return VERSION_FOLDER.fullmatch(entry.name) is not None and entry.is_dir()


class VersionPolicy:
    """A parsed policy.

    Args:
        also: versions that aliases stand for: served whatever the policy says.

    Attributes:
        named: the versions asked for by number, empty for the other policies.

    Raises:
        ConfigError: the text is none of the four forms.
    """

    def __init__(self, text: str, *, model: str, also: Iterable[str] = ()) -> None:
        self.also = frozenset(int(v) for v in also if VERSION_FOLDER.fullmatch(v))
        self.named: frozenset[int] = frozenset()
        self._newest: int | None = None
        policy = text.strip()
        latest = _LATEST.fullmatch(policy)
        if latest:
            self._newest = int(latest[1] or 1)
        elif policy != "all":
            numbers = [part.strip() for part in policy.split(",")]
            if not all(VERSION_FOLDER.fullmatch(number) for number in numbers):
                raise ConfigError(
                    f"model {model!r}: versions = {text!r} is not a version policy",
                    hint='say "latest", "latest:2", "all", or numbers such as "1,3"',
                    model=model,
                )
            self.named = frozenset(int(number) for number in numbers) | self.also

    def candidates(self, available: Iterable[int]) -> Iterator[int]:
        """The versions to try, newest first; stop after :meth:`enough` of them could be served."""
        for version in sorted(available, reverse=True):
            if not self.named or version in self.named:
                yield version

    def enough(self, served: int) -> bool:
        """Whether ``served`` versions are all that this policy wants."""
        return self._newest is not None and served >= self._newest
