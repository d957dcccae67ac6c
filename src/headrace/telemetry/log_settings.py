"""What the V2 logging extension can set: the server's log while it runs.

Names, defaults and texts as in Triton's extension_logging.md and HTTP server. Errors, warnings
and information are switched each by itself; a verbose level above 0 adds what is of use to
those who look for a fault. ``log_format`` ISO8601 gives the lines for people a date; lines of
JSON have one in any case. The access log has its own switch and is not touched.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from headrace.errors import InvalidRequest, Unsupported
from headrace.telemetry import logs

_SWITCHES = ("log_info", "log_warning", "log_error")
_VERBOSE_MAX = 2**31 - 1


class LogSettings(msgspec.Struct, frozen=True):
    """As the protocol shows them."""

    log_file: str = ""
    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: int = 0
    log_format: Literal["default", "ISO8601"] = "default"


class _Switches(logging.Filter):
    """Lets through what is switched on."""

    def __init__(self, settings: LogSettings) -> None:
        super().__init__()
        self._settings = settings

    def filter(self, record: logging.LogRecord) -> bool:
        settings, level = self._settings, record.levelno
        if record.name == logs.ACCESS:
            return True
        if level >= logging.ERROR:
            return settings.log_error
        if level >= logging.WARNING:
            return settings.log_warning
        return settings.log_info if level >= logging.INFO else settings.log_verbose_level > 0


class LogControl:
    """The settings of this process's log, which begin with what ``logs.configure`` set.

    Args:
        file: where the log goes, as ``logs.log_to`` was told; "": to stderr.
    """

    def __init__(self, file: str = "") -> None:
        level = logging.getLogger(logs.ROOT).getEffectiveLevel()
        self._default = self.settings = LogSettings(
            log_file=file,
            log_info=level <= logging.INFO,
            log_warning=level <= logging.WARNING,
            log_verbose_level=1 if level <= logging.DEBUG else 0,
        )

    def body(self) -> dict[str, Any]:
        """As JSON values."""
        return msgspec.structs.asdict(self.settings)

    def update(self, update: Mapping[str, Any]) -> None:
        """Changes what is named; None takes it back to what it was at the start.

        Raises:
            InvalidRequest, Unsupported: nothing was changed.
        """
        changes = {name: self._value(name, value) for name, value in update.items()}
        self.settings = settings = msgspec.structs.replace(self.settings, **changes)
        root = logging.getLogger(logs.ROOT)
        root.setLevel(logging.DEBUG if settings.log_verbose_level else logging.INFO)
        for handler in root.handlers:
            for old in [each for each in handler.filters if isinstance(each, _Switches)]:
                handler.removeFilter(old)
            handler.addFilter(_Switches(settings))
            if isinstance(handler.formatter, logs.TextFormatter):
                handler.setFormatter(logs.TextFormatter(dated=settings.log_format == "ISO8601"))

    def _value(self, name: str, value: Any) -> Any:
        if name not in LogSettings.__struct_fields__:
            raise InvalidRequest(
                f"unknown log setting '{name}'",
                hint=f"the settings are {', '.join(LogSettings.__struct_fields__)}",
            )
        if value is None:
            return getattr(self._default, name)
        if name == "log_file":
            if value != self.settings.log_file:
                raise Unsupported(
                    "log file location can not be updated through network protocol",
                    hint="set server.log_file in the configuration",
                )
        elif name in _SWITCHES:
            if not isinstance(value, bool):
                raise InvalidRequest(f"expect boolean for '{name}'")
        elif name == "log_verbose_level":
            number = isinstance(value, int) and not isinstance(value, bool)
            if not number or not 0 <= value <= _VERBOSE_MAX:
                raise InvalidRequest(f"expect unsigned integer for '{name}'")
        elif value not in ("default", "ISO8601"):
            raise InvalidRequest(f"invalid argument for log_format, got: {value}")
        return value
