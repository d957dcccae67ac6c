"""How somebody who calls a runtime without a server may put texts together. Pure.

Each strategy turns lengths (tokens, in order of arrival) into batches of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Batches = list[list[int]]
Strategy = Callable[[Sequence[int]], Batches]

NAIVE_ROWS = 32
TOKEN_BUDGET = 512


def alone(lengths: Sequence[int]) -> Batches:
    """One text at a time, no padding."""
    return [[position] for position in range(len(lengths))]


def naive(lengths: Sequence[int]) -> Batches:
    """The next 32, padded to the longest: what row-counting batchers do."""
    positions = range(len(lengths))
    return [list(positions[start : start + NAIVE_ROWS]) for start in positions[::NAIVE_ROWS]]


def sorted_rows(lengths: Sequence[int], window: int) -> Batches:
    """Windows of arrivals sorted by length, cut into batches of 32."""
    return [
        ordered[start : start + NAIVE_ROWS]
        for ordered in _sorted_windows(lengths, window)
        for start in range(0, len(ordered), NAIVE_ROWS)
    ]


def token_budget(lengths: Sequence[int], window: int, budget: int = TOKEN_BUDGET) -> Batches:
    """Windows sorted by length, cut where rows x longest would exceed the budget."""
    batches: Batches = []
    for ordered in _sorted_windows(lengths, window):
        batch: list[int] = []
        for position in ordered:
            if batch and (len(batch) + 1) * lengths[position] > budget:
                batches.append(batch)
                batch = []
            batch.append(position)
        batches.append(batch)
    return batches


def padded_tokens(lengths: Sequence[int], batches: Batches) -> int:
    """Rows x longest over all batches: what is computed."""
    return sum(len(batch) * max(lengths[position] for position in batch) for batch in batches)


def _sorted_windows(lengths: Sequence[int], window: int) -> Batches:
    positions = range(len(lengths))
    return [
        sorted(positions[start : start + window], key=lambda position: lengths[position])
        for start in positions[::window]
    ]
