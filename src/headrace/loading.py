"""Configuration from where people write it down: a file, the environment, flags.

Later ones win, field by field::

    defaults (config/)  <  headrace.toml  <  HEADRACE_SERVER__PORT=8080  <  --port 8080

Every value remembers its origin, so that a wrong one can be found and ``--show-config`` can
tell who said what. In the environment a double underscore descends into a table and letter
case does not matter; an empty variable counts as not set. Names of models are matched with
``-`` and ``.`` written as ``_``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec

from headrace.config import Config
from headrace.errors import ConfigError, without_passwords

DEFAULT_FILE = "headrace.toml"

ENV_PREFIX = "HEADRACE_"

ENV_NOT_SETTINGS = frozenset({"HEADRACE_CONFIG", "HEADRACE_DEBUG"})
"""Read by the command line itself: where the file is; whether errors show their traceback."""

MAX_FILE_BYTES = 4 * 1024 * 1024
"""Hand-written; ten thousand models fit."""

# In a namespace with a Service called "headrace", Kubernetes gives every container variables
# such as HEADRACE_PORT=tcp://10.0.0.1:8000. They are not ours.
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_KUBERNETES = re.compile(
    r"(.*_)?(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)

_Path = tuple[str, ...]
_NO_SUCH = object()


class LoadedConfig(msgspec.Struct, frozen=True):
    """A configuration and where each value that is not a default came from.

    ``origins`` maps dotted fields (``server.port``) to ``headrace.toml:3``,
    ``HEADRACE_SERVER__PORT`` or ``--port``. ``settings`` is what was said, as nested tables,
    without the defaults: a value that was *set* to its default can be told from one that
    was not, which is what merging a model's own table over ``[defaults]`` needs.
    """

    config: Config
    origins: dict[str, str]
    settings: dict[str, Any]


class _Setting(msgspec.Struct, frozen=True):
    path: _Path
    value: Any
    origin: str


def config_file(flag: str | None, env: Mapping[str, str], folder: Path) -> Path | None:
    """Which file to load: ``--config``, ``HEADRACE_CONFIG``, or ``headrace.toml`` in ``folder``.

    None where nothing was said and the folder has none.
    """
    if named := flag or env.get("HEADRACE_CONFIG"):
        return Path(named)
    found = folder / DEFAULT_FILE
    return found if found.is_file() else None


def load_config(
    file: Path | None,
    env: Mapping[str, str],
    flags: Mapping[str, Any],
    *,
    flag_names: Mapping[str, str] | None = None,
) -> LoadedConfig:
    """Puts the sources together; see the module for their order.

    Args:
        file: a TOML file in the shape of :class:`headrace.config.Config`, or None.
        env: usually ``os.environ``; names without the prefix are ignored.
        flags: dotted field -> value as parsed; None means that the flag was not given.
        flag_names: dotted field -> how the flag is spelt, where it is not ``--`` and the
            field's last word.

    Raises:
        ConfigError: the file cannot be read or is not TOML; a field is unknown, missing, of
            the wrong type or out of bounds. Names source, field, what was expected and got.
    """
    settings: dict[_Path, _Setting] = {}
    if file is not None:
        settings.update((found.path, found) for found in _from_file(file))
    names = [*(path[1] for path in settings if path[0] == "models" and len(path) > 1)]
    settings.update((found.path, found) for found in _from_env(env, names))
    settings.update((found.path, found) for found in _from_flags(flags, flag_names or {}))
    tables = _as_tables(settings.values())
    return LoadedConfig(
        config=_built(tables, settings),
        origins={".".join(path): settings[path].origin for path in sorted(settings)},
        settings=tables,
    )


def cache_folder(config: Config, env: Mapping[str, str]) -> Path:
    """Where built graphs and measurements are kept; need not exist yet.

    ``config.cache_dir``, or ``headrace`` in ``XDG_CACHE_HOME`` (default: ``~/.cache``).
    """
    if config.cache_dir:
        return Path(config.cache_dir).expanduser()
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "headrace"


def explain(loaded: LoadedConfig) -> str:
    """A table of every field, its value and where that came from; one line each."""
    rows = [("field", "value", "from")]
    for path, value in _values(loaded.config, ()):
        dotted = ".".join(path)
        outwards = (".".join(path[:length]) for length in range(len(path), 0, -1))
        origin = next((loaded.origins[at] for at in outwards if at in loaded.origins), None)
        if path[0] == "models" and origin is None:
            continue  # what a model does not say is decided by its folder and [defaults]
        rows.append((dotted, _shown(value), origin or "default"))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)


# --- the three sources


def _from_file(file: Path) -> Iterator[_Setting]:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {file}: {error.strerror}",
            hint="name another file with --config",
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"the configuration {file} is larger than {MAX_FILE_BYTES:,} bytes")
    try:
        text = content.decode()
        table = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"the configuration {file} is not TOML: {error}") from None
    lines = _line_numbers(text)
    for path, value, annotation in _leaves(table, Config, (), lambda at: _place(file, lines, at)):
        origin = _place(file, lines, path)
        yield _Setting(path, _checked(value, annotation, path, origin), origin)


def _from_env(env: Mapping[str, str], model_names: Iterable[str]) -> Iterator[_Setting]:
    known = {re.sub(r"\W|-", "_", name).lower(): name for name in model_names}
    for variable, text in sorted(env.items()):
        words = variable.removeprefix(ENV_PREFIX)
        if words == variable or not text or variable in ENV_NOT_SETTINGS:
            continue
        if _KUBERNETES.fullmatch(words) and "__" not in words:
            continue
        path = tuple(words.lower().split("__"))
        if path[0] == "models" and len(path) > 1:
            path = (path[0], known.get(path[1], path[1]), *path[2:])
        annotation = _annotation_of(path, variable)
        value = _from_text(text, annotation)
        yield _Setting(path, _checked(value, annotation, path, variable), variable)


def _from_flags(flags: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[_Setting]:
    for dotted, value in flags.items():
        if value is not None:
            path = tuple(dotted.split("."))
            origin = names.get(dotted, "--" + path[-1].replace("_", "-"))
            annotation = _annotation_of(path, origin)
            yield _Setting(path, _checked(value, annotation, path, origin), origin)


def _from_text(text: str, annotation: Any) -> Any:
    """What a variable means: as it is for a string, else as TOML would read it."""
    if annotation is str:
        return text
    if annotation is bool or text.lower() in {"true", "false"}:
        return {"1": True, "0": False, "true": True, "false": False}.get(text.lower(), text)
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _place(file: Path, lines: Mapping[_Path, int], path: _Path) -> str:
    """``file:line`` of the key, or of the innermost table around it that has a line."""
    for length in range(len(path), 0, -1):
        if (line := lines.get(path[:length])) is not None:
            return f"{file}:{line}"
    return str(file)


_MULTILINE_STRING = re.compile(r'"{3}(?:\\.|[^\\])*?"{3}|\'{3}.*?\'{3}', re.DOTALL)
_HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(#.*)?")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


def _line_numbers(text: str) -> dict[_Path, int]:
    """Where each key stands; for messages only, since tomllib does not tell."""
    lines: dict[_Path, int] = {}
    table: _Path = ()
    text = _MULTILINE_STRING.sub(lambda found: "\n" * found[0].count("\n"), text)
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.fullmatch(line):
            table = _key_path(header[1])
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            path = _key_path(key[1])
            for length in range(1, len(path) + 1):
                lines.setdefault(table + path[:length], number)
    return lines


def _key_path(key: str) -> _Path:
    try:
        table: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return ()  # a string that looked like a key
    path: list[str] = []
    while isinstance(table, dict):
        ((name, table),) = table.items()
        path.append(name)
    return tuple(path)


# --- fields


def _members(annotation: Any) -> dict[str, Any] | None:
    """Fields of a table with their types; None for what is not a table of known fields."""
    for choice in _choices(annotation):
        if isinstance(choice, type) and issubclass(choice, msgspec.Struct):
            return {field.name: field.type for field in msgspec.structs.fields(choice)}
    return None


def _values_of_any_name(annotation: Any) -> Any:
    """The type of the values of a ``dict[str, T]``; ``_NO_SUCH`` for anything else."""
    return get_args(annotation)[1] if get_origin(annotation) is dict else _NO_SUCH


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)


def _inner(annotation: Any, name: str) -> Any:
    members = _members(annotation)
    return _values_of_any_name(annotation) if members is None else members.get(name, _NO_SUCH)


def _is_table(annotation: Any) -> bool:
    return _members(annotation) is not None or _values_of_any_name(annotation) is not _NO_SUCH


def _leaves(
    table: Mapping[str, Any], annotation: Any, at: _Path, place: Callable[[_Path], str]
) -> Iterator[tuple[_Path, Any, Any]]:
    if not table and at:
        yield at, {}, annotation  # an empty table says that it is there: [models.iris]
    for name, value in table.items():
        path = (*at, name)
        inner = _inner(annotation, name)
        if inner is _NO_SUCH:
            raise _unknown(path, place(path))
        if isinstance(value, dict) and _is_table(inner):
            yield from _leaves(value, inner, path, place)
        else:
            yield path, value, inner


def _annotation_of(path: _Path, origin: str) -> Any:
    annotation: Any = Config
    for depth, name in enumerate(path, 1):
        annotation = _inner(annotation, name)
        if annotation is _NO_SUCH:
            raise _unknown(path[:depth], origin)
    return annotation


def _known_fields(annotation: Any, at: _Path) -> Iterator[_Path]:
    for name, inner in (_members(annotation) or {}).items():
        path = (*at, name)
        yield path
        of_any_name = _values_of_any_name(inner)
        if of_any_name is _NO_SUCH:
            yield from _known_fields(inner, path)
        elif of_any_name is not Any:
            yield from _known_fields(of_any_name, (*path, "NAME"))


def _values(value: Any, at: _Path) -> Iterator[tuple[_Path, Any]]:
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _values(getattr(value, name), (*at, name))
    elif isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _values(inner, (*at, name))
    else:
        yield at, value


# --- the whole


def _as_tables(settings: Iterable[_Setting]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for setting in settings:
        *outer, last = setting.path
        table = tables
        for name in outer:
            table = table.setdefault(name, {})
        if setting.value != {} or last not in table:
            table[last] = setting.value
    return tables


def _built(tables: Mapping[str, Any], settings: Mapping[_Path, _Setting]) -> Config:
    try:
        return msgspec.convert(tables, Config)
    except msgspec.ValidationError as error:
        # Every value was checked where it came from, so what is left is one that is missing.
        what, _, at = str(error).partition(" - at `$.")
        table = at.rstrip("`")
        if not table:
            raise ConfigError(what) from None
        missing = re.search(r"required field `(\w+)`", what)
        field = f"{table}.{missing[1]}" if missing else table
        origins = [s.origin for path, s in settings.items() if ".".join(path).startswith(table)]
        raise ConfigError(
            f"{', '.join(origins)}: {field} is needed too"
            if missing
            else f"{', '.join(origins)}: {field}: {what}",
            hint=_needed(table) if missing else "",
            field=field,
        ) from None


def _needed(table: str) -> str:
    flags = " and ".join([f"--{table.rpartition('.')[2]}-{name}" for name in _required(table)])
    also = f" (on the command line {flags})" if table == "server.tls" else ""
    return f"[{table}] needs {' and '.join(_required(table))}{also}"


def _required(table: str) -> list[str]:
    annotation = _annotation_of(tuple(table.split(".")), "")
    return [
        field.name
        for choice in _choices(annotation)
        if isinstance(choice, type) and issubclass(choice, msgspec.Struct)
        for field in msgspec.structs.fields(choice)
        if field.required
    ]


# --- errors


def _checked(value: Any, annotation: Any, path: _Path, origin: str) -> Any:
    try:
        return msgspec.to_builtins(msgspec.convert(value, annotation))
    except msgspec.ValidationError as error:
        dotted = ".".join(path)
        expected = _expected(annotation) or str(error)
        raise ConfigError(
            f"{origin}: {dotted}: expected {expected}, got {_shown(value)}",
            source=origin,
            field=dotted,
            expected=expected,
            got=_shown(value),
        ) from None


def _unknown(path: _Path, origin: str) -> ConfigError:
    dotted = ".".join(path)
    return ConfigError(
        f"{origin}: there is no setting {dotted!r}",
        hint=_nearest(path),
        source=origin,
        field=dotted,
    )


def _nearest(path: _Path) -> str:
    """The known field most like ``path``: a sibling, else one of that name anywhere."""
    known = list(_known_fields(Config, ()))
    general = (path[0], "NAME", *path[2:]) if path[0] == "models" else path
    siblings = [field[-1] for field in known if field[:-1] == general[:-1]]
    if close := difflib.get_close_matches(path[-1], siblings, n=1):
        return f"did you mean {'.'.join((*path[:-1], close[0]))!r}?"
    last_words = {field[-1]: field for field in reversed(known)}
    if close := difflib.get_close_matches(path[-1], last_words, n=1, cutoff=0.8):
        return f"did you mean {'.'.join(last_words[close[0]])!r}?"
    return f"known here: {', '.join(siblings)}"


def _expected(annotation: Any) -> str:
    if members := _members(annotation):
        return f"a table with {', '.join(members)}"
    if _is_table(annotation):
        return "a table"
    return _expected_of(msgspec.inspect.type_info(annotation))


def _expected_of(info: msgspec.inspect.Type) -> str:
    if isinstance(info, msgspec.inspect.LiteralType):
        return " or ".join([_shown(value) for value in info.values])
    if isinstance(info, msgspec.inspect.UnionType):
        kinds = [kind for kind in info.types if not isinstance(kind, msgspec.inspect.NoneType)]
        return " or ".join([_expected_of(kind) for kind in kinds])
    if isinstance(info, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
        return f"a list, each of {_expected_of(info.item_type)}"
    if isinstance(info, msgspec.inspect.TupleType):
        return f"a list of {len(info.item_types)}"
    if isinstance(info, msgspec.inspect.BoolType):
        return "true or false"
    if isinstance(info, msgspec.inspect.StrType):
        if not info.pattern:
            return "a string"
        if "GiB" in info.pattern:
            return 'a size above 0 such as "512MiB" or "4GiB"'
        if "us|ms" in info.pattern:
            return 'a time above 0 such as "500us", "50ms" or "1.5s"'
        return f"text that matches {info.pattern}"
    if isinstance(info, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        noun = "a whole number" if isinstance(info, msgspec.inspect.IntType) else "a number"
        bounds = (
            f"above {info.gt}" if info.gt is not None else "",
            f"at least {info.ge}" if info.ge is not None else "",
            f"at most {info.le}" if info.le is not None else "",
        )
        return f"{noun} {' and '.join(bound for bound in bounds if bound)}".rstrip()
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, str | bool | dict | list | None):
        text = msgspec.json.encode(value, enc_hook=str).decode()
    else:
        text = str(value)  # JSON has no inf, and dates of TOML need no quotes
    text = without_passwords(text)
    return text if len(text) <= 80 else text[:77] + "..."
