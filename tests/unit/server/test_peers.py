"""Snapshots over real Unix sockets and files."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.server.peers import (
    KeptSnapshot,
    collect,
    read_snapshot,
    serve_snapshot,
    write_snapshot,
)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative, because a path of pytest's own may be too long for a Unix socket."""
    monkeypatch.chdir(tmp_path)
    return Path()


def telling(word: bytes) -> Callable[[], Awaitable[bytes]]:
    async def tell() -> bytes:
        return word

    return tell


async def ask(paths: Sequence[Path], timeout_s: float = 10) -> list[bytes]:
    """``collect``; who is dead is told by the first letter."""
    return await collect(paths, timeout_s, of_the_dead=lambda word: b"+" + word)


def paths_of(run_dir: Path, count: int) -> list[Path]:
    return [run_dir / f"worker-{index}.sock" for index in range(count)]


async def test_every_worker_is_asked_and_answers_in_order(run_dir: Path) -> None:
    paths = paths_of(run_dir, 3)
    words = [b"zero", b"", b"two" * 1_000_000]
    servers = [
        await serve_snapshot(path, telling(word)) for path, word in zip(paths, words, strict=True)
    ]
    assert await ask(paths) == words
    for server in servers:
        server.close()


async def test_the_answer_is_of_the_moment(run_dir: Path) -> None:
    (path,) = paths_of(run_dir, 1)
    counter = iter(range(10))

    async def tell() -> bytes:
        return str(next(counter)).encode()

    async with await serve_snapshot(path, tell):
        assert await ask([path]) == [b"0"]
        assert await ask([path]) == [b"1"]


async def test_of_a_dead_workers_last_word_what_still_counts_is_kept(run_dir: Path) -> None:
    paths = paths_of(run_dir, 3)
    write_snapshot(paths[1].with_suffix(".snapshot"), b"last word")
    async with await serve_snapshot(paths[0], telling(b"alive")):
        assert await ask(paths) == [b"alive", b"+last word"]


async def test_a_socket_that_a_predecessor_left_is_replaced(run_dir: Path) -> None:
    (path,) = paths_of(run_dir, 1)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert await ask([path]) == []
    async with await serve_snapshot(path, telling(b"new")):
        assert await ask([path]) == [b"new"]


async def test_a_worker_that_hangs_is_answered_for_by_its_file(run_dir: Path) -> None:
    (path,) = paths_of(run_dir, 1)
    write_snapshot(path.with_suffix(".snapshot"), b"file")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        assert await ask([path], 0.01) == [b"+file"]


@pytest.mark.parametrize("answer", [b"", b"\x00\x00", b"\x00\x00\x00\x05four", b"\xff" * 8])
async def test_a_broken_answer_counts_as_none(run_dir: Path, answer: bytes) -> None:
    (path,) = paths_of(run_dir, 1)

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(handle, path):
        assert await ask([path]) == []


@given(words=st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_a_snapshot_file_holds_the_latest_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, words: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("run") / "worker-0.snapshot"
    assert read_snapshot(path) is None
    for word in words:
        write_snapshot(path, word)
        assert read_snapshot(path) == word
    assert list(path.parent.iterdir()) == [path]


async def test_the_keeper_writes_what_changed_and_the_last_word_when_cancelled(
    run_dir: Path,
) -> None:
    path = run_dir / "worker-0.snapshot"
    count = 0
    second_round = asyncio.Event()

    def provider() -> bytes:
        nonlocal count
        count += 1
        if count == 2:
            second_round.set()
        return str(count).encode()

    keeper = asyncio.create_task(KeptSnapshot(path, provider).keep(period_s=0.001))
    await second_round.wait()
    keeper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeper
    assert read_snapshot(path) == str(count).encode()


async def test_the_keeper_leaves_an_unchanged_file_alone(run_dir: Path) -> None:
    path = run_dir / "worker-0.snapshot"
    rounds = asyncio.Queue[None]()

    def provider() -> bytes:
        rounds.put_nowait(None)
        return b"same"

    keeper = asyncio.create_task(KeptSnapshot(path, provider).keep(period_s=0.001))
    await rounds.get()
    await rounds.get()
    first = path.stat().st_ino
    await rounds.get()
    await rounds.get()
    assert path.stat().st_ino == first
    keeper.cancel()
    await asyncio.wait([keeper])


async def test_what_is_told_is_in_the_file_before_it_is_told(run_dir: Path) -> None:
    """Whoever is killed right after an answer takes nothing with it that somebody saw."""
    (path,) = paths_of(run_dir, 1)
    counter = iter(range(100))
    kept = KeptSnapshot(path.with_suffix(".snapshot"), lambda: str(next(counter)).encode())
    async with await serve_snapshot(path, kept.take):
        for _ in range(3):
            (told,) = await ask([path])
            assert read_snapshot(path.with_suffix(".snapshot")) == told


async def test_many_who_ask_at_once_leave_the_latest(run_dir: Path) -> None:
    path = run_dir / "worker-0.snapshot"
    counter = iter(range(100))
    kept = KeptSnapshot(path, lambda: b"%02d" % next(counter))
    told = await asyncio.gather(*(kept.take() for _ in range(20)))
    assert sorted(told) == told
    assert read_snapshot(path) == told[-1]


async def test_who_stops_asking_does_not_disturb_the_file(run_dir: Path) -> None:
    path = run_dir / "worker-0.snapshot"
    counter = iter(range(100))
    kept = KeptSnapshot(path, lambda: b"%02d" % next(counter))
    for _ in range(10):
        asking = asyncio.ensure_future(kept.take())
        await asyncio.sleep(0)
        asking.cancel()
    last = await kept.take()
    assert read_snapshot(path) == last
