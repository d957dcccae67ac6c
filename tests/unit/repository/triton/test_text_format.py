"""The reader of protobuf's text format; protobuf's own is the oracle."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ConfigError
from headrace.repository.triton.schema import read, with_defaults
from headrace.repository.triton.text_format import MAX_CHARACTERS, parse
from headrace.repository.triton.tree import MAX_DEPTH, Field, Message, Scalar, Value, to_text
from tests.unit.repository.triton.configurations import any_configuration

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
SCALARS = st.one_of(
    st.binary(max_size=12).map(lambda raw: Scalar("string", raw.decode("latin-1"))),
    st.integers(-(2**63), 2**64).map(lambda number: Scalar("number", str(number))),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda f: Scalar("number", repr(f))),
    NAMES.map(lambda name: Scalar("word", name)),
)


def fields(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Message]:
    single = st.builds(lambda name, value: Field(name, (value,)), NAMES, values)
    listed = st.builds(
        lambda name, items: Field(name, tuple(items), 0, True), NAMES, st.lists(values, max_size=3)
    )
    return st.lists(single | listed, max_size=4).map(lambda found: Message(tuple(found)))


MESSAGES = fields(st.recursive(SCALARS, fields, max_leaves=12))


def without_lines(value: Value) -> Value:
    if isinstance(value, Scalar):
        return Scalar(value.kind, value.text)
    return Message(
        tuple(Field(f.name, tuple(map(without_lines, f.values)), 0, f.listed) for f in value.fields)
    )


@given(MESSAGES)
def test_what_is_printed_reads_back(message: Message) -> None:
    assert without_lines(parse(to_text(message), where="f")) == message


def plain(value: object) -> object:
    """Protobuf's JSON as Triton has it: 64-bit numbers as numbers."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


@given(any_configuration())
def test_any_configuration_reads_as_protobuf_reads_it(message: Any) -> None:
    text = text_format.MessageToString(message)
    said = read(parse(text, where="f"), message.DESCRIPTOR, where="f")
    expected = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    full = plain(with_defaults(said.values, message.DESCRIPTOR))
    assert said.unknown == ()
    assert _numbers_as_text(full) == _numbers_as_text(expected)


def _numbers_as_text(value: object) -> object:
    """So that 64-bit numbers, which protobuf writes as strings, compare."""
    if isinstance(value, dict):
        return {key: _numbers_as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers_as_text(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(int(value)) if float(value).is_integer() else str(value)


def only_value(text: str) -> Value:
    (field,) = parse(text, where="f").fields
    (value,) = field.values
    return value


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ('a: "x" \'y\'\n  "z"', "string", "xyz"),
        (r'a: "\t\n\"\\\x41\101\?"', "string", '\t\n"\\AA?'),
        (r'a: "\u00e9\U0001F600"', "string", "é😀".encode().decode("latin-1")),
        ("a: 'it''s'", "string", "its"),
        ("a: 0x1F", "number", "0x1F"),
        ("a: - 5", "number", "-5"),
        ("a: 1.5e-3f", "number", "1.5e-3f"),
        ("a: .5", "number", ".5"),
        ("a: -inf", "number", "-inf"),
        ("a: TYPE_FP32", "word", "TYPE_FP32"),
        ("a: true;", "word", "true"),
        ("# first\na: x # last", "word", "x"),
    ],
)
def test_values(text: str, kind: str, value: str) -> None:
    found = only_value(text)
    assert isinstance(found, Scalar)
    assert (found.kind, found.text) == (kind, value)


@pytest.mark.parametrize(
    "text",
    [
        "a { b: 1 }",
        "a: { b: 1 }",
        "a < b: 1 >",
        "a [ { b: 1 } ]",
        "a: [ < b: 1 > ],",
        "a{b:1}",
        "a {\n  b: 1,\n};",
    ],
)
def test_spellings_of_a_message(text: str) -> None:
    assert without_lines(only_value(text)) == Message((Field("b", (Scalar("number", "1"),)),))


def test_lines_are_known() -> None:
    tree = parse('a: 1\n# b\nb {\n  c: "x"\n     "y"\n  d: [1,\n 2]\n}', where="f")
    b = tree.fields[1].values[0]
    assert isinstance(b, Message)
    assert [field.line for field in tree.fields] == [1, 3]
    assert [field.line for field in b.fields] == [4, 6]
    assert [value.line for value in b.fields[1].values] == [6, 7]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb", 2, "expected ':' or '{' after 'b', got the end of the file"),
        ("a: {\n b: 1\n", 3, "the '{' of line 1 is not closed"),
        ("a { b: 1 >", 1, "expected the name of a field, got '>'"),
        ("a: }", 1, "expected a value, got '}'"),
        ("}", 1, "expected the name of a field, got '}'"),
        ("a: [1 2]", 1, "expected ',' or ']' in a list, got '2'"),
        ("a: [1,]", 1, "expected a value, got ']'"),
        ("a [1]", 1, "expected '{' in a list without ':'"),
        ('a: "x\nb: 2', 1, 'the string "x does not end on its line'),
        ('a: "\\q"', 1, "is not an escape sequence"),
        ('a: "\\ud800"', 1, "is not an escape sequence"),
        ("a: 12abc", 1, "'12abc' is not a number"),
        ("a: 1.2.3", 1, "'1.2.3' is not a number"),
        ("a: -x", 1, "expected a value, got 'x'"),
        ("a = 1", 1, "'=' cannot stand here"),
        ("5: 1", 1, "expected the name of a field, got '5'"),
        ("a: 1,,", 1, "expected the name of a field, got ','"),
        ("\x00", 1, "'\\x00' cannot stand here"),
        ("a{" * 40, 1, f"it nests deeper than {MAX_DEPTH}"),
    ],
)
def test_mistakes_are_told_with_their_line(text: str, line: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, where="config.pbtxt")
    assert caught.value.message.startswith(f"config.pbtxt:{line}: ")
    assert said in caught.value.message


def test_a_file_has_a_size() -> None:
    with pytest.raises(ConfigError, match="longer than"):
        parse("#" * (MAX_CHARACTERS + 1), where="f")


@given(st.text(max_size=60) | st.text("ab:{}<>[]\"'\\,;#-1.x \n", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ConfigError):  # anything else would be a crash
        parse(text, where="f")
