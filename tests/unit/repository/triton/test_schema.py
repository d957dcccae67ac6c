"""Values, datatypes and places of a configuration."""

from __future__ import annotations

import json

import pytest

from headrace.errors import ConfigError
from headrace.protos import model_config
from headrace.repository.triton.schema import Said, read
from headrace.repository.triton.text_format import parse
from headrace.repository.triton.tree import from_json

CONFIG = model_config().DESCRIPTOR


def said(text: str) -> Said:
    return read(parse(text, where="c"), CONFIG, where="c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: x", "c:1: max_batch_size: expected a whole number from -2147483648"),
        ("max_batch_size: 2147483648", "expected a whole number"),
        ("max_batch_size: 1.5", "got 1.5"),
        ('max_batch_size: "8"', 'got "8"'),
        ("max_batch_size: { }", "expected one value, got { ... }"),
        ("max_batch_size: [1, 2]", "expected one value, got a list of 2"),
        ("name: 5", "c:1: name: expected a string in quotes, got 5"),
        ('name: "\\377"', "expected UTF-8 text"),
        ('name: "a"\nname: "b"', "c:2: name: is said twice"),
        ("input: 3", "c:1: input[0]: expected { ... }, got 3"),
        ("input {\n dims: [1,\n 1.5] }", "c:3: input[0].dims[1]: expected a whole number"),
        ("input { data_type: FP32 }", "input[0].data_type: expected one of TYPE_INVALID"),
        ("input { data_type: 99 }", "expected one of TYPE_INVALID"),
        ("input { optional: 2 }", "input[0].optional: expected true or false, got 2"),
        ("parameters: 3", "c:1: parameters: expected { key: ... value: ... }"),
        ("dynamic_batching { } sequence_batching { }", "cannot stand beside dynamic_batching"),
        ("sequence_batching { direct { minimum_slot_utilization: x } }", "expected a number"),
    ],
)
def test_wrong_values_are_told_with_place_and_expectation(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        said(text)
    assert message in caught.value.message


def test_a_misspelt_datatype_has_a_hint() -> None:
    with pytest.raises(ConfigError) as caught:
        said("input { data_type: TYPE_FLOAT32 }")
    assert caught.value.hint == "did you mean 'TYPE_FP32'?"


def test_unknown_fields_are_noted_with_the_nearest_name() -> None:
    found = said('name: "m"\nmax_batchsize: 3\ninput {\n  shape: 4\n}\n[ext.of/x]: 1')
    assert found.values == {"name": "m", "input": [{}]}
    assert found.unknown == (
        "c:2: there is no field 'max_batchsize'; it is left out (did you mean 'max_batch_size'?)",
        "c:4: there is no field 'input[0].shape'; it is left out (did you mean 'reshape'?)",
        "c:6: there is no field '[ext.of/x]'; it is left out",
    )


def test_numbers_in_every_base_and_booleans_in_every_spelling() -> None:
    found = said(
        "max_batch_size: 0x10 input { dims: [010, -1] optional: True } input { optional: 1 }"
        "response_cache { enable: t }"
    )
    assert found.values["max_batch_size"] == 16
    assert found.values["input"] == [{"dims": [8, -1], "optional": True}, {"optional": True}]
    assert found.values["response_cache"] == {"enable": True}


def test_repeated_fields_add_up_and_maps_take_the_last() -> None:
    found = said(
        "input { dims: 1 dims: [2, 3] } input [ { } ]"
        'metric_tags { key: "a" value: "1" } metric_tags [ { key: "a" value: "2" }, { key: "b" } ]'
    )
    assert found.values["input"] == [{"dims": [1, 2, 3]}, {}]
    assert found.values["metric_tags"] == {"a": "2", "b": ""}


@pytest.mark.parametrize(
    ("path", "place"),
    [("input[1].dims", "c:3"), ("input[1].reshape.shape", "c:2"), ("nothing", "c"), ("", "c")],
)
def test_a_path_has_the_place_of_the_innermost_part_that_was_said(path: str, place: str) -> None:
    assert said("input { }\ninput {\n dims: 1 }").place(path) == place


def test_json_says_the_same_as_text() -> None:
    text = said(
        'max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }'
        'parameters { key: "k" value { string_value: "v" } }'
        "sequence_batching { max_sequence_idle_microseconds: 5000000000 }"
    )
    value = {
        "max_batch_size": 8.0,
        "input": [{"name": "x", "dataType": "type_fp32", "dims": ["4"], "optional": None}],
        "parameters": {"k": {"string_value": "v"}},
        "sequence_batching": {"max_sequence_idle_microseconds": "5000000000"},
    }
    found = read(from_json(json.loads(json.dumps(value))), CONFIG, where="the request")
    assert found.values == text.values


def test_json_errors_name_the_field() -> None:
    with pytest.raises(ConfigError, match=r"^the request: input\[0\].dims\[0\]: expected a whole"):
        read(from_json({"input": [{"dims": ["x"]}]}), CONFIG, where="the request")


def test_json_has_a_depth() -> None:
    value: dict[str, object] = {}
    for _ in range(100):
        value = {"a": value}
    with pytest.raises(ValueError, match="deeper"):
        from_json(value)
