"""Whether a new version is worse than the one before it."""

from __future__ import annotations

import random

import pytest

from headrace.core.rollout import Record, Terms, breach, comparable, wilson_lower

TERMS = Terms(window_ns=60 * 10**9)


def record(answered: int, failed: int = 0, ms: float = 10.0) -> Record:
    return Record(answered, failed, [int(ms * 1e6)] * min(answered, 500))


def test_one_that_is_as_good_stays():
    assert breach(TERMS, record(1000), record(1000)) == ""


def test_one_that_fails_too_often_goes():
    assert "100 of its first 200 requests failed" in breach(TERMS, record(1000), record(100, 100))


def test_a_single_failure_says_nothing():
    assert breach(TERMS, record(1000), record(59, 1)) == ""


def test_nothing_is_decided_before_enough_requests():
    assert breach(TERMS, record(1000), record(0, 49)) == ""
    assert breach(TERMS, record(1000), record(0, 50)) != ""


def test_failures_that_its_predecessor_had_too_are_allowed():
    assert breach(TERMS, record(500, 500), record(100, 100)) == ""


def test_one_that_is_slower_goes():
    assert "took longer than 20 ms" in breach(TERMS, record(1000, ms=10), record(200, ms=25))


def test_one_that_is_a_little_slower_stays():
    assert breach(TERMS, record(1000, ms=10), record(200, ms=19)) == ""


def test_a_predecessor_that_nobody_asked_is_no_measure():
    assert not comparable(TERMS, record(49))
    assert comparable(TERMS, record(40, 10))


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (0, 10), (1, 1), (5, 10), (10, 10)])
def test_wilson_is_below_the_share_and_not_negative(hits, total):
    assert 0 <= wilson_lower(hits, total) <= (hits / total if total else 0)


def test_good_versions_are_seldom_thrown_out():
    """Two thousand swaps to a version that is the same, looked at five times each."""
    rng = random.Random(5)
    thrown_out = 0
    for _ in range(2000):
        before = Record(2000, 20, [int(rng.expovariate(1e-7)) for _ in range(500)])
        after = Record()
        for _ in range(5):
            failed = sum(rng.random() < 0.01 for _ in range(60))
            after.failed += failed
            after.answered += 60 - failed
            after.latencies_ns += [int(rng.expovariate(1e-7)) for _ in range(60)]
            if breach(TERMS, before, after):
                thrown_out += 1
                break
    assert thrown_out <= 10  # one in two hundred
