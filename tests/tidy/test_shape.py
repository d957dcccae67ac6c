"""Sizes: a function fits a screen, a file fits a sitting, the front door has few names."""

from __future__ import annotations

import ast

import pytest

import headrace
from tests.tidy.source import Module, modules

MAX_FILE_LINES = 500
MAX_CORE_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_PUBLIC_NAMES = 30


@pytest.mark.parametrize("module", modules(), ids=repr)
def test_a_file_fits_a_sitting(module: Module) -> None:
    limit = MAX_CORE_FILE_LINES if module.name.startswith("core/") else MAX_FILE_LINES
    lines = len(module.text.splitlines())
    assert lines <= limit, f"{module.name} has {lines} lines; find its second purpose"


@pytest.mark.parametrize("module", modules(), ids=repr)
def test_a_function_fits_a_screen(module: Module) -> None:
    """Docstrings do not count: the longer the better."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.end_lineno or node.lineno
            lines = last - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{module.name}: {node.name} has {lines} lines"


def test_the_public_names_are_few_sorted_and_there() -> None:
    names = headrace.__all__
    assert len(names) <= MAX_PUBLIC_NAMES
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(headrace, name) is not None
    assert set(names) <= set(dir(headrace))


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'turbine'"):
        _ = headrace.turbine
