"""The strategies that the server is held against put every text into exactly one batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import batching
from benchmarks.bare_encoder import STRATEGIES
from benchmarks.batching import padded_tokens, token_budget

lengths = st.lists(st.integers(4, 128), min_size=1, max_size=300)


@pytest.mark.parametrize("name", STRATEGIES)
@given(lengths)
def test_every_text_is_in_exactly_one_batch(name: str, lengths: list[int]) -> None:
    batches = STRATEGIES[name](lengths)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    assert all(batches)


@given(lengths, st.integers(1, 300))
def test_a_token_budget_is_kept_by_every_batch(lengths: list[int], window: int) -> None:
    for batch in token_budget(lengths, window, budget=128):
        assert len(batch) * max(lengths[position] for position in batch) <= 128


@given(lengths, st.integers(1, 64))
def test_a_window_is_never_looked_beyond(lengths: list[int], window: int) -> None:
    for batch in token_budget(lengths, window):
        assert len({position // window for position in batch}) == 1


def test_padding_counts_every_row_as_long_as_the_longest() -> None:
    assert padded_tokens([4, 10, 7], [[0, 1], [2]]) == 27
    assert padded_tokens([4, 10, 7], batching.alone([4, 10, 7])) == 21
