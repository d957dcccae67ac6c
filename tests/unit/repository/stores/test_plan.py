"""What a listing means: models, versions, and names that nobody may have."""

from __future__ import annotations

import hashlib

import pytest

from headrace.errors import StoreError
from headrace.repository.stores import names as names_module
from headrace.repository.stores.base import RemoteFile
from headrace.repository.stores.digests import Digests
from headrace.repository.stores.names import check_distinct, check_path
from headrace.repository.stores.plan import Plan, gone_targets, make_plan
from headrace.repository.stores.spec import parse_store
from headrace.repository.stores.sums import parse_sums

HEX = "ab" * 32


def plan(*paths: str, store: str = "s3://bucket/models") -> Plan:
    spec = parse_store(store)
    assert spec is not None
    return make_plan([RemoteFile(path) for path in paths], spec)


def targets(found: Plan) -> dict[str, list[str]]:
    return {
        target: [entry.path for entry in entries]
        for model in found.models.values()
        for target, entries in {model.name: model.own, **model.targets()}.items()
    }


def test_models_with_and_without_versions() -> None:
    found = plan("a/1/model.onnx", "a/10/x/y.bin", "a/2/m.onnx", "a/config.pbtxt", "b/model.onnx",
                 "b/1_Pooling/config.json", "README.md")  # fmt: skip
    assert targets(found) == {
        "a": ["a/config.pbtxt"],
        "a/10": ["a/10/x/y.bin"],
        "a/2": ["a/2/m.onnx"],
        "a/1": ["a/1/model.onnx"],
        "b": ["b/model.onnx", "b/1_Pooling/config.json"],
    }
    assert list(targets(found)) == ["a", "a/10", "a/2", "a/1", "b"]
    assert found.skipped == ("README.md",)


def test_a_store_that_is_one_model() -> None:
    assert targets(plan("1/model.onnx", "config.pbtxt")) == {
        "models": ["models/config.pbtxt"],
        "models/1": ["models/1/model.onnx"],
    }
    assert targets(plan("model.onnx", "x/y.txt")) == {
        "models": ["models/model.onnx", "models/x/y.txt"]
    }
    single = plan("r.onnx", store=f"https://h.test/r.onnx#sha256={HEX}")
    assert targets(single) == {"r": [], "r/1": ["r/1/r.onnx"]}
    with pytest.raises(StoreError, match="cannot be the name"):
        plan("model.onnx", store="s3://bucket/_hidden")


def test_hidden_and_half_copied_files_are_left_out() -> None:
    hidden = (".git/1/x", "_b/1/m.onnx", "a/.x/1", "a/1/m.onnx.part", "a/1/.DS_Store")
    found = plan("a/1/m.onnx", *hidden, "a/1/__pycache__/m.pyc", "a/1/__init__.py")
    assert targets(found) == {"a": [], "a/1": ["a/1/m.onnx", "a/1/__init__.py"]}
    assert len(found.skipped) == 6


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "/etc/passwd", "a//x", "a/./x", "a\\..\\x", "a/\x00", "a/\n", "", "a/",
     "a/" + "x" * 256, "a/" + "é" * 128, "x/" * 600 + "x", "a/" * 40 + "x"],
)  # fmt: skip
def test_a_name_that_could_leave_the_folder_is_refused(path: str) -> None:
    with pytest.raises(StoreError, match="unsafe name") as caught:
        plan("a/1/m.onnx", path)
    assert caught.value.code == "store_unsafe"


def test_the_longest_names_are_fine() -> None:
    for path in ("a/" + "x" * 255, "a/" + "é" * 127, "ä ö/1/m (2).onnx", "a/..x", "a" * 200):
        assert check_path(path, "s") == path


@pytest.mark.parametrize(
    ("one", "other"),
    [("a/M.onnx", "a/m.onnx"), ("a/x", "a/x/y"), ("a/X/y", "a/x"), ("a/\u00e9", "a/e\u0301")],
)
def test_two_names_that_a_disk_may_not_tell_apart(one: str, other: str) -> None:
    for pair in ((one, other), (other, one)):
        with pytest.raises(StoreError, match="not every disk"):
            check_distinct(pair, "s")


def test_a_store_without_models_removes_nothing() -> None:
    for paths in ((), ("README.md",), (".hidden/1/m.onnx",)):
        with pytest.raises(StoreError, match="holds no models"):
            plan(*paths)


def test_too_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.repository.stores.plan.MAX_FILES", 2)
    plan("a/1", "a/2")
    with pytest.raises(StoreError, match="more than 2 files"):
        plan("a/1", "a/2", "a/3")
    assert names_module.MAX_DEPTH > 8


def test_what_is_gone() -> None:
    found = plan("a/2/m", "b/model.onnx")
    here = ["a/1/m", "a/1/n", "a/2/m", "a/config.pbtxt", "c/1/m", "c/x", "b/1/m"]
    assert gone_targets(here, found) == ["c", "a/1"]


class TestSums:
    def test_what_sha256sum_writes(self) -> None:
        text = f"{HEX}  a/1/m.onnx\n{HEX.upper()} *./b c/x\r\n\n{HEX}  SHA256SUMS\n"
        assert parse_sums(text.encode(), "s") == {"a/1/m.onnx": HEX, "b c/x": HEX}

    @pytest.mark.parametrize(
        "line", ["x", HEX, f"{HEX} a", f"{HEX[1:]}  a", f"\\{HEX}  a\\\\b", f"SHA256 (a) = {HEX}"]
    )
    def test_a_line_that_is_none(self, line: str) -> None:
        with pytest.raises(StoreError, match="line 2"):
            parse_sums(f"{HEX}  a\n{line}\n".encode(), "s")

    def test_its_own_digest(self) -> None:
        content = f"{HEX}  a\n".encode()
        assert parse_sums(content, "s", sha256=hashlib.sha256(content).hexdigest())
        with pytest.raises(StoreError, match=f"expected {HEX}") as caught:
            parse_sums(content, "s", sha256=HEX)
        assert caught.value.code == "store_digest"

    def test_one_path_with_two_digests(self) -> None:
        with pytest.raises(StoreError, match="two digests"):
            parse_sums(f"{HEX}  a\n{'cd' * 32}  a\n".encode(), "s")

    def test_no_text(self) -> None:
        with pytest.raises(StoreError, match="not text"):
            parse_sums(b"\xff\xfe", "s")


class TestDigests:
    CONTENT = bytes(range(256)) * 10

    def etag(self, part_bytes: int) -> str:
        md5 = lambda data: hashlib.md5(data).digest()  # noqa: E731
        parts = [self.CONTENT[i : i + part_bytes] for i in range(0, len(self.CONTENT), part_bytes)]
        return f"{md5(b''.join(map(md5, parts))).hex()}-{len(parts)}"

    @pytest.mark.parametrize("part_bytes", [256, 1000, 2559, 2560])
    @pytest.mark.parametrize("chunk_bytes", [1, 255, 256, 999, 5000])
    def test_md5_of_parts_however_the_bytes_come(self, part_bytes: int, chunk_bytes: int) -> None:
        size = len(self.CONTENT)
        file = RemoteFile("a", size=size, md5=self.etag(part_bytes), part_bytes=part_bytes)
        for content in (self.CONTENT, self.CONTENT[:-1] + b"?"):
            digests = Digests(file)
            for begin in range(0, size, chunk_bytes):
                digests.update(content[begin : begin + chunk_bytes])
            wrong = digests.mismatch()
            assert (wrong is None) is (content is self.CONTENT)
            assert digests.sha256 == hashlib.sha256(content).hexdigest()

    def test_each_kind_of_mismatch(self) -> None:
        for file, algorithm in (
            (RemoteFile("a", size=9), "size"),
            (RemoteFile("a", size=1, sha256=HEX), "SHA-256"),
            (RemoteFile("a", size=1, md5="x"), "MD5"),
        ):
            digests = Digests(file)
            digests.update(b"x")
            wrong = digests.mismatch()
            assert wrong is not None
            assert wrong.algorithm == algorithm
