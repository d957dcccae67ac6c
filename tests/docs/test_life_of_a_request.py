"""ARCHITECTURE.md's table, held against a request on its way through a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.tidy.source import ROOT
from tests.tidy.test_architecture import life_of_a_request

Call = tuple[str, str]
"""Thread and file."""


@pytest.fixture(scope="module")
def traced() -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.docs.traced_server"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def files(calls: list[Call]) -> list[str]:
    return [file for _, file in calls]


def missing_step(expected: list[str], entered: list[str]) -> str:
    """The first of ``expected`` that does not come after its predecessors; "" if all do."""
    rest = iter(entered)
    return next((file for file in expected if file not in rest), "")


def test_the_steps_happen_in_this_order(traced: dict[str, Any]) -> None:
    expected = [path for _, paths in life_of_a_request() for path in paths]
    assert missing_step(expected, files(traced["first"])) == ""


def test_no_file_on_the_way_is_left_out(traced: dict[str, Any]) -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = text.partition("## The life of a request")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w/]+\.py)`", section))
    assert set(files(traced["first"])) - named == set()


def test_work_is_done_on_the_thread_that_the_table_says(traced: dict[str, Any]) -> None:
    threads: dict[str, set[str]] = {}
    for thread, file in traced["first"]:
        threads.setdefault(file, set()).add(re.sub(r"[-_]\d+$", "", thread))
    loop = {"MainThread"}
    assert {file: where for file, where in threads.items() if where != loop} == {
        "engine/preprocess.py": loop | {"headrace-prepare"},
        "tasks/text.py": loop | {"headrace-prepare"},
        "tasks/text_items.py": {"headrace-prepare"},
        "engine/instances.py": loop | {"headrace-instance"},
        "engine/collate.py": {"headrace-instance"},
        "engine/health.py": loop | {"headrace-instance"},
        "runtimes/onnx.py": {"headrace-instance"},
    }


def test_a_head_that_was_seen_before_is_not_read_again(traced: dict[str, Any]) -> None:
    skipped = {"frontends/reader.py", "frontends/heads.py"}
    assert skipped <= set(files(traced["first"]))
    assert not skipped & set(files(traced["again"]))


def test_a_request_leaves_nothing_for_the_garbage_collector(traced: dict[str, Any]) -> None:
    assert (traced["left"], traced["kinds"]) == (0, [])


def test_the_comparison_notices_order_and_absence() -> None:
    assert missing_step(["a", "b", "a"], ["a", "c", "b", "a"]) == ""
    assert missing_step(["b", "a"], ["a", "b"]) == "a"
    assert missing_step(["a", "d"], ["a", "b"]) == "d"
