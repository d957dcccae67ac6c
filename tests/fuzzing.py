"""How long random tests go on: some minutes in CI, as long as one likes by ``make fuzz``."""

from __future__ import annotations

import os

FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))


def examples(count: int) -> int:
    """``count`` examples in CI; more where FUZZ_FACTOR says so."""
    return count * FACTOR
