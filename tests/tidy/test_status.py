"""Only ``frontends/status.py`` decides which error is which HTTP status.

A front-end may answer a protocol's own mistakes with a code (431 for a header that is too
large), and a client may read codes. What nobody else may do is to *pair* one of our error
classes with a code: in a table, in a call, or in the handler that caught it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from headrace import errors
from tests.tidy.source import modules

THE_TABLE = "frontends/status.py"

ERROR_CLASSES = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.HeadraceError)
}


def test_errors_meet_status_codes_in_one_file_only() -> None:
    found = [
        f"{module.name}:{line}"
        for module in modules()
        if module.name != THE_TABLE
        for line in pairings(module.tree)
    ]
    assert not found


def test_the_rule_sees_the_table_where_it_is() -> None:
    (table,) = (module for module in modules() if module.name == THE_TABLE)
    assert list(pairings(table.tree))


def test_the_rule_sees_each_way_of_pairing() -> None:
    for source in (
        "CODES = {InvalidRequest: 400}",
        "CODES = [(errors.Overloaded, 503)]",
        "register(ModelNotFound, 404)",
        "try:\n    f()\nexcept (ValueError, DeadlineExceeded):\n    answer(504)",
        "status = 404 if isinstance(error, ModelNotFound) else 200",
    ):
        assert list(pairings(ast.parse(source))), source
    for source in (
        "raise PayloadTooLarge('more than 400 of them', limit=431)",
        "try:\n    f()\nexcept ValueError:\n    answer(400)",
        "REASONS = {400: 'Bad Request'}",
    ):
        assert not list(pairings(ast.parse(source))), source


def pairings(tree: ast.AST) -> Iterator[int]:
    """Lines where one of our error classes and an HTTP error code stand in one expression."""
    for node in ast.walk(tree):
        parts = list(_own_parts(node))
        if any(map(_names_an_error, parts)) and any(map(_has_code, parts)):
            yield node.lineno


def _own_parts(node: ast.AST) -> Iterator[ast.AST]:
    """What of ``node`` would be paired with one another."""
    if isinstance(node, ast.ExceptHandler) and node.type is not None:
        yield from (node.type, *node.body)
    elif isinstance(node, ast.If):  # the other branch is a node of its own
        yield from (node.test, *(part for part in node.body if isinstance(part, ast.Return)))
    elif isinstance(node, ast.Call) and not _names_an_error(node.func):
        yield from node.args
    elif isinstance(node, ast.Dict | ast.Tuple | ast.List | ast.IfExp):
        yield from ast.iter_child_nodes(node)


def _names_an_error(node: ast.AST) -> bool:
    """An error class itself; one that is being made (``InvalidRequest(...)``) is not a key."""
    if isinstance(node, ast.Call):
        return any(map(_names_an_error, node.args))
    if isinstance(node, ast.Name):
        return node.id in ERROR_CLASSES
    if isinstance(node, ast.Attribute):
        return node.attr in ERROR_CLASSES
    return isinstance(node, ast.Tuple | ast.BinOp) and any(
        map(_names_an_error, ast.iter_child_nodes(node))
    )


def _has_code(node: ast.AST) -> bool:
    return any(map(_is_code, ast.walk(node)))


def _is_code(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and 400 <= node.value < 600
