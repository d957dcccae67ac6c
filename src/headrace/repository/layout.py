"""Finds the models in the files and folders a person points at.

Three shapes are understood, and told apart by what is in them:

- a file: ``model.onnx``, ``anything.onnx``, ``model.xml`` (OpenVINO), ``model.py``;
- a model's folder: one model file, or a Hugging Face folder, or version folders
  (``<model>/<version>/<file>``, Triton's layout);
- a repository: a folder of model folders.

A model's folder with a ``config.pbtxt`` is served as that file says: see ``triton/``.

Only names, sizes and headers are read; nothing is loaded, built or run. What is broken in a
repository is reported beside what is not, so that one bad model never hides the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.repository.base import Problem, ScanResult
from headrace.repository.scanner import Scanner

__all__ = ["Problem", "ScanResult", "scan"]


def scan(paths: Sequence[Path], *, config: Config, name: str = "") -> ScanResult:
    """Finds the models behind ``paths``.

    Args:
        paths: files, model folders or repositories, in any mixture.
        config: its ``defaults`` and ``models`` are merged with each ``config.pbtxt`` and
            ``model.toml``. With ``server.model_control = "explicit"`` only the models that
            ``server.load_models`` names, and the steps of its ensembles, are looked at, and
            there may be none.
        name: what to call the model; only where exactly one is found.

    Raises:
        ModelLoadError: a path that was given is missing, unreadable, ambiguous, not a model
            at all, or holds nothing but broken versions of one model.
        ConfigError: a name that cannot be one, two models of one name, a wrong
            ``model.toml`` or version policy in a path that was given.
    """
    if not paths:
        raise ConfigError("no model was given", hint="headrace serve MODEL_OR_REPOSITORY ...")
    only = _chosen(config)
    while True:
        scanner = Scanner(config, name, only=only)
        for path in paths:
            scanner.add(path)
        found = scanner.result()
        steps = {step.model for source in found.models for step in source.config.ensemble}
        if only is None or steps <= only:
            return found
        only |= steps  # an ensemble that is named needs its steps too


def _chosen(config: Config) -> frozenset[str] | None:
    """The models to look at; None: all of them."""
    server = config.server
    if server.model_control != "explicit" or server.load_models == ("*",):
        return None
    return frozenset(server.load_models)
