"""Writes a model file and loads it, for the tests of the Python runtime."""

from __future__ import annotations

import os
import textwrap
from contextlib import contextmanager
from pathlib import Path

from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.runtimes.python import PythonRuntime

HEADER = '''\
import asyncio, os, signal, sys, time
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
import numpy as np
import numpy.typing as npt
Table = Annotated[np.ndarray, "FP32[N,4]"]
Column = Annotated[np.ndarray, "INT64[N]"]

def meet():
    """Says that it has arrived, and waits until the test opens the gate."""
    folder = os.path.dirname(__file__)
    arrived, opened = (os.open(f"{folder}/{name}", os.O_RDWR) for name in ("arrived", "opened"))
    os.write(arrived, b"x")
    os.read(opened, 1)
    os.close(arrived)
    os.close(opened)

'''
"""Comes before every model's own source, and is this many lines:"""

HEADER_LINES = HEADER.count("\n")


class Gate:
    """Where models meet the test: call it before the model is loaded."""

    def __init__(self, folder: Path) -> None:
        for name in ("arrived", "opened"):
            os.mkfifo(folder / name)
        self._arrived, self._opened = (
            os.open(folder / name, os.O_RDWR) for name in ("arrived", "opened")
        )

    def wait(self, count: int = 1) -> None:
        """Until so many have arrived."""
        for _ in range(count):
            os.read(self._arrived, 1)

    def open(self, count: int = 1) -> None:
        """Lets so many through."""
        os.write(self._opened, b"x" * count)

    def close(self) -> None:
        os.close(self._arrived)
        os.close(self._opened)


def write_model(folder: Path, source: str) -> Path:
    path = folder / "model.py"
    path.write_text(HEADER + textwrap.dedent(source).strip("\n") + "\n")
    return path


def load(path: Path, *, concurrency=1, threads=1, name="m", **options):
    artifact = Artifact(name, "1", path, path.parent, "python", options=options)
    return PythonRuntime().load(artifact, InstanceConfig(threads, concurrency))


@contextmanager
def loaded(folder: Path, source: str, **options):
    model = load(write_model(folder, source), **options)
    try:
        yield model
    finally:
        model.unload()
