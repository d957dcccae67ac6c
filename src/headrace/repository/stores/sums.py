"""``SHA256SUMS``: the list that sha256sum(1) writes, one ``HEX  PATH`` a line."""

from __future__ import annotations

import hashlib
import re

from headrace.errors import StoreError
from headrace.repository.stores.base import MAX_FILES, SUMS, WRONG_DIGEST

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def parse_sums(content: bytes, label: str, *, sha256: str = "") -> dict[str, str]:
    """Path -> digest, in the order of the list.

    Args:
        content: of the file.
        label: of its store.
        sha256: what its own digest must be; "" where nobody said.

    Raises:
        StoreError: another digest, a line that is none, a path twice, or too many. Names are
            not checked.
    """
    got = hashlib.sha256(content).hexdigest()
    if sha256 and got != sha256:
        raise StoreError(
            f"{SUMS} of {label} has SHA-256 {got}, expected {sha256}",
            code=WRONG_DIGEST,
            hint="do not use it, or, if its models were meant to change, give the new digest",
        )
    found: dict[str, str] = {}
    try:
        lines = [line.rstrip("\r") for line in content.decode().split("\n")]
    except UnicodeDecodeError:
        raise StoreError(f"{SUMS} of {label} is not text", hint="sha256sum writes it") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not (read := _LINE.fullmatch(line)):
            raise StoreError(
                f"{SUMS} of {label}, line {number}: not a digest, two spaces and a path",
                hint="find . -type f ! -name SHA256SUMS | xargs sha256sum > SHA256SUMS",
            )
        path = read[2].removeprefix("./")
        if path == SUMS:
            continue  # of an older self, where somebody listed the folder into it
        if found.setdefault(path, read[1].lower()) != read[1].lower():
            raise StoreError(f"{SUMS} of {label} gives two digests for {path[:200]!r}")
        if len(found) > MAX_FILES:
            raise StoreError(f"{SUMS} of {label} lists more than {MAX_FILES:,} files")
    return found
