"""What the V2 trace extension can set, for the server and for single models.

Wire names, defaults and texts as in Triton's extension_trace.md and HTTP server: values are
text (a list of it for ``trace_level``), null takes a setting back to what it was at the start,
or, of a model, to the server's. Where traces are written is for whoever starts the server to
say: a caller who could name a file could overwrite any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.config import TraceConfig
from headrace.errors import InvalidRequest, Unsupported

LEVELS = ("TIMESTAMPS", "TENSORS")
_OLD_LEVELS = {"MIN": "TIMESTAMPS", "MAX": "TIMESTAMPS"}
"""Names that Triton deprecated, and took for the first."""

_UINT32_MAX = 2**32 - 1
_INT32_MAX = 2**31 - 1

_NUMBERS = {
    "trace_rate": ("rate", 0, _UINT32_MAX),
    "trace_count": ("count", -1, _INT32_MAX),
    "log_frequency": ("log_frequency", 0, _UINT32_MAX),
}
"""Wire name -> field, least and most."""


class TraceSettings(msgspec.Struct, frozen=True):
    """``levels`` () is OFF. ``count`` -1: without end. ``rate``: one of so many requests."""

    levels: tuple[str, ...] = ()
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0
    file: str = ""

    @staticmethod
    def of(config: TraceConfig) -> TraceSettings:
        """What a server starts with."""
        levels = _levels(config.level)
        return TraceSettings(levels, config.rate, config.count, config.log_frequency, config.file)

    def body(self) -> dict[str, Any]:
        """As the protocol shows it."""
        return {
            "trace_level": list(self.levels) or ["OFF"],
            "trace_rate": str(self.rate),
            "trace_count": str(self.count),
            "log_frequency": str(self.log_frequency),
            "trace_file": self.file,
            "trace_mode": "triton",
        }


def parse_update(update: Mapping[str, Any], current: TraceSettings) -> dict[str, Any]:
    """The fields of :class:`TraceSettings` that ``update`` names; None: take it back.

    Raises:
        InvalidRequest: an unknown setting, or a value that it cannot have.
        Unsupported: another file or mode.
    """
    changes: dict[str, Any] = {}
    for name, sent in update.items():
        value = _scalar(name, sent)
        if name == "trace_file":
            if value is not None and value != current.file:
                raise Unsupported(
                    "trace file location can not be updated through network protocol",
                    hint="set server.trace.file in the configuration",
                )
        elif name == "trace_mode":
            if value not in (None, "triton"):
                raise Unsupported("trace mode can not be updated through network protocol")
        elif name == "trace_level":
            changes["levels"] = None if value is None else _levels(value)
        elif name in _NUMBERS:
            field, least, most = _NUMBERS[name]
            changes[field] = None if value is None else _number(name, value, least, most)
        else:
            raise InvalidRequest(
                f"unknown trace setting '{name}'",
                hint=f"the settings are trace_level, {', '.join(_NUMBERS)}",
            )
    return changes


def _scalar(name: str, sent: Any) -> Any:
    """gRPC sends lists of text; one without an element is null."""
    if isinstance(sent, list | tuple):
        if not sent:
            return None
        if name != "trace_level":
            if len(sent) > 1:
                raise InvalidRequest(f"expect only 1 value for '{name}'")
            return sent[0]
    return sent


def _levels(value: str | Sequence[str]) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InvalidRequest("Unable to parse 'trace_level', expecting a list of strings")
    levels = [_OLD_LEVELS.get(name, name) for name in names]
    unknown = [level for level in levels if level not in (*LEVELS, "OFF")]
    if unknown:
        raise InvalidRequest(
            f"Unable to parse 'trace_level', got: {unknown[0]}",
            hint="levels are OFF, TIMESTAMPS, TENSORS",
        )
    if "OFF" in levels:
        if len(set(levels)) > 1:
            raise InvalidRequest("trace level 'OFF' cannot be combined with others")
        return ()
    return tuple(level for level in LEVELS if level in levels)


def _number(name: str, value: Any, least: int, most: int) -> int:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        raise InvalidRequest(f"Unable to parse '{name}', got: {value}")
    try:
        number = int(text) if len(text) < 32 else most + 1
    except ValueError:
        raise InvalidRequest(f"Unable to parse '{name}', got: {text}") from None
    if number < least and name == "trace_count":
        raise InvalidRequest(
            f"Unable to parse 'trace_count'. Expecting value >= {least}, got:{text}"
        )
    if not least <= number <= most:
        raise InvalidRequest(
            f"Unable to parse '{name}', value is out of range [ {least}, {most} ], got: {text}"
        )
    return number
