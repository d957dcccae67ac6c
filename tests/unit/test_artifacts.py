"""A cache that is bounded, and never takes away what somebody uses or builds."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.artifacts import MANIFEST, ArtifactCache, hold, private_folder
from headrace.errors import ConfigError

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


def alter_with_old_time(entry: Path) -> None:
    before = (entry / "model").stat()
    with (entry / "model").open("r+b") as file:
        file.write(b"y")
    os.utime(entry / "model", ns=(before.st_atime_ns, before.st_mtime_ns))


def plant_beside(entry: Path) -> None:
    (entry / "other.blob").write_bytes(b"y")


def replace_by_link(entry: Path) -> None:
    (entry / "model").rename(entry.parent / "elsewhere")
    (entry / "model").symlink_to(entry.parent / "elsewhere")


@pytest.mark.parametrize("change", [alter_with_old_time, plant_beside, replace_by_link])
def test_an_altered_entry_is_not_found_and_is_built_again(tmp_path, change):
    cache = ArtifactCache(tmp_path)
    entry = cache.entry("a", fill())
    change(entry)
    assert cache.find("a") is None
    assert (cache.entry("a", fill()) / "model").read_bytes() == b"x" * KB
    assert sorted(file.name for file in entry.iterdir()) == [MANIFEST, "model"]


def test_a_copied_entry_is_known_by_its_content(tmp_path):
    ArtifactCache(tmp_path / "one").entry("a", fill())
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    assert ArtifactCache(tmp_path / "other").find("a") is not None


@pytest.mark.parametrize("mode", [None, 0o755, 0o777])
def test_the_cache_folder_is_for_this_user_alone(tmp_path, mode):
    folder = tmp_path / "deep" / "cache"
    if mode is not None:
        folder.mkdir(parents=True)
        folder.chmod(mode)
    private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("owner", "mode", "accepted"),
    [(0, 0o755, True), (0, 0o777, False), (0, 0o770, False), (12345, 0o700, False)],
)
def test_a_cache_folder_of_another_user_is_refused(tmp_path, monkeypatch, owner, mode, accepted):
    tmp_path.chmod(mode)
    real = os.stat
    told = real(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(
        Path, "stat", lambda self, **_: os.stat_result((*told[:4], owner, *told[5:]))
    )
    with contextlib.nullcontext() if accepted else pytest.raises(ConfigError, match="cache folder"):
        private_folder(tmp_path)


def test_what_another_user_left_in_a_folder_that_all_could_write_is_refused(tmp_path, monkeypatch):
    (tmp_path / "planted").touch()
    tmp_path.chmod(0o777)
    real = Path.lstat

    def theirs(self: Path) -> os.stat_result:
        return os.stat_result((*real(self)[:4], 12345, *real(self)[5:]))

    monkeypatch.setattr(Path, "lstat", theirs)
    with pytest.raises(ConfigError, match="planted"):
        private_folder(tmp_path)
