"""Which versions of a model are served: ``latest``, ``latest:N``, ``all``, or ``"1,3"``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from headrace.errors import ConfigError

VERSION_FOLDER = re.compile(r"[1-9][0-9]{0,18}")
"""Whole, positive, no leading zero, within 63 bits: Triton's rule for version folders."""

MAX_VERSIONS = 100
"""Of one model that are served together: each is a model in memory."""

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
        self._model = model
        self.also = frozenset(int(v) for v in also if VERSION_FOLDER.fullmatch(v))
        self.named: frozenset[int] = frozenset()
        self._newest: int | None = None
        policy = text.strip()
        latest = _LATEST.fullmatch(policy)
        if latest:
            self._newest = int(latest[1] or 1)
            if self._newest > MAX_VERSIONS:
                raise _too_many(model, f"versions = {text!r}", MAX_VERSIONS)
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

    def check(self, available: Iterable[int], most: int = MAX_VERSIONS) -> None:
        """Raises ConfigError where more than ``most`` of these would be served."""
        wanted = {version for version in available if not self.named or version in self.named}
        count = len(wanted) if self._newest is None else min(self._newest, len(wanted))
        count += len(self.also & wanted) if self._newest is not None else 0
        if count > most:
            raise _too_many(self._model, f"{count} versions are to be served", most)

    def enough(self, served: int) -> bool:
        """Whether ``served`` versions are all that this policy wants."""
        return self._newest is not None and served >= self._newest


def _too_many(model: str, what: str, most: int) -> ConfigError:
    return ConfigError(
        f"model {model!r}: {what}, and at most {most} can be",
        hint='name those that are needed, or say "latest"',
        model=model,
        field="versions",
    )
