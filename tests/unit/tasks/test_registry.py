from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from headrace.errors import ConfigError
from headrace.tasks import registry
from headrace.types import TensorSpec


def test_raw_tensors_need_no_task() -> None:
    assert registry.create("tensor", (), (), {}) is None


def test_an_unknown_kind_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'tabluar'.*text-embedding") as caught:
        registry.create("tabluar", (), (), {})
    assert "tabular" in caught.value.hint


def test_a_task_is_made_for_the_model() -> None:
    task = registry.create(
        "tabular",
        [TensorSpec("X", "FP32", (-1, 1))],
        [TensorSpec("variable", "FP32", (-1, 1))],
        {"columns": ["age"]},
    )
    assert task is not None
    assert task.kind == "tabular"


@pytest.mark.parametrize("kind", sorted(registry.TASKS))
def test_every_name_leads_to_a_task_of_that_kind(kind: str) -> None:
    module, _, name = registry.TASKS[kind].partition(":")
    assert getattr(import_module(module), name).kind == kind


def test_looking_at_the_registry_brings_no_library_of_a_task() -> None:
    script = (
        "import sys, headrace.tasks.registry\n"
        "print([name for name in ('PIL', 'tokenizers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
