"""The names of the tasks, and where each is found.

A task's module is imported when a model first needs it: the image task brings Pillow, the
text tasks a tokeniser, and the base install has neither.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from headrace.errors import ConfigError
from headrace.tasks.base import Task
from headrace.types import TensorSpec

RAW = "tensor"
"""The model's own tensors are the public ones: no conversion, so no task and no thread hop."""

TASKS: dict[str, str] = {
    "image-classification": "headrace.tasks.image:ImageClassification",
    "tabular": "headrace.tasks.tabular:Tabular",
    "text-classification": "headrace.tasks.text:TextClassification",
    "text-embedding": "headrace.tasks.text:TextEmbedding",
}
"""Kind -> ``module:Class``. A class is made by its classmethod
``create(model_inputs, model_outputs, options)`` and is a :class:`~headrace.tasks.base.Task`."""

KINDS = (RAW, *TASKS)


def create(
    kind: str,
    model_inputs: Sequence[TensorSpec],
    model_outputs: Sequence[TensorSpec],
    options: Mapping[str, Any],
) -> Task | None:
    """The task for one loaded model, or None where its tensors are served as they are.

    Args:
        kind: one of :data:`KINDS`.
        model_inputs: the runtime's own signature, as are ``model_outputs``.
        options: the model's ``task_options``.

    Raises:
        ConfigError: no such kind, or options that the task does not take.
        ModelLoadError: the model's tensors are not what the task needs.
        MissingExtra: the task's library is not installed.
    """
    if kind == RAW:
        return None
    if kind not in TASKS:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        raise ConfigError(
            f"unknown task {kind!r}; the tasks are {', '.join(KINDS)}",
            hint=f"did you mean {close[0]!r}?" if close else "",
            task=kind,
        )
    module, _, name = TASKS[kind].partition(":")
    task: Task = getattr(import_module(module), name).create(
        tuple(model_inputs), tuple(model_outputs), options
    )
    return task
