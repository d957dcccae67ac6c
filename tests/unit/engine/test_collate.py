"""Nobody's rows in anybody else's answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.collate import collate, split
from headrace.errors import InferenceFailed
from headrace.runtimes.base import ShapePolicy
from headrace.tasks.base import Item, Padding

POLICIES = st.builds(ShapePolicy, row_multiple=st.integers(1, 5), length_multiple=st.integers(1, 9))


def rows_item(number: int, rows: int) -> Item:
    return Item((np.full((rows, 3), number, np.float32), None), rows)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), POLICIES)
def test_rows_come_back_to_their_owner(sizes, policy):
    items = [rows_item(number, rows) for number, rows in enumerate(sizes)]
    (batch, nothing), real = collate(items, None, policy)

    assert nothing is None
    assert real == sum(sizes)
    for number, piece in enumerate(split([batch, batch * 2], sizes, real)):
        assert [part.shape for part in piece] == [(sizes[number], 3)] * 2
        assert (piece[0] == number).all()
        assert (piece[1] == 2 * number).all()


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), POLICIES)
def test_padding_is_only_where_nothing_else_is(lengths, policy):
    items = [
        Item(
            (np.full((1, n), number + 1, np.int64), np.ones((1, n), np.int64), np.array([[n]])),
            1,
            n,
        )
        for number, n in enumerate(lengths)
    ]
    padding = Padding(values=(-7, 0, None))
    (ids, mask, fixed), real = collate(items, padding, policy)

    assert real == len(lengths)
    assert ids.shape == mask.shape
    assert ids.shape[1] % policy.length_multiple == 0
    assert ids.shape[1] >= max(lengths)
    assert ids.shape[0] == real or ids.shape[0] % policy.row_multiple == 0
    for number, n in enumerate(lengths):
        assert (ids[number, :n] == number + 1).all()
        assert (ids[number, n:] == -7).all()
        assert mask[number].sum() == n
        assert fixed[number] == n


def test_a_lone_request_is_handed_over_as_it_is():
    item = rows_item(1, 4)
    (array, _), real = collate([item], None, ShapePolicy(row_multiple=8))

    assert array is item.arrays[0]
    assert real == 4


@pytest.mark.parametrize("shape", [(), (1,), (2, 5)])
def test_too_few_rows_cannot_be_shared_out(shape):
    with pytest.raises(InferenceFailed, match="3 rows"):
        split([np.zeros(shape)], [1, 1, 1], 3)
