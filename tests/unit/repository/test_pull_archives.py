"""Archives that strangers made."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import PullError
from headrace.repository import archives
from headrace.repository.archives import Archive, open_archive, read_text, safe_name, unpack

Content = Mapping[str, bytes]


def zip_bytes(content: Content, *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return buffer.getvalue()


def tar_bytes(content: Content, *, compress: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compress else "w") as file:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_member(**attributes: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        info = tarfile.TarInfo("odd")
        for name, value in attributes.items():
            setattr(info, name, value)
        file.addfile(info)
    return buffer.getvalue()


MAKERS: dict[str, Callable[[Content], bytes]] = {
    "a.whl": zip_bytes,
    "a.zip": zip_bytes,
    "a.tgz": tar_bytes,
    "a.tar.gz": tar_bytes,
    "a.tar": lambda content: tar_bytes(content, compress=False),
}
each_kind = pytest.mark.parametrize("name", MAKERS)


def opened(folder: Path, name: str, content: bytes) -> Archive:
    path = folder / "stored"
    path.write_bytes(content)
    archive = open_archive(path, name)
    assert archive is not None
    return archive


def unpack_all(folder: Path, name: str, content: bytes) -> dict[str, tuple[int, str]]:
    archive = opened(folder, name, content)
    try:
        return unpack(archive, {member: member for member in archive.members}, folder / "out")
    finally:
        archive.close()


@each_kind
def test_files_come_out_as_they_went_in(tmp_path: Path, name: str) -> None:
    content = {"p/model.onnx": b"weights" * 1000, "p/deep/er/config.json": b"{}", "empty": b""}
    archive = opened(tmp_path, name, MAKERS[name](content))
    assert archive.members == {member: len(data) for member, data in content.items()}
    assert read_text(archive, "p/deep/er/config.json") == "{}"
    out = tmp_path / "out"
    written = unpack(archive, {"p/deep/er/config.json": "c.json", "p/model.onnx": "m/m.onnx"}, out)
    archive.close()
    assert (out / "m" / "m.onnx").read_bytes() == content["p/model.onnx"]
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.*")} == set(written)
    size, digest = written["c.json"]
    assert (size, digest[:8]) == (2, "44136fa3")


def test_what_is_no_archive_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert open_archive(tmp_path / "model.onnx", "model.onnx") is None


UNSAFE = [
    "/etc/passwd", "../up", "a/../../up", "a/./b", "a//b", "..", "a\\..\\b", "C:\\x", "C:x",
    "new\nline", "bell\x07", "x" * 2000, "a/" + "y" * 300, "~/\u202egpj.exe",
]  # fmt: skip


@pytest.mark.parametrize("member", UNSAFE)
@each_kind
def test_unsafe_names_refuse_the_whole_archive(tmp_path: Path, name: str, member: str) -> None:
    content = MAKERS[name]({"model.onnx": b"fine", member: b"x"})
    with pytest.raises(PullError, match="unsafe name"):
        opened(tmp_path, name, content)


def test_a_zero_byte_does_not_shorten_a_name(tmp_path: Path) -> None:
    content = zip_bytes({"model.onnxZ.txt": b"x"}).replace(b"model.onnxZ", b"model.onnx\0")
    with pytest.raises(PullError, match="unsafe name"):
        opened(tmp_path, "a.zip", content)


@given(st.text(max_size=40))
def test_a_safe_name_stays_where_it_is_put(name: str) -> None:
    try:
        safe = safe_name(name)
    except PullError:
        return
    path = Path("/folder/of/all") / safe
    assert path.is_relative_to("/folder/of/all")
    assert ".." not in path.parts
    assert path != Path("/folder/of/all")


@each_kind
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice_is_refused(tmp_path: Path, name: str) -> None:
    class Twice(dict[str, bytes]):
        def items(self) -> list[tuple[str, bytes]]:  # type: ignore[override]
            return [("model.onnx", b"good"), ("model.onnx", b"evil")]

    with pytest.raises(PullError, match="two members called"):
        opened(tmp_path, name, MAKERS[name](Twice()))


@each_kind
@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        (("Model.onnx", "model.onnx"), "would be one file"),
        (("caf\u00e9", "cafe\u0301"), "would be one file"),
        (("a", "a/b"), "is a file and the folder of"),
    ],
)
def test_names_that_collide_on_some_disk(
    tmp_path: Path, name: str, members: tuple[str, str], complaint: str
) -> None:
    archive = opened(tmp_path, name, MAKERS[name](dict.fromkeys(members, b"x")))
    with pytest.raises(PullError, match=complaint):
        unpack(archive, {member: member for member in members}, tmp_path / "out")
    archive.close()


@pytest.mark.parametrize(
    ("attributes", "what"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "../x"}, "a link"),
        ({"type": tarfile.FIFOTYPE}, "not a regular file"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "not a regular file"),
    ],
)
def test_links_and_devices_in_tarballs_are_odd(
    tmp_path: Path, attributes: dict[str, object], what: str
) -> None:
    archive = opened(tmp_path, "a.tgz", tar_member(**attributes))
    assert (archive.members, archive.odd) == ({}, {"odd": what})
    archive.close()


def test_links_in_zips_are_odd(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    archive = opened(tmp_path, "a.zip", buffer.getvalue())
    assert (archive.members, archive.odd) == ({}, {"link": "a symbolic link"})
    archive.close()


@pytest.mark.parametrize("name", ["a.whl", "a.zip", "a.tgz", "a.tar.gz"])
def test_bombs_are_refused_before_they_unpack(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "RATIO_FLOOR_BYTES", 1_000_000)
    monkeypatch.setattr(archives, "MAX_READ_BYTES", 100_000)
    content = MAKERS[name]({"zeros.bin": bytes(20_000_000), "after.txt": b"x"})
    assert len(content) * archives.MAX_RATIO < 20_000_000
    with pytest.raises(PullError, match=r"claims to hold|unpacks to more") as caught:
        unpack_all(tmp_path, name, content)
    assert "bomb" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_the_number_of_members_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    with pytest.raises(PullError, match="more than 10 members"):
        opened(tmp_path, "a.zip", zip_bytes({str(number): b"" for number in range(11)}))


@pytest.mark.parametrize("size", [-1, -512, -(2**40)])
def test_negative_sizes_do_not_send_it_in_circles(tmp_path: Path, size: int) -> None:
    header = bytearray(gzip.decompress(tar_member()))
    # A base-256 number: https://www.gnu.org/software/tar/manual/html_node/Extensions.html
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    for kind in (b"0", b"x", b"g", b"L"):
        header[156:157] = kind
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
        with pytest.raises(PullError, match="broken"):
            opened(tmp_path, "a.tgz", gzip.compress(bytes(header)))


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    header = bytearray(gzip.decompress(tar_member(type=tarfile.XHDTYPE)))
    header[124:136] = b"%011o\0" % (2**32)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    with pytest.raises(PullError, match="header of 4,29"):
        opened(tmp_path, "a.tgz", gzip.compress(bytes(header)))


def test_encrypted_members_are_odd(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"secret": b"x"}))
    central = content.index(b"PK\x01\x02")
    content[central + 8] |= 1
    archive = opened(tmp_path, "a.zip", bytes(content))
    assert archive.odd == {"secret": "encrypted"}
    archive.close()


@each_kind
@pytest.mark.parametrize("damage", [0.3, 0.6, 0.9])
def test_truncated_archives_are_broken(tmp_path: Path, name: str, damage: float) -> None:
    content = MAKERS[name]({f"{i}.bin": bytes(range(256)) * 40 for i in range(20)})
    with pytest.raises(PullError, match="broken"):
        unpack_all(tmp_path, name, content[: int(len(content) * damage)])


def test_another_kind_than_the_name_says(tmp_path: Path) -> None:
    for name, content in {"a.whl": tar_bytes({"a": b"x"}), "a.tgz": zip_bytes({"a": b"x"})}.items():
        with pytest.raises(PullError, match="not the kind of archive its name says"):
            opened(tmp_path, name, content)


ORIGINALS = {
    "a.zip": zip_bytes({"a/model.onnx": bytes(range(256)), "a/b.txt": b"text" * 50}),
    "a.tar": tar_bytes({"a/model.onnx": bytes(range(256)), "x" * 150: b"long"}, compress=False),
}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(sorted(ORIGINALS)),
    changes=st.lists(
        st.tuples(st.integers(0, 12_000), st.binary(min_size=1, max_size=8)), max_size=5
    ),
    cut=st.integers(0, 12_000) | st.none(),
)
def test_mutated_archives_unpack_or_are_refused(
    tmp_path: Path, name: str, changes: list[tuple[int, bytes]], cut: int | None
) -> None:
    content = bytearray(ORIGINALS[name])
    for at, data in changes:
        content[at % len(content) : at % len(content) + len(data)] = data
    out = tmp_path / "out"
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    try:
        unpack_all(tmp_path, name, bytes(content[:cut]))
    except PullError:
        pass
    assert {path.name for path in tmp_path.iterdir()} <= {"stored", "out"}
