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
