"""The repository as the tidy tests read it: its files, and its modules as syntax trees."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "headrace"

_NOT_OURS = {
    ".git", ".hypothesis", ".import_linter_cache", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    ".venv", ".venv-ci", "__pycache__", "build", "dist", "models",
}  # fmt: skip


class Module:
    """One file of the package."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(SOURCE).as_posix()
        self.text = path.read_text()
        self.tree = ast.parse(self.text)

    def __repr__(self) -> str:
        return self.name

    def imports(self) -> Iterator[tuple[str, bool]]:
        """Every module it imports, and whether from inside a function."""
        yield from _imports_under(self.tree, within_function=False)


@cache
def modules() -> tuple[Module, ...]:
    return tuple(Module(path) for path in sorted(SOURCE.rglob("*.py")))


@cache
def repository_files() -> tuple[Path, ...]:
    """What git tracks or would track; where there is no git, everything that is not built."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        found = (path for path in ROOT.rglob("*") if not _NOT_OURS & set(path.parts))
        return tuple(path for path in sorted(found) if path.is_file())
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def text_of(path: Path) -> str | None:
    """None for what is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def _imports_under(node: ast.AST, *, within_function: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield alias.name, within_function
        elif isinstance(child, ast.ImportFrom):
            base = "." * child.level + (child.module or "")
            yield base, within_function
        inside = within_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _imports_under(child, within_function=inside)
