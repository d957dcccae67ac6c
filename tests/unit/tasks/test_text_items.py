"""Texts become rows: which numbers, of which type, how long, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequest, ModelLoadError, PayloadTooLarge
from headrace.tasks.text_items import TextItems
from headrace.tasks.text_options import read_options
from headrace.types import TensorSpec
from tests.unit.tasks.text_models import (
    CLS,
    IDS,
    MASK,
    POSITIONS,
    SEP,
    TYPES,
    UNK,
    request,
    vocabulary,
)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    path = vocabulary(tmp_path_factory.mktemp("vocabulary"))

    def make(*inputs: TensorSpec, **options) -> TextItems:
        return TextItems(inputs or (IDS, MASK), read_options({"tokenizer": path, **options}))

    return make


def rows(items: TextItems, *texts: str | bytes) -> list[list[int]]:
    return [item.arrays[0][0].tolist() for item in items.prepare(request(*texts)).items]


def test_each_text_is_an_item_of_one_row_and_its_own_length(make):
    prepared = make().prepare(request("the cats sat", "a", ""))
    assert [item.arrays[0].tolist() for item in prepared.items] == [
        [[CLS, 5, 6, 8, 7, SEP]],
        [[CLS, 10, SEP]],
        [[CLS, SEP]],
    ]
    assert [item.arrays[1].tolist() for item in prepared.items] == [[[1] * 6], [[1] * 3], [[1] * 2]]
    assert [(item.rows, item.length) for item in prepared.items] == [(1, 6), (1, 3), (1, 2)]
    assert prepared.tokens == 11


def test_inputs_come_in_the_models_order_with_the_models_datatypes(make):
    narrow = TensorSpec("token_type_ids", "INT32", (-1, -1))
    items = make(POSITIONS, narrow, IDS, MASK, position_offset=2, pad_id=7)
    (item,) = items.prepare(request("the cat")).items
    assert [array.tolist() for array in item.arrays] == [
        [[2, 3, 4, 5]],
        [[0, 0, 0, 0]],
        [[CLS, 5, 6, SEP]],
        [[1, 1, 1, 1]],
    ]
    assert [array.dtype for array in item.arrays] == [np.int64, np.int32, np.int64, np.int64]
    assert all(array.flags.c_contiguous for array in item.arrays)
    assert items.padding is not None
    assert items.padding.values == (0, 0, 7, 0)
    assert items.padding.axis == 1


def test_an_optional_input_nobody_knows_is_left_out(make):
    extra = TensorSpec("past", "FP32", (-1, 4, 8), optional=True)
    items = make(IDS, extra, MASK)
    (item,) = items.prepare(request("a")).items
    assert item.arrays[1] is None
    assert items.padding is not None
    assert items.padding.values == (0, None, 0)


def test_without_a_mask_nothing_may_be_padded(make):
    items = make(IDS)
    assert items.padding is None
    (item,) = items.prepare(request("a")).items
    assert item.length == 0
    assert items.token_count(item) == 3


def test_a_model_of_one_length_gets_rows_of_that_length(make):
    ids, mask = (TensorSpec(spec.name, "INT64", (-1, 6)) for spec in (IDS, MASK))
    items = make(ids, mask, pad_id=4)
    assert items.padding is None
    short, long = items.prepare(request("a", "a a a a a a a a a")).items
    assert short.arrays[0].tolist() == [[CLS, 10, SEP, 4, 4, 4]]
    assert short.arrays[1].tolist() == [[1, 1, 1, 0, 0, 0]]
    assert long.arrays[0].tolist() == [[CLS, 10, 10, 10, 10, SEP]]
    assert [items.token_count(item) for item in (short, long)] == [3, 6]
    assert items.prepare(request("a")).tokens == 3


def test_a_long_text_is_cut_and_keeps_its_special_tokens(make):
    assert rows(make(max_tokens=4), "the cat sat , a") == [[CLS, 5, 6, SEP]]


def test_the_models_positions_end_what_may_be_asked_for(make):
    assert len(rows(make(max_tokens=400, position_limit=5), "a " * 100)[0]) == 5


def test_a_text_that_must_not_be_cut_is_refused_by_number(make):
    items = make(max_tokens=4, truncate=False)
    assert rows(items, "the cat") == [[CLS, 5, 6, SEP]]
    with pytest.raises(InvalidRequest, match="text 1 has 5 tokens; max_tokens is 4") as raised:
        items.prepare(request("a", "the cat sat"))
    assert raised.value.details == {"input": "text", "index": 1, "limit": 4, "got": 5}
    assert raised.value.hint


def test_the_prefix_stands_before_every_text(make):
    assert rows(make(prefix="the cat "), "sat", "") == [[CLS, 5, 6, 7, SEP], [CLS, 5, 6, SEP]]


@pytest.mark.parametrize("raw", [b"\xff", b"a\xc3", b"\xed\xa0\x80"])
def test_bytes_that_are_not_utf8_are_named_by_number(make, raw):
    with pytest.raises(InvalidRequest, match="text 2 is not UTF-8") as raised:
        make().prepare(request("a", "b", raw))
    assert raised.value.details["index"] == 2


def test_no_text_at_all_is_refused(make):
    with pytest.raises(InvalidRequest, match="at least one"):
        make().prepare(request())


def test_more_texts_than_the_limit(make):
    items = make(max_texts=2)
    assert len(items.prepare(request("a", "a")).items) == 2
    with pytest.raises(PayloadTooLarge, match="3 texts; max_texts is 2"):
        items.prepare(request("a", "a", "a"))


def test_a_text_of_more_bytes_than_the_limit(make):
    items = make(max_text_bytes=4)
    assert rows(items, "ééab"[:2]) == [[CLS, UNK, SEP]]
    with pytest.raises(PayloadTooLarge, match="text 1 has 5 bytes; max_text_bytes is 4"):
        items.prepare(request("a", "aaaaa"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((MASK,), "no input_ids"),
        ((IDS, TensorSpec("pixel_values", "FP32", (-1, 3, 4, 4))), "pixel_values"),
        ((TensorSpec("input_ids", "BYTES", (-1, -1)),), "BYTES"),
        ((TensorSpec("input_ids", "INT64", (-1,)),), r"\[-1\]"),
        ((TensorSpec("input_ids", "INT64", (-1, 8)),), "attention_mask"),
        ((TensorSpec("input_ids", "INT64", (-1, 8)), MASK), r"\[8, -1\]"),
    ],
)
def test_a_model_that_takes_no_text_is_refused(make, inputs, message):
    with pytest.raises(ModelLoadError, match=message) as raised:
        make(*inputs)
    assert raised.value.hint


@given(st.lists(st.text(max_size=60), min_size=1, max_size=6))
def test_texts_of_one_request_do_not_see_each_other(make, texts):
    items = make(IDS, MASK, TYPES, max_tokens=16)
    together = items.prepare(request(*texts))
    alone = [items.prepare(request(text)).items[0] for text in texts]
    assert len(together.items) == len(texts)
    for one, other in zip(together.items, alone, strict=True):
        for left, right in zip(one.arrays, other.arrays, strict=True):
            np.testing.assert_array_equal(left, right)
        assert left.shape == (1, one.length)
        assert 2 <= one.length <= 16
    assert together.tokens == sum(item.length for item in together.items)
