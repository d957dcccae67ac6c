"""What is kept and what goes: bounded in bytes, exact in its books, not washed out by a scan."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.cache_store import CacheStore


class LeastRecentlyUsed:
    def __init__(self, max_bytes):
        self.max_bytes, self.size, self.entries = max_bytes, 0, OrderedDict()

    def asked(self, key) -> bool:
        if key in self.entries:
            self.entries.move_to_end(key)
            return True
        self.entries[key] = 1
        while len(self.entries) > self.max_bytes:
            self.entries.popitem(last=False)
        return False


def zipf(count, keys, seed, power=1.0):
    chance = random.Random(seed)
    weights = [1 / rank**power for rank in range(1, keys + 1)]
    return chance.choices(range(keys), weights, k=count)


def hit_rates(trace, room):
    store, other = CacheStore(room), LeastRecentlyUsed(room)
    hits = [0, 0]
    for key in trace:
        if store.get(key, 0) is not None:
            hits[0] += 1
        else:
            store.put(key, key, 1)
        hits[1] += other.asked(key)
    return hits[0] / len(trace), hits[1] / len(trace)


@pytest.mark.parametrize("power", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("room", [50, 500])
def test_on_skewed_traffic_it_is_no_worse_than_least_recently_used(power, room):
    ours, its = hit_rates(zipf(40_000, 5_000, seed=1, power=power), room)

    assert ours >= its


def test_a_scan_does_not_push_out_what_is_asked_for_often():
    trace = []
    fresh = 10_000
    for number, key in enumerate(zipf(20_000, 400, seed=2)):
        trace.append(key)
        if number % 2_000 < 500:  # somebody reads everything once
            fresh += 1
            trace.append(fresh)
    ours, its = hit_rates(trace, 200)

    assert ours > its + 0.02


def test_what_is_over_is_not_there():
    store = CacheStore(10)
    store.put("a", 1, 4, expires_ns=100)

    assert store.get("a", 99) == 1
    assert store.get("a", 100) is None
    assert (len(store), store.size_bytes) == (0, 0)


def test_a_group_is_forgotten():
    store = CacheStore(10)
    for key, group in (("a", 1), ("b", 2), ("c", 1)):
        store.put(key, key, 3, group=group)
    store.forget(1)

    assert [store.get(key, 0) for key in "abc"] == [None, "b", None]
    assert store.size_bytes == 3


def test_what_alone_is_too_large_is_not_kept_and_nothing_goes_for_it():
    store = CacheStore(10)
    store.put("a", 1, 10)

    assert not store.put("b", 2, 11)
    assert store.get("a", 0) == 1


@given(
    room=st.integers(0, 30),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["get", "put", "put", "forget"]),
            st.integers(0, 12),
            st.integers(1, 12),
            st.integers(0, 20),
        ),
        max_size=120,
    ),
)
def test_the_books_are_right_whatever_happens(room, steps):
    store, kept, now_ns = CacheStore(room), {}, 0
    for step, key, size, passed in steps:
        now_ns += passed
        if step == "put":
            if store.put(
                key, (key, now_ns), size, group=key % 3, expires_ns=now_ns + 30, now_ns=now_ns
            ):
                kept[key] = ((key, now_ns), size, now_ns + 30)
            else:
                kept.pop(key, None)
        elif step == "forget":
            store.forget(key % 3)
            kept = {k: v for k, v in kept.items() if k % 3 != key % 3}
        else:
            found = store.get(key, now_ns)
            if found is not None:
                value, _, expires_ns = kept[key]
                assert found == value, "the newest, and of this key"
                assert now_ns < expires_ns
        assert store.size_bytes <= room
        there = store._entries
        assert store.size_bytes == sum(kept[k][1] for k in there)
        assert store._small_bytes == sum(e.size_bytes for e in there.values() if not e.main)
        live = [e for queue in (store._small, store._main) for e in queue if e.live]
        assert sorted(id(e) for e in live) == sorted(id(e) for e in there.values())
