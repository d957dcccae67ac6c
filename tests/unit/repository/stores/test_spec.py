"""What a person types, and what is said where it is wrong."""

from __future__ import annotations

import pytest

from headrace.errors import StoreError
from headrace.repository.stores.spec import parse_store

HEX = "ab" * 32


MODEL_2 = "https://h.test/r/2/model.onnx"


@pytest.mark.parametrize("text", ["models", "./m.onnx", "/srv/models", "pypi:x==1", "file:x", "s3"])
def test_a_path_is_no_store(text: str) -> None:
    assert parse_store(text) is None


@pytest.mark.parametrize(
    ("text", "kind", "label", "model"),
    [
        ("s3://bucket", "s3", "s3://bucket", "bucket"),
        ("s3://bucket/a/b/", "s3", "s3://bucket/a/b", "b"),
        ("s3://bucket/resnet/3", "s3", "s3://bucket/resnet/3", "resnet"),
        ("https://h.test", "folder", "https://h.test/", "model"),
        ("https://h.test/a/m%20x/", "folder", "https://h.test/a/m%20x/", "m x"),
        (f"HTTP://h.test:81/a/#sha256={HEX}", "folder", "http://h.test:81/a/", "a"),
        (f"https://h.test/r.onnx#sha256={HEX}", "file", "https://h.test/r.onnx", "r"),
        (f"https://h.test/r/2/model.onnx#sha256={HEX}", "file", MODEL_2, "r"),
    ],
)  # fmt: skip
def test_the_shapes(text: str, kind: str, label: str, model: str) -> None:
    spec = parse_store(text)
    assert spec is not None
    assert (spec.kind, spec.label, spec.model_name) == (kind, label, model)
    assert spec.sha256 == (HEX if HEX in text else "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("s3:bucket", "names no bucket"),
        ("s3://", "names no bucket"),
        ("s3://user:key@bucket/x", "names no bucket"),
        ("s3://bucket/a//b", "no path"),
        ("s3://bucket/../b", "no path"),
        ("https:///x/", "names no host"),
        ("https://[::1/x/", "names no host"),
        ("https://h.test:port/x/", "names no host"),
        ("https://h.test/a b/", "characters that none may have"),
        ("https://h.test/a\n/", "characters that none may have"),
        ("http://h.test/a/", "anybody on the way"),
        ("http://h.test/m.onnx", "without a digest"),
        ("https://h.test/m.onnx", "without a digest"),
        ("https://h.test/a/#sha256=12", "not #sha256="),
        ("https://h.test/a/#md5=12", "not #sha256="),
        (f"https://h.test/a.zip#sha256={HEX}", "neither a folder nor an .onnx"),
        (f"http://u:p@h.test/a/#sha256={HEX}", "can be read on the way"),
    ],
)
def test_what_is_no_store_says_why(text: str, why: str) -> None:
    with pytest.raises(StoreError, match=why):
        parse_store(text)


def test_nothing_that_is_shown_has_a_password_in_it() -> None:
    spec = parse_store("https://user:secret@h.test/models/?sig=secret")
    assert spec is not None
    assert "secret" in spec.place
    for shown in (repr(spec), str(spec), f"{spec}", spec.label, spec.folder_name):
        assert "secret" not in shown
        assert "user" not in shown
    for wrong in ("http://u:secret@h.test/a/#sha256=" + HEX, "https://u:secret@h.test/a/#secret"):
        with pytest.raises(StoreError) as caught:
            parse_store(wrong)
        assert "secret" not in f"{caught.value} {caught.value.hint} {caught.value.details}"


def test_two_stores_have_two_folders_in_a_cache() -> None:
    one, other = parse_store("s3://bucket/a/models"), parse_store("s3://bucket/b/models")
    assert one is not None
    assert other is not None
    assert one.folder_name.startswith("models-")
    assert one.folder_name != other.folder_name
