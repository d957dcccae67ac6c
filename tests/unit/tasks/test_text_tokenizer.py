"""Tokenisers from both kinds of file, and files that are none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from headrace.errors import MissingExtra, ModelLoadError
from headrace.tasks.text_options import read_options
from headrace.tasks.text_tokenizer import load_tokenizer, padding_id
from tests.unit.tasks.text_models import CLS, SEP, UNK, tokenizer_json, vocabulary


def load(path: str, **options):
    return load_tokenizer(read_options({"tokenizer": path, **options}))


def test_padding_and_truncation_of_the_file_are_not_ours(tmp_path):
    tokenizer = load(tokenizer_json(tmp_path))
    assert tokenizer.encode("the cat sat , a").ids == [CLS, 5, 6, 7, 11, 10, SEP]


@pytest.mark.parametrize(
    ("lower_case", "ids"), [(None, [CLS, 10, SEP]), (True, [CLS, 10, SEP]), (False, [CLS, 9, SEP])]
)
def test_a_vocabulary_is_uncased_unless_told(tmp_path, lower_case, ids):
    assert load(vocabulary(tmp_path), lower_case=lower_case).encode("A").ids == ids


@pytest.mark.parametrize(
    ("lower_case", "ids"), [(None, [CLS, 9, SEP]), (False, [CLS, 9, SEP]), (True, [CLS, 10, SEP])]
)
def test_a_cased_tokenizer_json_can_be_made_to_lower_case(tmp_path, lower_case, ids):
    path = tokenizer_json(tmp_path, lower_case=False)
    assert load(path, lower_case=lower_case).encode("A").ids == ids


@pytest.mark.parametrize(
    ("strip_accents", "ids"), [(None, [CLS, 10, SEP]), (False, [CLS, UNK, SEP])]
)
def test_accents_are_stripped_as_told(tmp_path, strip_accents, ids):
    assert load(vocabulary(tmp_path), strip_accents=strip_accents).encode("Á").ids == ids


def test_special_tokens_written_in_a_text_are_special(tmp_path):
    assert load(vocabulary(tmp_path)).encode("[MASK]").ids == [CLS, 4, SEP]


def test_lines_may_end_as_windows_ends_them(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\ncat\r\n")
    assert load(str(tmp_path / "vocab.txt")).encode("cat").ids == [2, 4, 3]


def test_the_padding_token_is_said_or_found_or_zero(tmp_path):
    path = vocabulary(tmp_path)
    assert padding_id(load(path), read_options({"tokenizer": path, "pad_id": 5})) == 5
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]")
    assert padding_id(load(path), read_options({"tokenizer": path})) == 3
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]")
    assert padding_id(load(path), read_options({"tokenizer": path})) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", "is not a tokenizer.json"),
        ("tokenizer.json", b"\x00\xff", "is not a tokenizer.json"),
        ("vocab.txt", b"cat\ndog\n", r"lacks \[UNK\], \[CLS\], \[SEP\]"),
        ("vocab.txt", b"\xff\xfe", "cannot be read"),
    ],
)
def test_files_that_are_no_tokeniser(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        load(str(tmp_path / name))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelLoadError, match="is not there"):
        load(str(tmp_path / "tokenizer.json"))


def test_no_room_beside_the_special_tokens(tmp_path):
    with pytest.raises(ModelLoadError, match="max_tokens is 2"):
        load(vocabulary(tmp_path), max_tokens=2)


def test_without_the_library_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra) as raised:
        load(vocabulary(tmp_path))
    assert "headrace[text]" in raised.value.hint


@pytest.mark.parametrize("already", [None, "true"])
def test_the_library_brings_no_threads_unless_the_operator_wants_them(tmp_path, already):
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    if already is not None:
        environment["TOKENIZERS_PARALLELISM"] = already
    script = (
        "import os, sys\n"
        "from headrace.tasks.text_options import read_options\n"
        "from headrace.tasks.text_tokenizer import load_tokenizer\n"
        "load_tokenizer(read_options({'tokenizer': sys.argv[1]}))\n"
        "print(os.environ['TOKENIZERS_PARALLELISM'])"
    )
    command = [sys.executable, "-c", script, vocabulary(tmp_path)]
    ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == (already or "false")
