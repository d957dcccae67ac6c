"""How a person says what to fetch."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import PullError
from headrace.repository.expected import Expected
from headrace.repository.sources import parse_source

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("spec", "parts", "label", "model"),
    [
        ("pypi:a-b.c==1.0", ("pypi", "a-b.c", "1.0", ""), "pypi:a-b.c==1.0", "a-b.c"),
        ("pypi:x==1!2.0rc1+l/*.onnx", ("pypi", "x", "1!2.0rc1+l", "*.onnx"),
         "pypi:x==1!2.0rc1+l", "x"),
        ("npm:left-pad@1.2.3", ("npm", "left-pad", "1.2.3", ""), "npm:left-pad@1.2.3", "left-pad"),
        ("npm:@s/n@1.2.3-rc.1/a/*.onnx", ("npm", "@s/n", "1.2.3-rc.1", "a/*.onnx"),
         "npm:@s/n@1.2.3-rc.1", "n"),
        ("https://u:p@h.example:8443/a/m.onnx?token=s#f",
         ("url", "https://u:p@h.example:8443/a/m.onnx?token=s#f", "", ""),
         "https://h.example:8443/a/m.onnx", "m"),
        ("file:dir/a_b-1.0-py3-none-any.whl", ("file", "dir/a_b-1.0-py3-none-any.whl", "", ""),
         "file:a_b-1.0-py3-none-any.whl", "a_b"),
        ("file:///x/y%20z.tar.gz", ("file", "/x/y z.tar.gz", "", ""), "file:y z.tar.gz", "y z"),
        ("models/m.zip", ("file", "models/m.zip", "", ""), "file:m.zip", "m"),
    ],
)  # fmt: skip
def test_what_can_be_said(
    spec: str, parts: tuple[str, str, str, str], label: str, model: str
) -> None:
    source = parse_source(spec)
    assert (source.kind, source.name, source.version, source.glob) == parts
    assert (source.label, source.model_name) == (label, model)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("pypi:name", "names no version"),
        ("pypi:name>=1", "names no version"),
        ("pypi:", "names no version"),
        ("pypi:==1", "names no version"),
        ("pypi:-r==1", "cannot be the name"),
        ("pypi:a b==1", "cannot be the name"),
        ("pypi:x @ https://h/x.whl==1", "cannot be the name"),
        ("pypi:x==1 --index-url=http://evil", "not one exact version"),
        ("pypi:x==1.*", "not one exact version"),
        ("pypi:x==", "not one exact version"),
        ("npm:@s/n", "names no version"),
        ("npm:n@latest", "not one exact version"),
        ("npm:n@^1.0.0", "not one exact version"),
        ("npm:../n@1.0.0", "cannot be the name"),
        ("npm:--x@1.0.0", "cannot be the name"),
        ("ftp://h/x", "cannot fetch from 'ftp'"),
        ("https://", "not an address"),
        ("https://h", "names no file"),
        ("https://[h/x", "not an address"),
        ("https://h/a b", "not an address"),
        ("file:", "is not a path"),
        ("file://host/x", "names a host"),
        ("", "is not a path"),
    ],
)
def test_what_cannot_be_said(spec: str, complaint: str) -> None:
    with pytest.raises(PullError, match=complaint) as caught:
        parse_source(spec)
    assert caught.value.hint or "host" in complaint


def test_a_file_with_a_colon_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "odd:name.onnx"
    path.touch()
    assert parse_source(str(path)).kind == "file"


def test_expected_digests_are_read() -> None:
    expected = Expected((A.upper(), f"x/model.onnx=sha256:{B}"))
    assert (expected.archive, expected.files) == (A, {"x/model.onnx": B})
    expected.check_archive("a.whl", A)
    expected.check_files({"deep/x/model.onnx": B})


@pytest.mark.parametrize(
    "texts", [("abc",), (f"={A}",), (A[:-1],), ("x=",), (A, B), (f"f={A}", f"f={B}")]
)
def test_digests_that_are_none(texts: tuple[str, ...]) -> None:
    with pytest.raises(PullError):
        Expected(texts)


def test_wrong_digests_show_both() -> None:
    with pytest.raises(PullError) as caught:
        Expected((A,)).check_archive("a.whl", B)
    assert A in caught.value.message
    assert B in caught.value.message
    with pytest.raises(PullError) as caught:
        Expected((f"m={A}",)).check_files({"m": B})
    assert A in caught.value.message
    assert B in caught.value.message


@pytest.mark.parametrize("files", [{"n": A}, {"a/m": A, "b/m": A}])
def test_a_digest_must_fit_one_file(files: dict[str, str]) -> None:
    with pytest.raises(PullError, match="fits"):
        Expected((f"m={A}",)).check_files(files)
