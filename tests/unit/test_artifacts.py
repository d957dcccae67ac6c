"""A cache that is bounded, and never takes away what somebody uses or builds."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.artifacts import MANIFEST, ArtifactCache, hold

KB = 1000


def fill(content: bytes = b"x" * KB):
    def build(folder: Path) -> None:
        (folder / "model").write_bytes(content)

    return build


def put(cache: ArtifactCache, key: str, used_s: int) -> Path:
    """An entry of a bit more than a kilobyte, last used then."""
    entry = cache.entry(key, fill())
    os.utime(entry / MANIFEST, (used_s, used_s))
    return entry


def never(folder: Path) -> None:
    pytest.fail("it is there already")


def kept(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.is_dir())


def test_what_was_used_least_recently_goes(tmp_path):
    unbounded = ArtifactCache(tmp_path)
    for number, key in enumerate("abcd"):
        put(unbounded, key, 1000 + number)
    assert unbounded.find("a") is not None  # used just now
    ArtifactCache(tmp_path, max_bytes=4 * KB).entry("e", fill())
    assert kept(tmp_path) == ["a", "d", "e"]


def test_the_newest_stays_even_if_it_alone_is_too_large(tmp_path):
    entry = ArtifactCache(tmp_path, max_bytes=1).entry("a", fill())
    assert (entry / "model").exists()


def test_what_is_in_use_stays_until_it_is_let_go(tmp_path):
    cache = ArtifactCache(tmp_path, max_bytes=1)
    held = hold(put(cache, "a", 1000))
    cache.entry("b", fill())
    assert kept(tmp_path) == ["a", "b"]
    held.close()
    cache.entry("c", fill())
    assert kept(tmp_path) == ["c"]


def test_what_another_process_uses_stays(tmp_path):
    cache = ArtifactCache(tmp_path, max_bytes=1)
    entry = put(cache, "a", 1000)
    script = (
        "import sys, pathlib; from headrace.artifacts import hold\n"
        "held = hold(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(entry)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "held\n"
        cache.entry("b", fill())
        assert kept(tmp_path) == ["a", "b"]
        user.kill()
    cache.entry("c", fill())
    assert kept(tmp_path) == ["c"]


def test_what_is_being_built_again_stays(tmp_path):
    cache = ArtifactCache(tmp_path, max_bytes=1)
    entry = put(cache, "a", 1000)
    (entry / "model").write_bytes(b"broken")

    def build(folder: Path) -> None:
        fill()(folder)
        cache.entry("b", fill())  # makes room while "a" is built

    assert cache.entry("a", build) == entry
    assert (entry / "model").read_bytes() == b"x" * KB


def test_an_entry_can_be_used_where_nothing_can_be_written(tmp_path, monkeypatch):
    cache = ArtifactCache(tmp_path)
    entry = cache.entry("a", fill())

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, "utime", read_only)
    assert cache.find("a") == entry
    assert cache.entry("a", never) == entry


def test_what_is_discarded_is_built_again(tmp_path):
    cache = ArtifactCache(tmp_path)
    cache.entry("a", fill())
    cache.discard("a")
    assert cache.find("a") is None
    assert kept(tmp_path) == []
    cache.discard("never there")
    assert (cache.entry("a", fill(b"new")) / "model").read_bytes() == b"new"
