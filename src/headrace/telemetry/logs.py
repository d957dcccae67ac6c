"""Logging: one event, one line, on stderr; ``logging`` of the standard library underneath.

A line is a JSON object where a machine reads (no terminal) and a sentence where a person
does. What an event is about may travel as ``extra={"fields": {...}}``. Payloads are never
logged: of an error that the caller caused only its code is, because its message may quote
what the caller sent.

The access log (logger ``headrace.access``, one line for every request) is off unless asked
for; ``access_log()`` is what a front-end checks once, not for every request.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
from typing import Any, Literal, TextIO

import msgspec

from headrace.errors import ConfigError, HeadraceError, ModelError

LogFormat = Literal["auto", "json", "text"]

ROOT = "headrace"
ACCESS = "headrace.access"

MAX_TEXT = 500
"""Characters of an error's message that are kept: a model may put its whole input into one."""

_log = logging.getLogger("headrace.events")


def configure(
    *,
    format: LogFormat = "auto",  # noqa: A002 - the name of the flag
    level: str = "info",
    access: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Sends everything under the logger ``headrace`` to ``stream`` (stderr), once a process.

    Calling it again replaces what the last call set. ``auto`` is ``text`` on a terminal and
    ``json`` elsewhere.
    """
    stream = stream or sys.stderr
    as_text = format == "text" or (format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logger = logging.getLogger(ROOT)
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    logging.getLogger(ACCESS).setLevel(logging.INFO if access else logging.CRITICAL + 1)


def log_to(file: str) -> None:
    """Sends the log to ``file`` instead, after :func:`configure`; lines are added to it.

    Raises:
        ConfigError: it cannot be written.
    """
    logger = logging.getLogger(ROOT)
    try:
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the log file {file} cannot be written: {error.strerror}") from error
    before = logger.handlers[0].formatter if logger.handlers else None
    handler.setFormatter(before or JsonFormatter())
    logger.handlers = [handler]


def access_log() -> logging.Logger | None:
    """The logger of requests, or None while the access log is off."""
    logger = logging.getLogger(ACCESS)
    return logger if logger.isEnabledFor(logging.INFO) and logger.hasHandlers() else None


def log_failure(error: BaseException, *, request_id: str = "", model: str = "") -> None:
    """One line for a request that was not answered.

    The caller's errors and full queues are normal (``debug``: code only). A model's failure
    is logged with its message, anything unforeseen with its traceback as well.
    """
    fields: dict[str, Any] = {"request_id": request_id, "model": model}
    fields = {name: value for name, value in fields.items() if value}
    if isinstance(error, HeadraceError):
        fields["code"] = error.code
        if isinstance(error, ModelError):
            fields["error"] = error.message[:MAX_TEXT]
            _log.error("request failed", extra={"fields": fields})
        else:
            _log.debug("request refused", extra={"fields": fields})
        return
    fields["error"] = f"{type(error).__name__}: {error}"[:MAX_TEXT]
    _log.error("unexpected error", exc_info=error, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "event", ...fields, "traceback"?}``; time is RFC 3339 UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without a line feed inside."""
        line: dict[str, Any] = {
            "time": _utc(record.created).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """``12:00:00.123 warning event  name=value ...``; a traceback follows on its own lines.

    ``dated``: the time is RFC 3339's, date and all, in UTC.
    """

    def __init__(self, *, dated: bool = False) -> None:
        super().__init__()
        self._dated = dated

    def format(self, record: logging.LogRecord) -> str:
        """For a terminal."""
        moment = _utc(record.created)
        clock = moment.astimezone().isoformat(timespec="milliseconds")[11:23]
        if self._dated:
            clock = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        words = [clock, record.levelname.lower().ljust(7), record.getMessage()]
        words += [f"{name}={_shown(value)}" for name, value in _fields(record).items()]
        if record.exc_info:
            words.append("\n" + self.formatException(record.exc_info))
        return " ".join(words)


def _utc(created: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(created, dt.UTC)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _shown(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text and " " not in text
    return text if plain else repr(text)
