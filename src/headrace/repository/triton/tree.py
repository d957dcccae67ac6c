"""What a text in protobuf's text format says, before anybody knows which fields exist.

A tree of plain values with line numbers, so that whatever is wrong with one of them can be
told with its place. JSON makes the same tree (without lines): Triton's load request sends a
model's configuration in that form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

MAX_DEPTH = 32
"""Messages inside messages. Triton's own configuration nests seven deep."""


class Scalar(msgspec.Struct, frozen=True):
    """One value.

    ``kind``: ``string`` (``text`` holds its bytes as Latin-1, escapes resolved), ``number``
    (as written, sign included), ``word`` (``true``, ``TYPE_FP32``, ``inf``), or ``json`` for a
    JSON string, which stands for a string, an enumeration's name or a 64-bit number.
    """

    kind: Literal["string", "number", "word", "json"]
    text: str
    line: int = 0

    @property
    def shown(self) -> str:
        """As it was written, near enough for an error message."""
        return json.dumps(self.text) if self.kind in ("string", "json") else self.text


class Message(msgspec.Struct, frozen=True):
    """``{ ... }``. ``by_key``: it came from a JSON object, whose names may be a map's keys."""

    fields: tuple[Field, ...] = ()
    line: int = 0
    by_key: bool = False

    @property
    def shown(self) -> str:
        """As it was written, near enough for an error message."""
        return "{...}"


Value = Scalar | Message


class Field(msgspec.Struct, frozen=True):
    """``name: value``. A list ``[a, b]`` gives all its values at once, ``listed``."""

    name: str
    values: tuple[Value, ...]
    line: int = 0
    listed: bool = False


def from_json(value: Mapping[str, Any], depth: int = 0) -> Message:
    """The tree of a JSON object; ``null`` is as if the name were not there.

    Raises:
        ValueError: nested deeper than :data:`MAX_DEPTH`, or a list inside a list.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"it nests deeper than {MAX_DEPTH}")
    fields = []
    for name, inner in value.items():
        if inner is None:
            continue
        listed = isinstance(inner, list)
        values = tuple(_from_json(item, depth) for item in (inner if listed else [inner]))
        fields.append(Field(str(name), values, 0, listed))
    return Message(tuple(fields), 0, by_key=True)


def _from_json(value: Any, depth: int) -> Value:
    if isinstance(value, Mapping):
        return from_json(value, depth + 1)
    if isinstance(value, bool):
        return Scalar("word", "true" if value else "false")
    if isinstance(value, int | float):
        return Scalar("number", repr(value))
    if isinstance(value, str):
        return Scalar("json", value)
    raise ValueError(f"{value!r} cannot stand in a list")


def to_text(message: Message, indent: str = "") -> str:
    """The text that reads back as ``message`` (without its line numbers and JSON origin)."""
    lines = []
    for field in message.fields:
        if field.listed:
            inner = ", ".join(_value_text(value, indent) for value in field.values)
            lines.append(f"{indent}{field.name}: [{inner}]\n")
        else:
            (value,) = field.values
            lines.append(f"{indent}{field.name}: {_value_text(value, indent)}\n")
    return "".join(lines)


def _value_text(value: Value, indent: str) -> str:
    if isinstance(value, Message):
        inner = to_text(value, indent + "  ")
        return f"{{\n{inner}{indent}}}"
    if value.kind == "string":
        return _quoted(value.text.encode("latin-1"))
    if value.kind == "json":
        return _quoted(value.text.encode())
    return value.text


def _quoted(content: bytes) -> str:
    escaped = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\{byte:03o}"
        for byte in content
    )
    return f'"{escaped}"'
