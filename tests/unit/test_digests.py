"""A digest is remembered for as long as the file looks the same, and no longer."""

from __future__ import annotations

import hashlib
import os

import pytest

from headrace import digests
from headrace.digests import DigestMemory

LONG_AGO_NS = 1_000_000_000 * 10**9


@pytest.fixture
def hashed(monkeypatch):
    """How often a file was read through."""
    calls = []
    original = digests.sha256_of

    def counting(path):
        calls.append(path)
        return original(path)

    monkeypatch.setattr(digests, "sha256_of", counting)
    return calls


def write(path, content, mtime_ns=LONG_AGO_NS):
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return hashlib.sha256(content).hexdigest()


def test_a_file_that_looks_the_same_is_read_once(tmp_path, hashed):
    expected = write(tmp_path / "weights", b"one")
    for _ in range(3):  # a new memory each time, as after a restart
        assert DigestMemory(tmp_path / "notes").sha256(tmp_path / "weights") == expected
    assert len(hashed) == 1


@pytest.mark.parametrize(
    ("content", "mtime_ns"), [(b"longer", LONG_AGO_NS), (b"two", LONG_AGO_NS + 1)]
)
def test_another_size_or_time_is_read_again(tmp_path, content, mtime_ns):
    memory = DigestMemory(tmp_path / "notes")
    write(tmp_path / "weights", b"one")
    memory.sha256(tmp_path / "weights")
    expected = write(tmp_path / "weights", content, mtime_ns)
    assert memory.sha256(tmp_path / "weights") == expected


def test_a_file_changed_a_moment_ago_is_not_trusted(tmp_path, hashed):
    memory = DigestMemory(tmp_path / "notes")
    (tmp_path / "weights").write_bytes(b"one")
    memory.sha256(tmp_path / "weights")
    memory.sha256(tmp_path / "weights")
    assert len(hashed) == 2


def test_a_link_is_the_file_it_points_to(tmp_path, hashed):
    expected = write(tmp_path / "blob", b"one")
    (tmp_path / "weights").symlink_to(tmp_path / "blob")
    memory = DigestMemory(tmp_path / "notes")
    assert memory.sha256(tmp_path / "weights") == memory.sha256(tmp_path / "blob") == expected
    assert len(hashed) == 1


@pytest.mark.parametrize("content", [b"", b"{", b'{"path": 1}'])
def test_a_broken_note_only_costs_time(tmp_path, content):
    expected = write(tmp_path / "weights", b"one")
    memory = DigestMemory(tmp_path / "notes")
    memory.sha256(tmp_path / "weights")
    (note,) = (tmp_path / "notes").iterdir()
    note.write_bytes(content)
    assert memory.sha256(tmp_path / "weights") == expected


def test_notes_that_cannot_be_written_only_cost_time(tmp_path):
    expected = write(tmp_path / "weights", b"one")
    (tmp_path / "notes").write_text("a file")
    assert DigestMemory(tmp_path / "notes").sha256(tmp_path / "weights") == expected


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        DigestMemory(tmp_path).sha256(tmp_path / "weights")


def test_a_note_that_is_no_text_is_made_again(tmp_path):
    (tmp_path / "weights").write_bytes(b"model")
    os.utime(tmp_path / "weights", ns=(LONG_AGO_NS, LONG_AGO_NS))
    memory = DigestMemory(tmp_path / "notes")
    expected = memory.sha256(tmp_path / "weights")
    (note,) = (tmp_path / "notes").iterdir()
    note.write_bytes(note.read_bytes().replace(b'"path":"', b'"path":"\xff', 1))
    assert memory.sha256(tmp_path / "weights") == expected
