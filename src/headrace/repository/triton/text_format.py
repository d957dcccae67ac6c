"""Reads protobuf's text format into a tree (https://protobuf.dev/reference/protobuf/textformat-spec/).

Written for files that people write by hand: every mistake is told with its line. It knows no
schema: ``schema.py`` gives the tree its meaning. What is understood: ``name: value``,
``name { }``, ``name: { }``, ``< >`` for braces, lists, strings that stand side by side,
escapes, ``#`` comments, ``,`` and ``;`` between fields, ``[extension.names]``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from headrace.errors import ConfigError
from headrace.repository.triton.tree import MAX_DEPTH, Field, Message, Scalar, Value

MAX_CHARACTERS = 1024 * 1024
"""Hand-written; the longest in use (a TensorRT-LLM ensemble) has some 20,000."""

_TOKEN = re.compile(
    r"""
      (?P<space>   (?: [ \t\r\n\f\v]+ | \#[^\n]* )+ )
    | (?P<word>    [A-Za-z_][A-Za-z0-9_]* )
    | (?P<number>  (?: 0[xX][0-9a-fA-F]+
                     | (?: [0-9]+\.?[0-9]* | \.[0-9]+ ) (?:[eE][+-]?[0-9]+)? [fF]? )
                   (?![A-Za-z0-9_.]) )
    | (?P<string>  "(?: [^"\\\n] | \\[^\n] )*" | '(?: [^'\\\n] | \\[^\n] )*' )
    | (?P<mark>    [{}<>\[\]:,;./-] )
    """,
    re.VERBOSE,
)

_ESCAPE = re.compile(
    r"\\(?:(?P<octal>[0-7]{1,3})|[xX](?P<hex>[0-9a-fA-F]{1,2})|u(?P<short>[0-9a-fA-F]{4})"
    r"|U(?P<long>[0-9a-fA-F]{8})|(?P<letter>.))"
)
_LETTERS = {
    "a": b"\a",
    "b": b"\b",
    "f": b"\f",
    "n": b"\n",
    "r": b"\r",
    "t": b"\t",
    "v": b"\v",
    "?": b"?",
    "\\": b"\\",
    "'": b"'",
    '"': b'"',
}

_CLOSING = {"{": "}", "<": ">"}


class _Token(NamedTuple):
    kind: str  # word, number, string, mark, end
    text: str
    line: int


def parse(text: str, *, where: str) -> Message:
    """The tree of ``text``.

    Args:
        text: what the file holds.
        where: the file's name, for errors.

    Raises:
        ConfigError: not the text format, or larger or deeper than anybody writes it; names
            the line, what was expected, and what stands there.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{where} is longer than {MAX_CHARACTERS:,} characters")
    return _Parser(_tokens(text, where), where).all()


def _tokens(text: str, where: str) -> list[_Token]:
    tokens = []
    position, line = 0, 1
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise _error(where, line, _what_is_wrong(text[position:]))
        kind, matched = found.lastgroup, found[0]
        if kind == "space":
            line += matched.count("\n")
        else:
            assert kind is not None
            tokens.append(_Token(kind, matched, line))
        position = found.end()
    tokens.append(_Token("end", "the end of the file", line))
    return tokens


def _what_is_wrong(rest: str) -> str:
    first = rest.partition("\n")[0][:40]
    if first[0] in "\"'":
        return f"the string {first} does not end on its line"
    if first[0].isdigit() or first[0] == ".":
        word = re.match(r"[\w.]+", first)
        return f"{word[0] if word else first!r} is not a number"
    return f"{first[0]!r} cannot stand here"


class _Parser:
    def __init__(self, tokens: list[_Token], where: str) -> None:
        self._tokens = tokens
        self._where = where
        self._at = 0

    def all(self) -> Message:
        message = Message(tuple(self._fields("", 0)), 1)
        self._expect("end", "the name of a field")
        return message

    # --- tokens

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _take_mark(self, marks: str) -> str:
        """The mark if it is one of ``marks``, else "" and nothing is taken."""
        token = self._next
        if token.kind == "mark" and token.text in marks:
            self._at += 1
            return token.text
        return ""

    def _expect(self, kind: str, what: str) -> _Token:
        token = self._next
        if token.kind != kind:
            raise self._wrong(token, what)
        self._at += token.kind != "end"
        return token

    def _wrong(self, token: _Token, expected: str) -> ConfigError:
        got = token.text if token.kind == "end" else repr(token.text)
        return _error(self._where, token.line, f"expected {expected}, got {got}")

    # --- grammar

    def _fields(self, closing: str, depth: int) -> list[Field]:
        """Fields up to ``closing`` ("": the end of the file), which is left where it stands."""
        if depth > MAX_DEPTH:
            raise _error(self._where, self._next.line, f"it nests deeper than {MAX_DEPTH}")
        fields = []
        while not self._ends(closing):
            fields.append(self._field(depth))
            self._take_mark(",;")
        return fields

    def _ends(self, closing: str) -> bool:
        token = self._next
        return token.kind == "end" or (token.kind == "mark" and token.text == closing)

    def _field(self, depth: int) -> Field:
        line = self._next.line
        name = self._name()
        colon = self._take_mark(":")
        if self._next.kind == "mark" and self._next.text in _CLOSING:
            return Field(name, (self._message(depth),), line)
        if self._take_mark("["):  # the colon may be missing before a list of messages
            return Field(name, tuple(self._list(depth, scalars=bool(colon))), line, listed=True)
        if not colon:
            raise self._wrong(self._next, f"':' or '{{' after {name!r}")
        return Field(name, (self._scalar(),), line)

    def _name(self) -> str:
        if not self._take_mark("["):
            return self._expect("word", "the name of a field").text
        parts = []
        while not self._take_mark("]"):
            token = self._take()
            if token.kind not in ("word", "mark") or token.text in "{}<>[:,;":
                raise self._wrong(token, "']' after the name of an extension")
            parts.append(token.text)
        return f"[{''.join(parts)}]"

    def _message(self, depth: int) -> Message:
        opening = self._take()
        closing = _CLOSING[opening.text]
        fields = self._fields(closing, depth + 1)
        if not self._take_mark(closing):
            raise _error(
                self._where,
                self._next.line,
                f"the {opening.text!r} of line {opening.line} is not closed",
            )
        return Message(tuple(fields), opening.line)

    def _list(self, depth: int, *, scalars: bool) -> list[Value]:
        values: list[Value] = []
        if self._take_mark("]"):
            return values
        while True:
            is_message = self._next.kind == "mark" and self._next.text in _CLOSING
            if not is_message and not scalars:
                raise self._wrong(self._next, "'{' in a list without ':' before it")
            values.append(self._message(depth) if is_message else self._scalar())
            if self._take_mark("]"):
                return values
            if not self._take_mark(","):
                raise self._wrong(self._next, "',' or ']' in a list")

    def _scalar(self) -> Scalar:
        token = self._take()
        if token.kind == "string":
            content = self._content(token)
            while self._next.kind == "string":
                content += self._content(self._take())
            return Scalar("string", content.decode("latin-1"), token.line)
        sign = ""
        if token.kind == "mark" and token.text == "-":
            sign, token = "-", self._take()
        if token.kind == "number" or (token.kind == "word" and not sign):
            return Scalar(
                "word" if token.kind == "word" else "number", sign + token.text, token.line
            )
        if token.kind == "word" and token.text.lower() in ("inf", "infinity", "nan"):
            return Scalar("number", sign + token.text, token.line)
        raise self._wrong(token, "a value")

    def _content(self, token: _Token) -> bytes:
        content = b""
        position, text = 0, token.text[1:-1]
        for found in _ESCAPE.finditer(text):
            content += text[position : found.start()].encode()
            content += self._escaped(found, token.line)
            position = found.end()
        return content + text[position:].encode()

    def _escaped(self, found: re.Match[str], line: int) -> bytes:
        if found["octal"]:
            return bytes([int(found["octal"], 8) & 0xFF])
        if found["hex"]:
            return bytes([int(found["hex"], 16)])
        if code := found["short"] or found["long"]:
            number = int(code, 16)
            if number <= 0x10FFFF and not 0xD800 <= number < 0xE000:
                return chr(number).encode()
        elif found["letter"] in _LETTERS:
            return _LETTERS[found["letter"]]
        raise _error(self._where, line, f"{found[0]!r} is not an escape sequence")


def _error(where: str, line: int, what: str) -> ConfigError:
    return ConfigError(f"{where}:{line}: {what}", source=f"{where}:{line}")
