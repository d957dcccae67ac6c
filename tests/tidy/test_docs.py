"""What the documents claim: links lead somewhere, commands parse, Python compiles."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli.main import build_parser
from tests.tidy.source import ROOT, repository_files

DOCUMENTS = [path for path in repository_files() if path.suffix == ".md"]

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

documents = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
)


def blocks(document: Path, *languages: str) -> Iterator[str]:
    for language, code in _FENCE.findall(document.read_text()):
        if language in languages:
            yield code


def commands(code: str) -> Iterator[list[str]]:
    """The ``headrace`` command lines in a shell block, continued lines joined."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        if words and words[0] == "headrace":
            end = next((i for i, word in enumerate(words) if word in {"|", "&", ">", "&&"}), None)
            yield words[1:end]


@documents
def test_links_lead_somewhere(document: Path) -> None:
    text = _FENCE.sub("", document.read_text())
    for target in _LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = document if not path else document.parent / path
        assert file.exists(), f"{document.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in map(_anchor, _HEADING.findall(file.read_text())), target


@documents
def test_commands_are_ones_that_the_command_line_understands(document: Path) -> None:
    for code in blocks(document, "sh", "shell", "bash", "console"):
        for words in commands(code):
            if not {"...", "…"} & set(words):
                try:
                    build_parser().parse_args(words)
                except SystemExit as stop:
                    pytest.fail(f"headrace {shlex.join(words)}: exit {stop.code}")


@documents
def test_python_compiles(document: Path) -> None:
    for code in blocks(document, "python", "py"):
        ast.parse(code)


def test_shell_blocks_are_read_as_a_shell_would() -> None:
    code = "# comment\n$ headrace serve m \\\n    --port 0 | tee log  # why\npip install headrace\n"
    assert list(commands(code)) == [["serve", "m", "--port", "0"]]


def _anchor(heading: str) -> str:
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
