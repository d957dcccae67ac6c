"""ARCHITECTURE.md's table "the life of a request" names files, and they are there."""

from __future__ import annotations

import re

import pytest

from tests.tidy.source import ROOT, SOURCE

_ROW = re.compile(r"^\|(.+)\|\s*$", re.MULTILINE)
_PATH = re.compile(r"`([\w/*.]+\.py)`")


def life_of_a_request() -> list[tuple[str, list[str]]]:
    """(step, paths) of every row of the one table whose first columns are step and where."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows: list[tuple[str, list[str]]] = []
    inside = False
    for line in text.splitlines():
        if not (found := _ROW.match(line)):
            inside = False
            continue
        cells = [cell.strip() for cell in found[1].split("|")]
        if [cell.lower() for cell in cells[:2]] == ["step", "where"]:
            assert not rows, "ARCHITECTURE.md has one table of steps"
            inside = True
        elif inside and not set(cells[0]) <= set("-: "):
            rows.append((cells[0], _PATH.findall(cells[1])))
    return rows


def test_the_steps_are_numbered_in_order() -> None:
    steps = [step for step, _ in life_of_a_request()]
    assert len(steps) >= 5, "the life of a request has more steps than that"
    assert steps == [str(number) for number in range(1, len(steps) + 1)]


def test_every_step_names_a_file_that_exists() -> None:
    for step, paths in life_of_a_request():
        assert paths, f"step {step} names no file: write it as `room/file.py`"
        for path in paths:
            assert list(SOURCE.glob(path)), f"step {step}: there is no {path}"


def test_the_request_enters_and_leaves_through_a_front_end() -> None:
    rows = life_of_a_request()
    for _, paths in (rows[0], rows[-1]):
        assert any(path.startswith("frontends/") for path in paths)


@pytest.mark.parametrize("room", sorted(path.name for path in SOURCE.iterdir() if path.is_dir()))
def test_every_room_is_on_the_map(room: str) -> None:
    if room != "__pycache__":
        assert f"{room}/" in (ROOT / "ARCHITECTURE.md").read_text()
