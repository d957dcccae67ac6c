"""Names that strangers chose, confined to the folder.

What could be meant badly is refused with its name, and with it the whole listing: a store that
tries to leave the folder is not one to take anything else from.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from headrace.errors import StoreError
from headrace.repository.folders import MAX_NAME_LENGTH, is_ignored
from headrace.repository.stores.base import UNSAFE

MAX_PATH_LENGTH = 1024
"""In bytes; S3 allows no longer key."""

MAX_DEPTH = 32


def check_path(path: str, label: str) -> str:
    """Returns ``path``, relative and with slashes, where it stays in the folder.

    Raises:
        StoreError: it is empty, absolute, too long or too deep; has a part that is empty, ``.``
            or ``..``, a backslash or a character that cannot be printed.
    """
    parts = path.split("/")
    fine = (
        path.isprintable()
        and "\\" not in path
        and len(path.encode(errors="replace")) <= MAX_PATH_LENGTH
        and len(parts) <= MAX_DEPTH
        and not {"", ".", ".."} & set(parts)
        and all(len(part.encode(errors="replace")) <= MAX_NAME_LENGTH for part in parts)
    )
    if not fine:
        raise StoreError(
            f"{label} holds a file with an unsafe name: {path[:200]!r}",
            code=UNSAFE,
            hint="nothing was fetched; names are relative, with slashes, without .. and backslash",
        )
    return path


def check_distinct(paths: Iterable[str], label: str) -> None:
    """Refuses paths that one disk cannot hold at once.

    Raises:
        StoreError: two of them differ in case or in Unicode's spelling only, or one is a
            folder of another.
    """
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        folded = _folded(path)
        if folded in seen:
            raise _collision(seen[folded], path, label)
        seen[folded] = path
        for end, letter in enumerate(folded):
            if letter == "/":
                folders.setdefault(folded[:end], path)
    for folded, path in folders.items():
        if folded in seen:
            raise _collision(seen[folded], path, label)


def is_left_out(parts: list[str], *, within_model: bool) -> bool:
    """Hidden or half-copied. Inside a model a ``_`` is no such sign: think of ``__init__.py``."""
    if not within_model:
        return is_ignored(parts[0]) or is_left_out(parts[1:], within_model=True)
    return any(
        part.startswith(".") or part == "__pycache__" or part.endswith((".tmp", ".part"))
        for part in parts
    )


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _collision(one: str, other: str, label: str) -> StoreError:
    return StoreError(
        f"{label} holds {one!r} and {other!r}, which not every disk can hold at once", code=UNSAFE
    )
