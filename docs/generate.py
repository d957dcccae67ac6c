"""Writes the tables in these pages from the code, so that they cannot be wrong for long.

``python docs/generate.py`` rewrites what stands between two comments of one of these forms;
``tests/docs/test_reference.py`` fails where that would change something::

    <!-- settings headrace.limits:HttpLimits -->  ...  <!-- end -->
    <!-- metrics headrace_ -->  ...  <!-- end -->
    <!-- flags FIELDS -->  ...  <!-- end -->
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as types

from headrace.cli import triton_tables
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.prometheus import render

HERE = Path(__file__).parent

_REGION = re.compile(r"<!-- (settings|metrics|flags) (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def regenerated(page: str) -> str:
    """The text of a page with every table made anew."""
    makers: dict[str, Callable[[str], Iterator[str]]] = {
        "settings": settings_table,
        "metrics": metrics_table,
        "flags": flags_table,
    }

    def replace(found: re.Match[str]) -> str:
        kind, what = found.groups()
        table = "\n".join(makers[kind](what))
        return f"<!-- {kind} {what} -->\n\n{table}\n\n<!-- end -->"

    return _REGION.sub(replace, page)


def settings_table(target: str) -> Iterator[str]:
    """The fields of a struct, ``module:Class``: name, what it takes, default, why."""
    module, _, name = target.partition(":")
    struct = getattr(import_module(module), name)
    reasons = _field_docstrings(struct)
    yield "| setting | takes | default | |"
    yield "|---|---|---|---|"
    described = types.type_info(struct)
    assert isinstance(described, types.StructType)
    for field in described.fields:
        if _is_table(field.type):
            continue  # a table of its own
        default = _default(field)
        yield f"| `{field.name}` | {_takes(field.type)} | {default} | {reasons[field.name]} |"


def metrics_table(prefix: str) -> Iterator[str]:
    """The families of ``/metrics`` whose name begins with ``prefix``."""
    page = render([Metrics().snapshot()]).decode()
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", page, re.MULTILINE))
    yield "| name | type | |"
    yield "|---|---|---|"
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE):
        if name.startswith(prefix):
            yield f"| `{name}` | {kind} | {_cell(helps[name])} |"


def flags_table(name: str) -> Iterator[str]:
    """One of the tables of Triton's flags: what each sets, or why it does nothing."""
    yield "| flag | |"
    yield "|---|---|"
    for flag, said in getattr(triton_tables, name).items():
        about = said if isinstance(said, str) else f"`{said[0]}`" if name == "FIELDS" else said[1]
        yield f"| `{flag}` | {_cell(about)} |"


def _field_docstrings(struct: type) -> dict[str, str]:
    """The string under each field; "" where a field speaks for itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(struct)))
    body = tree.body[0].body  # type: ignore[attr-defined] # a class has one
    found: dict[str, str] = {}
    above = ""
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = node.target.id
            found[above] = ""
        elif above and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[above] = _cell(str(node.value.value))
            above = ""
    return found


def _cell(text: str) -> str:
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def _is_table(kind: types.Type) -> bool:
    members = kind.types if isinstance(kind, types.UnionType) else (kind,)
    nested = any(isinstance(member, types.StructType) for member in members)
    by_name = isinstance(kind, types.DictType) and isinstance(kind.value_type, types.StructType)
    return nested or by_name


def _default(field: types.Field) -> str:
    if field.required:
        return "must be said"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None:
        return "found out"
    if isinstance(value, bool | str):
        return f"`{json.dumps(value)}`"
    if isinstance(value, int | float):
        return f"`{_plain(value)}`"
    return f"`{json.dumps(value)}`" if value else "none"


def _takes(kind: types.Type) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(
            _takes(member) for member in kind.types if not isinstance(member, types.NoneType)
        )
    if isinstance(kind, types.LiteralType):
        return ", ".join(f"`{json.dumps(value)}`" for value in sorted(kind.values, key=str))
    if isinstance(kind, types.IntType | types.FloatType):
        return _number(kind)
    if isinstance(kind, types.VarTupleType | types.ListType):
        return f"list of {_takes(kind.item_type)}"
    if isinstance(kind, types.TupleType):
        return f"[{', '.join(map(_takes, kind.item_types))}]"
    if isinstance(kind, types.StructType):
        return f"table of {', '.join(field.name for field in kind.fields)}"
    simple: dict[type[Any], str] = {
        types.StrType: "text",
        types.BoolType: "true, false",
        types.DictType: "table",
        types.AnyType: "anything",
    }
    return simple[type(kind)]


def _number(kind: types.IntType | types.FloatType) -> str:
    noun = "whole number" if isinstance(kind, types.IntType) else "number"
    if kind.ge is not None:
        noun += f" from {_plain(kind.ge)}"
    if kind.gt is not None:
        noun += f" above {_plain(kind.gt)}"
    if kind.le is not None:
        noun += f"{' to' if kind.ge is not None else ', at most'} {_plain(kind.le)}"
    return noun


def _plain(value: float) -> str:
    """As TOML takes it; digits in threes where they could be miscounted."""
    return f"{value:_}" if value >= 10_000 else f"{value}"


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.md")):
        path.write_text(regenerated(path.read_text()))
