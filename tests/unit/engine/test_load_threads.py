"""A load that does not end: it has failed, and what it brings later is thrown away."""

from __future__ import annotations

import asyncio
import threading

import pytest

from headrace.engine.load_threads import ABANDONED_MAX, LoadThreads
from headrace.errors import ModelLoadError
from headrace.runtimes.ending import on_end


async def test_a_late_load_fails_is_asked_to_end_and_is_discarded() -> None:
    asked, discarded = threading.Event(), threading.Event()

    def load() -> str:
        on_end(asked.set)
        asked.wait()
        return "model"

    def discard(model: str) -> None:
        assert model == "model"
        discarded.set()

    with pytest.raises(ModelLoadError, match="load_timeout_s") as caught:
        await LoadThreads(0.01).run("words", load, discard)
    assert caught.value.code == "load_timeout"
    assert await asyncio.to_thread(discarded.wait, 60)


async def test_the_number_of_loads_that_do_not_end_is_bounded() -> None:
    threads, over = LoadThreads(0.01), threading.Event()
    try:
        for _ in range(ABANDONED_MAX):
            with pytest.raises(ModelLoadError, match="did not load within"):
                await threads.run("words", over.wait, lambda _: None)
        with pytest.raises(ModelLoadError, match="have not ended") as caught:
            await threads.run("words", over.wait, lambda _: None)
        assert caught.value.code == "loads_hang"
    finally:
        over.set()


async def test_what_a_load_gives_or_raises_is_passed_on() -> None:
    threads = LoadThreads(60)
    assert await threads.run("words", lambda: 7, lambda _: None) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.run("words", lambda: 1 // 0, lambda _: None)
