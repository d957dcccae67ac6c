"""Which requests a batch is made of, above all where lengths differ."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.batching import take_batch
from headrace.core.events import BatchLimits, QueuedRequest
from headrace.core.queueing import ModelQueue

LIMITS = BatchLimits(max_rows=64, max_padded_tokens=512, batch_overhead_tokens=16)


def queue_of(lengths, shapes=None):
    queue = ModelQueue()
    for number, length in enumerate(lengths):
        shape = shapes[number] if shapes else 0
        queue.append(QueuedRequest(number, 1, 1, length, shape, number))
    return queue


def lengths_of(batch):
    return [request.length for request in batch]


def test_like_meets_like():
    queue = queue_of([10, 100, 11, 100, 12, 9])

    assert lengths_of(take_batch(queue, LIMITS)) == [9, 10, 11, 12]
    assert lengths_of(take_batch(queue, LIMITS)) == [100, 100]


def test_the_oldest_is_always_in_the_batch_however_odd():
    queue = queue_of([128, 8, 8, 8, 8])

    assert 128 in lengths_of(take_batch(queue, LIMITS))


def test_a_text_longer_than_the_budget_runs_alone():
    assert lengths_of(take_batch(queue_of([4000, 4000]), LIMITS)) == [4000]


def test_a_little_padding_is_cheaper_than_another_execution():
    assert lengths_of(take_batch(queue_of([8, 9, 10, 11]), LIMITS)) == [8, 9, 10, 11]


def test_much_padding_is_not():
    assert lengths_of(take_batch(queue_of([128, 8]), LIMITS)) == [128]


def test_without_overhead_no_padding_is_ever_worth_it():
    limits = BatchLimits(max_rows=64, max_padded_tokens=512, batch_overhead_tokens=0)

    assert lengths_of(take_batch(queue_of([8, 9, 8]), limits)) == [8, 8]


def test_rows_bound_a_batch_of_the_very_short():
    limits = BatchLimits(max_rows=4, max_padded_tokens=512, batch_overhead_tokens=16)

    assert len(take_batch(queue_of([2] * 10), limits)) == 4


many_lengths = st.lists(st.integers(1, 200), min_size=1, max_size=300)


@given(many_lengths, st.integers(0, 64), st.integers(1, 64), st.integers(1, 1024))
def test_every_batch_keeps_the_law(lengths, overhead, max_rows, max_tokens):
    limits = BatchLimits(
        max_rows=max_rows, max_padded_tokens=max_tokens, batch_overhead_tokens=overhead
    )
    shapes = [length % 3 for length in lengths]
    queue = queue_of(lengths, shapes)
    seen = []
    while queue:
        oldest = queue.head()
        before = len(queue)
        batch = take_batch(queue, limits)
        assert oldest in batch
        assert len(queue) == before - len(batch)
        assert len({request.shape_key for request in batch}) == 1
        padded = len(batch) * max(lengths_of(batch))
        assert len(batch) == 1 or (len(batch) <= max_rows and padded <= max_tokens)
        seen += [request.request_id for request in batch]
    assert sorted(seen) == list(range(len(lengths)))


@given(many_lengths, st.integers(0, 64))
def test_together_never_costs_more_than_each_alone(lengths, overhead):
    limits = BatchLimits(max_rows=64, max_padded_tokens=512, batch_overhead_tokens=overhead)

    def cost(batches):
        return sum(len(batch) * max(batch) + overhead for batch in batches)

    queue = queue_of(lengths)
    batches = []
    while queue:
        batches.append(lengths_of(take_batch(queue, limits)))

    assert cost(batches) <= cost([length] for length in lengths)
