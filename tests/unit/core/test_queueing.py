"""The queue against the simplest thing that could be one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.events import QueuedRequest
from headrace.core.queueing import ModelQueue

steps = st.lists(
    st.one_of(
        st.just(("append",)),
        st.just(("pop",)),
        st.tuples(st.just("remove"), st.lists(st.integers(0, 50), max_size=40)),
        st.tuples(st.just("window"), st.integers(1, 20)),
    ),
    max_size=400,
)


@given(steps)
def test_behaves_like_a_list(operations):
    queue, model, number = ModelQueue(), [], 0
    for name, *arguments in operations:
        if name == "append":
            request = QueuedRequest(number, 1, 1, 0, 0, number)
            number += 1
            queue.append(request)
            model.append(request)
        elif name == "pop" and model:
            assert queue.pop() is model.pop(0)
        elif name == "remove":
            doomed = {model[i].request_id for i in arguments[0] if i < len(model)}
            queue.remove(doomed)
            model = [request for request in model if request.request_id not in doomed]
        elif name == "window":
            assert queue.window(arguments[0]) == model[: arguments[0]]
        assert len(queue) == len(model)
        assert list(queue) == model
        assert queue.head() == (model[0] if model else None)


def test_popping_nothing_is_an_error():
    with pytest.raises(IndexError):
        ModelQueue().pop()


def test_tombstones_do_not_pile_up():
    queue = ModelQueue()
    for number in range(10_000):
        queue.append(QueuedRequest(number, 1, 1, 0, 0, number))
    queue.remove(range(1, 10_000))

    assert [request.request_id for request in queue] == [0]
    assert len(queue._entries) < 200


def test_who_is_due_first_is_first_and_equals_keep_their_order() -> None:
    queue = ModelQueue()
    for number, due_ns in enumerate([50, 20, 90, 20, 10, 90, 60]):
        queue.append(QueuedRequest(number, 1, 1, 0, 0, number, due_ns=due_ns))

    assert [request.request_id for request in queue] == [4, 1, 3, 0, 6, 2, 5]
    assert queue.ahead_of(QueuedRequest(9, 1, 1, 0, 0, 9, due_ns=20)) == 3
    assert queue.ahead_of(QueuedRequest(9, 1, 1, 0, 0, 9, due_ns=90)) == 7
    tail = queue.tail()
    assert tail is not None
    assert tail.request_id == 5
    queue.remove([5, 4])
    tail = queue.tail()
    assert tail is not None
    assert (queue.pop().request_id, tail.request_id) == (1, 2)
    assert queue.oldest_arrival_ns() == 0
