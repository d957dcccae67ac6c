"""What must not be in any file of the repository, and what must be beside every dependency."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tidy.source import ROOT, repository_files, text_of

# A character class of one letter keeps these lines from matching themselves.
MACHINE_PATHS = re.compile(
    r"(?<![\w.])/(?:[w]ork/|[r]oot/(?:\.|work|src)|[t]mp/lab|[h]ome/\w|[U]sers/\w|[o]pt/wheels)"
)
REGISTRY_HOSTS = re.compile(
    r"\b(?:pypi[.]org|pythonhosted[.]org|npmjs[.](?:org|com)|crates[.]io|proxy[.]golang[.]org)\b"
)
SECRETS = re.compile(
    r"[-]----BEGIN (?:RSA |EC )?PRIVATE KEY-----|\bghp_\w{36}|\bAKIA[A-Z0-9]{16}\b"
)

MAX_FILE_BYTES = 512 * 1024
"""No weights, no recordings: models are made by a script or fetched by the user."""


@pytest.mark.parametrize(
    "rule", [MACHINE_PATHS, REGISTRY_HOSTS, SECRETS], ids=["path", "host", "secret"]
)
def test_no_file_knows_the_machine_it_was_written_on(rule: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in repository_files()
        if (text := text_of(path)) is not None
        for number, line in enumerate(text.splitlines(), 1)
        if rule.search(line)
    ]
    assert not found


COMPILED = {"descriptors.binpb"}
"""Made of the .proto files beside it, so that nobody needs their compiler; a test compares."""


def test_no_file_is_a_model_or_a_data_set() -> None:
    large = [path for path in repository_files() if path.stat().st_size > MAX_FILE_BYTES]
    binary = [
        path for path in repository_files() if text_of(path) is None and path.name not in COMPILED
    ]
    assert not large
    assert not binary


def test_every_dependency_says_what_it_is_for() -> None:
    """What only developers install explains itself."""
    text = (ROOT / "pyproject.toml").read_text()
    project = text[text.index("\ndependencies = [") : text.index("\n[project.scripts]")]
    runtime = project[: project.index("\nall = [")]
    lines = [line for line in runtime.splitlines() if re.search(r'"[\w-]+(\[\w+\])?[><=~]=', line)]
    assert lines
    silent, explained = [], set[str]()
    for line in lines:
        name = re.split(r"[><=~;\[]", line.split('"')[1], maxsplit=1)[0]
        if re.search(r"# \w", line):
            explained.add(name)
        elif name not in explained:  # once is enough for one that several extras share
            silent.append(line.strip())
    assert not silent


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_the_papers_are_there(name: str) -> None:
    assert Path(ROOT, name).stat().st_size > 200
