"""``model.toml``: what a model's own folder says about how to serve it.

The fields are those of :class:`headrace.config.ModelConfig`. Weakest first:
``[defaults]`` of the server's configuration, the model folder's ``model.toml``, the version
folder's, and ``[models.NAME]`` of the server's configuration. Fields override one by one,
those of nested tables too; ``runtime_options`` and ``task_options`` key by key.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from headrace.config import ModelConfig
from headrace.errors import ConfigError
from headrace.repository.folders import require_inside

FILE_NAME = "model.toml"

MAX_BYTES = 1024 * 1024
"""Hand-written, or a list of labels; a megabyte holds 50,000 of those."""

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def overlay_folder(base: ModelConfig, folder: Path, *, root: Path) -> ModelConfig:
    """``base`` with what the folder's ``model.toml`` says; unchanged where there is none.

    Raises:
        ConfigError: it is not TOML, has an unknown field, or a value out of bounds.
        ModelLoadError: it is a link out of ``root``.
    """
    path = folder / FILE_NAME
    if path.is_symlink():
        require_inside(path, root)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return base
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES:,} bytes")
    try:
        table = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    return overlay(base, table, where=str(path))


def overlay(base: ModelConfig, table: Mapping[str, Any], *, where: str) -> ModelConfig:
    """``base`` with the fields that ``table`` names, whatever their values.

    Args:
        base: what is kept where the table says nothing.
        table: as read from TOML.
        where: names the table in errors.

    Raises:
        ConfigError: an unknown field (with the nearest known name), a wrong type, or a value
            out of bounds.
    """
    _refuse_unknown(ModelConfig(), table, where, "")
    try:
        given = msgspec.convert(table, ModelConfig)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at `$.")
        field = at.rstrip("`")
        what = what.replace("`", "")
        value = _value_at(table, field)
        if isinstance(value, int | float | str):
            what += f", got {value!r}"[:100]
        raise ConfigError(f"{where}: {field}: {what}", field=field) from None
    return _replace(base, given, table)


def _value_at(table: Mapping[str, Any], field: str) -> object:
    """What ``warmup[0].rows`` of a table is; None where there is no such value."""
    value: Any = table
    for name in re.findall(r"[^.\[\]]+", field):
        try:
            value = value[int(name)] if isinstance(value, list | tuple) else value[name]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return value


def merge(base: ModelConfig, override: ModelConfig) -> ModelConfig:
    """``base`` with the fields of ``override`` that differ from their default.

    A configuration that is already a value no longer knows what was written down, so a
    field set to its default counts as not set.
    """
    return _replace(base, override, _differing(override))


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the known word most like ``name``, or lists them all."""
    words = sorted(known)
    close = difflib.get_close_matches(name, words, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(words)}"


def _differing(value: msgspec.Struct) -> dict[str, Any]:
    default = type(value)()
    table: dict[str, Any] = {}
    for name in value.__struct_fields__:
        mine = getattr(value, name)
        if mine != getattr(default, name):
            table[name] = _differing(mine) if isinstance(mine, msgspec.Struct) else mine
    return table


def _replace(base: _Struct, given: _Struct, named: Mapping[str, Any]) -> _Struct:
    changes: dict[str, Any] = {}
    for name, inner in named.items():
        old, new = getattr(base, name), getattr(given, name)
        if isinstance(old, msgspec.Struct):
            new = _replace(old, new, inner)
        elif isinstance(old, dict):
            new = {**old, **new}
        changes[name] = new
    return msgspec.structs.replace(base, **changes)


def _refuse_unknown(default: msgspec.Struct, table: Mapping[str, Any], where: str, at: str) -> None:
    for name, value in table.items():
        if name not in default.__struct_fields__:
            raise ConfigError(
                f"{where}: unknown field {at + name!r}",
                hint=nearest(name, default.__struct_fields__),
                field=at + name,
            )
        inner = getattr(default, name)
        if isinstance(inner, msgspec.Struct) and isinstance(value, Mapping):
            _refuse_unknown(inner, value, where, f"{at}{name}.")
