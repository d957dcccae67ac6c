"""Tells whose folder it is, and has it read by whoever knows.

==================  ======================================================================
kind                known by
==================  ======================================================================
Triton              ``config.pbtxt`` in the folder or in a folder of it
MLServer            ``model-settings.json``, there or one folder below
TorchServe          ``config.properties``, ``*.mar``
TensorFlow Serving  ``models.config``, ``<model>/<version>/saved_model.pb``
==================  ======================================================================
"""

from __future__ import annotations

from pathlib import Path

from headrace.config import Config
from headrace.errors import ConfigError, ModelLoadError
from headrace.repository.folders import list_folder, some_names
from headrace.repository.importing import mlserver, tfserving, torchserve
from headrace.repository.importing.plan import ModelPlan, Plan
from headrace.repository.layout import scan
from headrace.repository.triton import CONFIG_PBTXT


def read(path: Path) -> Plan:
    """What importing ``path`` would come to.

    Raises:
        ModelLoadError: there is nothing there, or nothing that is known.
        ConfigError: a configuration is broken.
    """
    if not path.exists():
        raise ModelLoadError(f"{path} does not exist", path=str(path))
    if path.is_dir() and _is_triton(path):
        return _triton(path)
    if mlserver.model_files(path):
        return mlserver.read(path)
    if torchserve.is_there(path):
        return torchserve.read(path)
    if tfserving.is_there(path):
        return tfserving.read(path)
    there = f": it holds {some_names(list_folder(path))}" if path.is_dir() else ""
    raise ModelLoadError(
        f"{path} is no repository of Triton, MLServer, TorchServe or TensorFlow Serving{there}",
        hint="headrace serve takes model files and folders as they are",
        path=str(path),
    )


def _is_triton(path: Path) -> bool:
    return (path / CONFIG_PBTXT).is_file() or any(path.glob(f"*/{CONFIG_PBTXT}"))


def _triton(path: Path) -> Plan:
    """Nothing has to be written: the repository is served as it is."""
    try:
        found = scan([path], config=Config())
    except (ConfigError, ModelLoadError) as error:
        plan = ModelPlan(name=path.resolve().name, obstacle=error.message, hint=error.hint)
        return Plan(kind="Triton", root=path, models=(plan,))
    newest = {source.name: source for source in reversed(found.models)}
    served = [
        ModelPlan(name=name, version=source.version, source=str(source.path), notes=source.notes)
        for name, source in sorted(newest.items())
    ]
    broken = [
        ModelPlan(
            name=p.name, version=p.version or "1", obstacle=p.error.message, hint=p.error.hint
        )
        for p in found.problems
    ]
    command = f"headrace serve --model-repository={path}" if served else ""
    return Plan(kind="Triton", root=path, models=(*served, *broken), as_it_is=command)
