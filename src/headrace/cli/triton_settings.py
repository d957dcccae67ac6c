"""Triton's flags of the form ``--flag name,key=value`` and its switches for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.errors import ConfigError

Result = tuple[dict[str, Any], list[str]]
"""Dotted field -> value; and sentences for what has no effect."""


def metrics_config(values: Sequence[str]) -> Result:
    """``--metrics-config KEY=VALUE``.

    Raises:
        ConfigError: not of that form, or not true or false.
    """
    fields: dict[str, Any] = {}
    notes = []
    for text in values:
        key, value = _pair("--metrics-config", text)
        if key in _METRICS:
            fields[_METRICS[key]] = _truth("--metrics-config", key, value)
        elif key == "counter_latencies":
            if not _truth("--metrics-config", key, value):
                notes.append("--metrics-config counter_latencies=false has no effect")
        else:
            notes.append(f"--metrics-config {key} has no effect: it is not a setting known here")
    return fields, notes


_METRICS = {
    "summary_latencies": "server.metrics_summaries",
    "histogram_latencies": "server.metrics_histograms",
}


def cache_config(values: Sequence[str]) -> Result:
    """``--cache-config local,size=BYTES``.

    Raises:
        ConfigError: not of that form, or a cache that is not this server's memory.
    """
    fields: dict[str, Any] = {}
    for text in values:
        cache, _, rest = text.partition(",")
        if cache != "local":
            raise ConfigError(
                f"--cache-config: there is no cache {cache!r}",
                hint="--cache-config local,size=BYTES keeps answers in this server's memory",
            )
        key, value = _pair("--cache-config", rest)
        if key != "size" or not value.isdigit():
            raise ConfigError(f"--cache-config: expected local,size=BYTES, got {text!r}")
        fields["server.response_cache_bytes"] = int(value)
    return fields, []


def trace_config(values: Sequence[str]) -> Result:
    """``--trace-config [MODE,]KEY=VALUE``; ``level`` may be given several times.

    Raises:
        ConfigError: not of that form.
    """
    fields: dict[str, Any] = {}
    notes = []
    for text in values:
        mode, _, rest = text.rpartition(",")
        key, value = _pair("--trace-config", rest)
        if key == "level" and not mode:
            fields.setdefault("server.trace.level", []).append(value.upper())
        elif mode in ("", "triton") and key in _TRACE:
            field, is_number = _TRACE[key]
            if is_number and not value.removeprefix("-").isdigit():
                raise ConfigError(f"--trace-config: {key} must be a whole number, got {value!r}")
            fields[field] = int(value) if is_number else value
        elif (key, value) != ("mode", "triton"):
            notes.append(f"--trace-config {text} has no effect: traces are written as Triton's own")
    return fields, notes


_TRACE = {
    "file": ("server.trace.file", False),
    "rate": ("server.trace.rate", True),
    "count": ("server.trace.count", True),
    "log-frequency": ("server.trace.log_frequency", True),
}


def backend_config(values: Sequence[str]) -> Result:
    """``--backend-config [NAME,]KEY=VALUE``: nothing of it means anything here.

    Raises:
        ConfigError: not of that form.
    """
    for text in values:
        _pair("--backend-config", text.rpartition(",")[2])
    why = "backends are part of this server; model.toml has their options"
    return {}, [f"--backend-config {text} has no effect: {why}" for text in values]


def log_level(given: Mapping[str, Any]) -> str:
    """The level that ``--log-verbose``, ``--log-info`` ... amount to; "" where none was given.

    Raises:
        ConfigError: a value that is none.
    """
    verbose = given.get("--log-verbose")
    if verbose is not None:
        if not str(verbose).isdigit():
            raise ConfigError(f"--log-verbose: expected a whole number, got {verbose!r}")
        if int(verbose) > 0:
            return "debug"
    level = ""
    for flag, without in (
        ("--log-error", "error"),
        ("--log-warning", "error"),
        ("--log-info", "warning"),
    ):
        if flag in given and not _truth(flag, "", str(given[flag])):
            level = level or without
    return level


def _pair(flag: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{flag}: expected KEY=VALUE, got {text!r}")
    return key.strip(), value.strip()


def _truth(flag: str, key: str, text: str) -> bool:
    known = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
    if text.lower() not in known:
        name = f"{flag} {key}".rstrip()
        raise ConfigError(f"{name}: expected true or false, got {text!r}")
    return known[text.lower()]
