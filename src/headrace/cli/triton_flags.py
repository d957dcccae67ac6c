"""Triton's command line, understood by ``headrace serve``.

A start script written for ``tritonserver`` works: flags with a meaning here set the field that
means the same, flags without one are accepted and said once in the log, and flags whose
silent loss would change what is served, or who may reach it, are refused with what to say
instead. The flags are those of Triton's ``command_line_parser.cc``.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.cli.triton_settings import (
    backend_config,
    cache_config,
    log_level,
    metrics_config,
    trace_config,
)
from headrace.cli.triton_tables import FIELDS, REFUSED, REPEATED_REFUSED, WITHOUT_EFFECT
from headrace.config import ServerConfig
from headrace.errors import ConfigError

_LOG = logging.getLogger("headrace.server")

Settings = dict[str, Any]

HOST_NOTE = (
    "Triton listens on every address, this server on %s only: --http-address=0.0.0.0 opens it"
)

_PREFIX = "triton_"

_PORT_OF = {"--allow-grpc": "server.grpc_port", "--allow-metrics": "server.metrics_port"}

PORTS = {"server.port": 8000, "server.grpc_port": 8001, "server.metrics_port": 8002}
"""What a Triton command line means that names no ports."""


class Understood(msgspec.Struct, frozen=True):
    """What Triton's flags come to.

    Attributes:
        repositories: ``--model-repository``, in order.
        fields: dotted configuration field -> value.
        names: dotted field -> the flag it came from.
        notes: a sentence for each flag without effect.
        log_level: as Triton's ``--log-...`` flags have it; "" where none was given.
        closed: the ports that are not to be opened.
    """

    repositories: tuple[str, ...] = ()
    fields: Settings = {}
    names: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    log_level: str = ""
    closed: frozenset[str] = frozenset()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds every flag of Triton's; help shows only those with a meaning here."""
    group = parser.add_argument_group(
        "Triton's flags (those without a meaning here are accepted and said in the log)"
    )
    for flag, (metavar, about) in _REPEATED.items():
        shown = about or argparse.SUPPRESS
        group.add_argument(
            flag, dest=_dest(flag), action="append", default=[], metavar=metavar, help=shown
        )
    group.add_argument(
        "--model-store", dest=_dest("--model-repository"), action="append", help=argparse.SUPPRESS
    )
    for flag, (field, kind) in FIELDS.items():
        shown = f"sets {field}"
        group.add_argument(flag, dest=_dest(flag), type=_KINDS[kind], metavar=kind, help=shown)
    group.add_argument(
        "--model-control-mode",
        dest=_dest("--model-control-mode"),
        choices=["none", "poll", "explicit"],
        help="sets server.model_control",
    )
    for flag in _SILENT:
        if flag in _NO_VALUE:
            group.add_argument(
                flag, dest=_dest(flag), action="store_const", const="true", help=argparse.SUPPRESS
            )
        else:
            group.add_argument(flag, dest=_dest(flag), help=argparse.SUPPRESS)


def understand(args: argparse.Namespace) -> Understood:
    """Makes settings of what was given.

    Raises:
        ConfigError: a value is wrong, or a flag that is refused was given.
    """
    given = {
        flag: value
        for flag in (
            *_REPEATED,
            "--model-control-mode",
            *FIELDS,
            *_CUSTOM,
            *REFUSED,
            *WITHOUT_EFFECT,
        )
        if (value := getattr(args, _dest(flag), None)) not in (None, [])
    }
    _refuse(given)
    fields: Settings = {}
    names: dict[str, str] = {}
    notes: list[str] = []
    for flag, value in given.items():
        if flag in FIELDS:
            made = {FIELDS[flag][0]: value}
        elif flag in _READERS:
            made, said = _READERS[flag](value)
            notes += said
        else:
            if flag in WITHOUT_EFFECT:
                notes.append(f"{flag} has no effect: {WITHOUT_EFFECT[flag]}")
            continue
        fields |= made
        names |= dict.fromkeys(made, flag)
    fields, names = _known(fields, names, notes)
    notes += _checked_models(fields)
    return Understood(
        repositories=tuple(given.get("--model-repository", ())),
        fields=fields,
        names=names,
        notes=tuple(notes),
        log_level=log_level(given),
        closed=frozenset(
            field
            for flag, field in _PORT_OF.items()
            if flag in given and not _allow(given[flag], flag)
        ),
    )


def default_ports(
    understood: Understood, server: ServerConfig, origins: Mapping[str, str]
) -> Settings:
    """The ports that a Triton command line means, where nobody said any.

    Where any free port is good enough for HTTP, it is for the others too.
    """
    if not understood.repositories:
        return {}
    said = "server.port" in origins
    return {
        field: 0 if said and server.port == 0 else port
        for field, port in PORTS.items()
        if field not in origins and field not in understood.closed
    }


def tell(understood: Understood, server: ServerConfig) -> None:
    """Says in the log what has no effect, and what Triton would do otherwise."""
    for note in understood.notes:
        _LOG.warning("%s", note)
    if understood.repositories and "server.host" not in understood.fields:
        _LOG.info(HOST_NOTE, server.host)


def paths_of(models: Sequence[str], understood: Understood) -> tuple[str, ...]:
    """Everything that is to be served, as it was given.

    Raises:
        ConfigError: nothing was.
    """
    paths = (*models, *understood.repositories)
    if not paths:
        raise ConfigError(
            "no model was given",
            hint="headrace serve MODEL_OR_REPOSITORY ..., or --model-repository=PATH",
        )
    for path in understood.repositories:
        if not Path(path).is_dir():
            raise ConfigError(f"--model-repository: {path} is not a folder")
    return paths


def _checked_models(fields: Settings) -> list[str]:
    """``--load-model`` counts only with explicit control, and ``*`` stands alone, as in Triton."""
    models = fields.get("server.load_models", ())
    if "*" in models and len(models) > 1:
        raise ConfigError("--load-model=* means every model; it cannot stand beside another one")
    if models and fields.get("server.model_control") != "explicit":
        return ["--load-model has no effect: --model-control-mode is not explicit"]
    return []


def _known(
    fields: Settings, names: dict[str, str], notes: list[str]
) -> tuple[Settings, dict[str, str]]:
    """Without the addresses that must be the server's own."""
    hosts = {name: fields.pop(name) for name in _ADDRESSES if name in fields}
    host = fields.get("server.host")
    for name, address in hosts.items():
        if address != host:
            notes.append(f"{names[name]} has no effect: one address for all, --http-address")
        del names[name]
    return fields, names


_ADDRESSES = ("grpc_address", "metrics_address")


def _refuse(given: Settings) -> None:
    for flag, (harmless, hint) in REFUSED.items():
        if flag in given and str(given[flag]).lower() not in harmless:
            raise ConfigError(f"{flag} is not understood here", hint=hint, source=flag)
    for flag, hint in REPEATED_REFUSED.items():
        if given.get(flag):
            raise ConfigError(f"{flag} is not understood here", hint=hint, source=flag)


def _dest(flag: str) -> str:
    return _PREFIX + flag.removeprefix("--").replace("-", "_")


def _boolean(text: str) -> bool:
    """As Triton reads one."""
    known = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
    try:
        return known[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}") from None


_KINDS: Mapping[str, Callable[[str], Any]] = {
    "TEXT": str,
    "NUMBER": int,
    "SECONDS": float,
    "BOOL": _boolean,
}

_REPEATED: Mapping[str, tuple[str, str]] = {
    "--model-repository": ("PATH", "a repository; may be given several times"),
    "--load-model": ("NAME", "with --model-control-mode=explicit: load it now; * is all"),
    "--metrics-config": ("KEY=VALUE", "summary_latencies=true, histogram_latencies=true"),
    "--cache-config": ("local,size=BYTES", "sets server.response_cache_bytes"),
    "--trace-config": ("KEY=VALUE", "level, rate, count; triton,file; triton,log-frequency"),
    "--trace-level": ("LEVEL", ""),
    "--backend-config": ("NAME,KEY=VALUE", ""),
    **dict.fromkeys(REPEATED_REFUSED, ("", "")),
}

_CUSTOM = (
    "--log-verbose",
    "--log-info",
    "--log-warning",
    "--log-error",
    "--grpc-address",
    "--metrics-address",
    "--allow-metrics",
    "--allow-grpc",
    "--allow-http",
)

_SILENT = (*_CUSTOM, *REFUSED, *WITHOUT_EFFECT)
"""Those that help does not show."""

_NO_VALUE = frozenset({"--disable-auto-complete-config"})

Read = Callable[[Any], tuple[Settings, list[str]]]


def _allowed(flag: str) -> Read:
    """A front-end that Triton can do without; here all answer on one port."""

    def read(text: str) -> tuple[Settings, list[str]]:
        if _allow(text, flag):
            return {}, []
        return {}, [f"{flag}=false has no effect on the server's own port: it answers everything"]

    return read


def _allow(text: str, flag: str) -> bool:
    try:
        return _boolean(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{flag}: {error}") from None


_READERS: Mapping[str, Read] = {
    "--load-model": lambda names: ({"server.load_models": list(names)}, []),
    "--metrics-config": metrics_config,
    "--cache-config": cache_config,
    "--trace-config": trace_config,
    "--trace-level": lambda levels: trace_config([f"level={level}" for level in levels]),
    "--backend-config": backend_config,
    "--model-control-mode": lambda mode: ({"server.model_control": mode}, []),
    "--grpc-address": lambda address: ({"grpc_address": address}, []),
    "--metrics-address": lambda address: ({"metrics_address": address}, []),
    "--allow-metrics": _allowed("--allow-metrics"),
    "--allow-grpc": _allowed("--allow-grpc"),
    "--allow-http": _allowed("--allow-http"),
}
