"""TensorFlow Serving: ``models.config``, or folders ``<model>/<version>/saved_model.pb``.

The configuration is protobuf's text format
(https://www.tensorflow.org/tfx/serving/serving_config). A SavedModel runs in TensorFlow only, so
what can be served is what was converted already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.repository.importing.files import read_text
from headrace.repository.importing.plan import ModelPlan, Plan
from headrace.repository.triton.text_format import parse
from headrace.repository.triton.tree import Message, Scalar
from headrace.repository.versions import VERSION_FOLDER

CONFIG = "models.config"
SAVED_MODEL = "saved_model.pb"

_NOTED = {
    "model_platform": "the file itself says what it is",
    "version_labels": "clients name versions by number",
    "logging_config": "--access-log writes a line for every request",
}


def is_there(root: Path) -> bool:
    """Whether ``root`` is such a configuration, or a folder with SavedModels."""
    if root.is_file():
        return root.suffix == ".config" and "model_config_list" in read_text(root)
    return (root / CONFIG).is_file() or any(root.glob(f"*/*/{SAVED_MODEL}"))


def read(root: Path) -> Plan:
    """Reads the list of models, or takes every folder for one.

    Raises:
        ConfigError: the configuration is not the text format.
    """
    folder = root if root.is_dir() else root.parent
    path = root if root.is_file() else root / CONFIG
    if path.is_file():
        tree = parse(read_text(path), where=str(path))
        models = [
            _model(folder, config, path)
            for group in _messages(tree, "model_config_list")
            for config in _messages(group, "config")
        ]
    else:
        places = sorted({file.parent.parent for file in root.glob(f"*/*/{SAVED_MODEL}")})
        models = [_planned(place.name, place, "latest", ()) for place in places]
    return Plan(kind="TensorFlow Serving", root=folder, models=tuple(models))


def _model(folder: Path, config: Message, path: Path) -> ModelPlan:
    name = _text(config, "name")
    base = _text(config, "base_path").removeprefix("file://")
    versions = "latest"
    for policy in _messages(config, "model_version_policy"):
        versions = _policy(policy)
    notes = [
        f"{path}:{field.line}: {field.name} is not carried over: {_NOTED[field.name]}"
        for field in config.fields
        if field.name in _NOTED
    ]
    place = Path(base)
    if not place.is_dir():  # the path inside a container; the folder often lies here
        place = folder / place.name
    return _planned(name or place.name, place, versions, tuple(notes))


def _planned(name: str, place: Path, versions: str, notes: tuple[str, ...]) -> ModelPlan:
    settings: dict[str, Any] = {} if versions == "latest" else {"versions": versions}
    common: dict[str, Any] = {"name": name, "settings": settings, "notes": notes}
    entries = place.iterdir() if place.is_dir() else ()
    found = sorted(
        (e for e in entries if VERSION_FOLDER.fullmatch(e.name)), key=lambda e: -int(e.name)
    )
    if not found:
        return ModelPlan(
            obstacle=f"{place} has no version folders",
            hint="base_path must be a folder on this machine with folders 1, 2, ...",
            **common,
        )
    newest = found[0]
    converted = newest / "model.onnx"
    common["version"] = newest.name
    if converted.is_file():
        return ModelPlan(source=str(converted), target="model.onnx", **common)
    return ModelPlan(
        obstacle=f"{newest} is a TensorFlow SavedModel, which no runtime here can run",
        hint=f"convert it, then import again: python -m tf2onnx.convert --saved-model {newest} "
        f"--output {converted}",
        **common,
    )


def _policy(policy: Message) -> str:
    for field in policy.fields:
        (value, *_) = field.values
        numbers = _numbers(value) if isinstance(value, Message) else []
        if field.name == "all":
            return "all"
        if field.name == "latest" and numbers:
            return f"latest:{numbers[0]}"
        if field.name == "specific" and numbers:
            return ",".join(numbers)
    return "latest"


def _numbers(message: Message) -> list[str]:
    return [
        value.text
        for field in message.fields
        for value in field.values
        if isinstance(value, Scalar) and value.kind == "number"
    ]


def _messages(message: Message, name: str) -> list[Message]:
    return [
        value
        for field in message.fields
        if field.name == name
        for value in field.values
        if isinstance(value, Message)
    ]


def _text(message: Message, name: str) -> str:
    for field in message.fields:
        for value in field.values:
            if field.name == name and isinstance(value, Scalar):
                return value.text
    return ""
