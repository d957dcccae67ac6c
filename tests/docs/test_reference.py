"""The reference pages say what the code says, and their examples are ones that it takes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from headrace.config import ModelConfig
from headrace.loading import load_config
from headrace.repository.model_toml import overlay_folder
from headrace.tasks.registry import KINDS
from tests.tidy.source import ROOT
from tests.tidy.test_docs import blocks

PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_what_the_code_says(page: Path, generate: ModuleType) -> None:
    text = page.read_text()
    assert generate.regenerated(text) == text, "run: python docs/generate.py"


def test_a_table_that_was_changed_by_hand_is_noticed(generate: ModuleType) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    changed = text.replace("| `port` |", "| `porter` |")
    assert changed != text
    assert generate.regenerated(changed) == text


def test_every_setting_is_on_the_page() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    pages = sorted((ROOT / "src" / "headrace" / "config").glob("*.py"))
    source = "".join(page.read_text() for page in pages)
    fields = re.findall(r"^    (\w+): ", source, re.MULTILINE)
    nested = {"tls", "limits", "batching", "queue", "server", "defaults", "models"}
    nested |= {"sequence", "trace", "http2", "slo", "tenants", "cache", "shared_cache"}
    nested |= {"residency", "rollout"}
    assert len(fields) > 20
    assert not [name for name in fields if name not in nested and f"| `{name}` |" not in text]


def test_every_task_is_on_the_page() -> None:
    text = (ROOT / "docs" / "tasks.md").read_text()
    assert not [kind for kind in KINDS if f"| `{kind}` |" not in text]


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_toml_is_configuration(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "toml")):
        file = tmp_path / str(number) / "model.toml"
        file.parent.mkdir()
        file.write_text(text)
        if "model.toml" in text.splitlines()[0]:
            assert overlay_folder(ModelConfig(), file.parent, root=tmp_path) != ModelConfig()
        else:
            assert load_config(file, {}, {}).settings
