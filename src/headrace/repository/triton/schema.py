"""Gives a tree the meaning of a message: names, datatypes, maps, defaults.

Walks the message's descriptor (``headrace.protos``), so there is one schema, and gives plain
values in the shape of Triton's JSON: names as in the .proto file, 64-bit numbers as numbers,
enumerations by name, maps as objects. A field that the schema does not have is noted, not
refused: the file was written for a server that may know more.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.errors import ConfigError
from headrace.repository.triton.tree import Field, Message, Scalar, Value

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

# FieldDescriptor.CPPTYPE_*, https://protobuf.dev/reference/python/api-docs
_INT32, _INT64, _UINT32, _UINT64, _DOUBLE, _FLOAT, _BOOL, _ENUM, _STRING, _MESSAGE = range(1, 11)

_BOUNDS = {
    _INT32: (-(1 << 31), (1 << 31) - 1),
    _INT64: (-(1 << 63), (1 << 63) - 1),
    _UINT32: (0, (1 << 32) - 1),
    _UINT64: (0, (1 << 64) - 1),
}
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_BOOLEANS |= {"True": True, "False": False}


class Said(msgspec.Struct, frozen=True):
    """What a configuration says, and where.

    Attributes:
        where: the file, for messages.
        values: only what was said, in the shape of the message's JSON.
        lines: path (``input[0].dims``) -> line; 0 where there are none.
        unknown: a sentence with file and line for each field that the schema does not have.
    """

    where: str
    values: dict[str, Any]
    lines: dict[str, int]
    unknown: tuple[str, ...] = ()

    def place(self, path: str) -> str:
        """``file:line`` of a path, or of the innermost one around it that was said."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        line = self.lines.get(path, 0)
        return f"{self.where}:{line}" if line else self.where

    def error(self, path: str, what: str, *, hint: str = "") -> ConfigError:
        """The error for a value that cannot be used, with its place."""
        place = self.place(path)
        return ConfigError(f"{place}: {path}: {what}", hint=hint, source=place, field=path)


def read(message: Message, descriptor: Descriptor, *, where: str) -> Said:
    """The values of ``message`` as one of the kind that ``descriptor`` describes.

    Raises:
        ConfigError: a wrong value, a field or a member of a ``oneof`` twice; with file, line,
            field and what was expected.
    """
    reader = _Reader(where)
    values = reader.message(message, descriptor, "")
    return Said(where, values, reader.lines, tuple(reader.unknown))


def with_defaults(values: dict[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """``values`` and the default of every field that has one, inner messages included.

    What protobuf's JSON printer calls "always print fields with no presence": messages and
    members of a ``oneof`` stay away where they were not said.
    """
    full: dict[str, Any] = {}
    for field in descriptor.fields:
        if field.name in values:
            full[field.name] = _filled(values[field.name], field)
        elif field.is_repeated:
            full[field.name] = {} if _is_map(field) else []
        elif field.cpp_type == _ENUM:
            full[field.name] = _enum_of(field).values_by_number[0].name
        elif field.cpp_type != _MESSAGE and field.containing_oneof is None:
            full[field.name] = field.default_value
    return full


def _filled(value: Any, field: FieldDescriptor) -> Any:
    if field.cpp_type != _MESSAGE:
        return value
    if _is_map(field):
        inner = _message_of(field).fields_by_name["value"]
        return {key: _filled(item, inner) for key, item in value.items()}
    if field.is_repeated:
        return [with_defaults(item, _message_of(field)) for item in value]
    return with_defaults(value, _message_of(field))


def _is_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return field.is_repeated and kind is not None and bool(kind.GetOptions().map_entry)


def _message_of(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None
    return field.message_type


def _enum_of(field: FieldDescriptor) -> EnumDescriptor:
    assert field.enum_type is not None
    return field.enum_type


class _Reader:
    def __init__(self, where: str) -> None:
        self._where = where
        self.lines: dict[str, int] = {}
        self.unknown: list[str] = []

    def message(self, message: Message, descriptor: Descriptor, at: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        chosen: dict[str, str] = {}
        for said in message.fields:
            field = descriptor.fields_by_name.get(said.name)
            if field is None and message.by_key:
                field = descriptor.fields_by_camelcase_name.get(said.name)
            path = f"{at}{said.name}"
            if field is None:
                self._note_unknown(said, path, descriptor)
                continue
            self.lines.setdefault(path, said.line)
            if field.is_repeated:
                self._repeated(said, field, values, path)
                continue
            self._refuse_twice(said, field, values, chosen, path)
            values[field.name] = self._value(said.values[0], field, path)
        return values

    def _repeated(
        self, said: Field, field: FieldDescriptor, values: dict[str, Any], path: str
    ) -> None:
        if _is_map(field):
            self._map(said, field, values.setdefault(field.name, {}), path)
            return
        found = values.setdefault(field.name, [])
        for value in said.values:
            place = f"{path}[{len(found)}]"
            self.lines[place] = value.line
            found.append(self._value(value, field, place))

    def _map(self, said: Field, field: FieldDescriptor, found: dict[Any, Any], path: str) -> None:
        keys, inner = (_message_of(field).fields_by_name[name] for name in ("key", "value"))
        for entry in said.values:
            if not isinstance(entry, Message):
                raise self._error(entry, path, "expected { key: ... value: ... }")
            if entry.by_key:  # a JSON object
                for item in entry.fields:
                    key = self._value(Scalar("json", item.name, item.line), keys, path)
                    found[key] = self._value(item.values[0], inner, f"{path}[{item.name}]")
                continue
            pair = self.message(entry, _message_of(field), f"{path}.")
            key = pair.get("key", keys.default_value)
            self.lines[f"{path}[{key}]"] = entry.line
            empty: Any = {} if inner.cpp_type == _MESSAGE else inner.default_value
            found[key] = pair.get("value", empty)

    def _refuse_twice(
        self,
        said: Field,
        field: FieldDescriptor,
        values: dict[str, Any],
        chosen: dict[str, str],
        path: str,
    ) -> None:
        if said.listed and len(said.values) != 1:
            raise self._error(said, path, f"expected one value, got a list of {len(said.values)}")
        if field.name in values:
            raise self._error(said, path, "is said twice")
        if (group := field.containing_oneof) is not None:
            other = chosen.setdefault(group.name, field.name)
            if other != field.name:
                raise self._error(said, path, f"cannot stand beside {other}: one of them only")

    def _value(self, value: Value, field: FieldDescriptor, path: str) -> Any:
        if field.cpp_type == _MESSAGE:
            if not isinstance(value, Message):
                raise self._error(value, path, f"expected {{ ... }}, got {value.shown}")
            return self.message(value, _message_of(field), f"{path}.")
        if not isinstance(value, Scalar):
            raise self._error(value, path, "expected one value, got { ... }")
        if field.cpp_type == _STRING:
            return self._string(value, path)
        if field.cpp_type == _ENUM:
            return self._enum(value, _enum_of(field), path)
        if field.cpp_type == _BOOL:
            if value.kind in ("string", "json") or value.text not in _BOOLEANS:
                raise self._error(value, path, f"expected true or false, got {value.shown}")
            return _BOOLEANS[value.text]
        if field.cpp_type in (_DOUBLE, _FLOAT):
            return self._float(value, path)
        return self._integer(value, *_BOUNDS[field.cpp_type], path)

    def _string(self, value: Scalar, path: str) -> str:
        if value.kind == "json":
            return value.text
        if value.kind != "string":
            raise self._error(value, path, f"expected a string in quotes, got {value.shown}")
        try:
            return value.text.encode("latin-1").decode()
        except UnicodeDecodeError:
            raise self._error(value, path, "expected UTF-8 text") from None

    def _enum(self, value: Scalar, kind: EnumDescriptor, path: str) -> str:
        known = kind.values_by_name
        if value.kind in ("word", "json"):
            word = value.text.upper() if value.kind == "json" else value.text
            if word in known:
                return word
        if value.kind == "number" and value.text.isdigit():
            number = kind.values_by_number.get(int(value.text))
            if number is not None:
                return str(number.name)
        raise self._error(
            value,
            path,
            f"expected one of {', '.join(known)}, got {value.shown}",
            hint=_nearest(value.text, known),
        )

    def _integer(self, value: Scalar, low: int, high: int, path: str) -> int:
        number = _whole(value)
        if number is None or not low <= number <= high:
            raise self._error(
                value, path, f"expected a whole number from {low} to {high}, got {value.shown}"
            )
        return number

    def _float(self, value: Scalar, path: str) -> float:
        text = value.text.lower().removesuffix("f") if value.kind == "number" else value.text
        try:
            if value.kind == "string":
                raise ValueError
            number = float(int(text, 0)) if "0x" in text else float(value.text.removesuffix("f"))
        except (ValueError, OverflowError):
            raise self._error(value, path, f"expected a number, got {value.shown}") from None
        return number

    def _note_unknown(self, said: Field, path: str, descriptor: Descriptor) -> None:
        place = f"{self._where}:{said.line}" if said.line else self._where
        close = _nearest(said.name, descriptor.fields_by_name)
        self.unknown.append(
            f"{place}: there is no field {path!r}; it is left out{f' ({close})' if close else ''}"
        )

    def _error(self, at: Value | Field, path: str, what: str, hint: str = "") -> ConfigError:
        place = f"{self._where}:{at.line}" if at.line else self._where
        return ConfigError(f"{place}: {path}: {what}", hint=hint, source=place, field=path)


def _whole(value: Scalar) -> int | None:
    """A whole number in any of the text format's bases; None for anything else."""
    if value.kind in ("string", "word"):
        return None
    text = value.text
    negative, digits = text.startswith("-"), text.removeprefix("-").lower()
    try:
        if digits.startswith("0x"):
            number = int(digits, 16)
        elif re.fullmatch("0[0-7]+", digits) and value.kind == "number":
            number = int(digits, 8)
        elif digits.isascii() and digits.isdigit() and len(digits) <= 20:
            number = int(digits)
        elif value.kind == "number" and math.isfinite(exact := float(text)):
            # JSON writes 8.0 for 8 where it does not know better.
            if not exact.is_integer() or abs(exact) > 2**53 or "f" in digits:
                return None
            number = abs(int(exact))
        else:
            return None
    except ValueError:
        return None
    return -number if negative else number


_OFTEN_MEANT = {
    "TYPE_FLOAT": "TYPE_FP32",
    "TYPE_FLOAT32": "TYPE_FP32",
    "TYPE_FLOAT16": "TYPE_FP16",
    "TYPE_HALF": "TYPE_FP16",
    "TYPE_DOUBLE": "TYPE_FP64",
    "TYPE_FLOAT64": "TYPE_FP64",
    "TYPE_BYTES": "TYPE_STRING",
    "TYPE_INT": "TYPE_INT32",
    "TYPE_LONG": "TYPE_INT64",
}
"""What other libraries call these, and what would otherwise be taken for something near."""


def _nearest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    meant = _OFTEN_MEANT.get(word)
    if meant in names:
        return f"did you mean {meant!r}?"
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else ""
