"""Times and sizes as people write them: ``"50ms"``, ``"4GiB"``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h)")
_UNIT_NS = {
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)")
_UNIT_BYTES = {
    "B": 1,
    **{f"{letter}iB": 1024 ** (power + 1) for power, letter in enumerate("KMGT")},
    **{f"{letter}B": 1000 ** (power + 1) for power, letter in enumerate("KMGT")},
}

Duration = Annotated[str, Meta(pattern=r"^$|^(?=.*[1-9])\d+(\.\d+)?\s*(us|ms|s|m|h)$")]
"""``"50ms"``, as :func:`duration_ns` reads it; or "": none."""

Size = Annotated[
    str, Meta(pattern=r"^$|^(?=.*[1-9])\d+(\.\d+)?\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)$")
]
"""``"4GiB"``, as :func:`size_bytes` reads it; or "": none."""


def duration_ns(text: str) -> int:
    """Nanoseconds of a time: ``"500us"``, ``"50ms"``, ``"1.5s"``, ``"2m"``, ``"8h"``.

    Raises:
        ValueError: it is none, or not above 0; says what was expected.
    """
    return _read(text, _DURATION, _UNIT_NS, 'a time above 0 such as "500us", "50ms" or "1.5s"')


def size_bytes(text: str) -> int:
    """Bytes of a size: ``"512MiB"``, ``"4GiB"``, ``"4GB"`` (a thousand millions each).

    Raises:
        ValueError: it is none, or not above 0; says what was expected.
    """
    return _read(text, _SIZE, _UNIT_BYTES, 'a size above 0 such as "512MiB" or "4GiB"')


def _read(text: str, pattern: re.Pattern[str], units: Mapping[str, int], expected: str) -> int:
    found = pattern.fullmatch(text.strip())
    value = round(float(found[1]) * units[found[2]]) if found else 0
    if value <= 0:
        raise ValueError(f'expected {expected}, got "{text}"')
    return value


def size_text(size: int) -> str:
    """The other way, for people: three digits at most."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(size) >= _UNIT_BYTES[unit]:
            value = size / _UNIT_BYTES[unit]
            return f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"
    return f"{size} B"
