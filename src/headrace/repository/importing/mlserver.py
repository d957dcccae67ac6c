"""MLServer: ``settings.json`` for the server, ``model-settings.json`` in each model's folder.

The fields are those of ``mlserver.settings`` (https://mlserver.readthedocs.io/en/latest/reference/).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.config import ServerConfig
from headrace.errors import ModelLoadError
from headrace.repository.folders import list_folder
from headrace.repository.formats import find_model
from headrace.repository.importing.files import (
    is_servable,
    natural_version,
    read_json,
    read_text,
    why_not,
)
from headrace.repository.importing.plan import ModelPlan, Plan

MODEL_FILE = "model-settings.json"
SERVER_FILE = "settings.json"

_CONVERT = "a tree ensemble: convert it with onnxmltools to model.onnx"
_NOT_HERE = {
    "mlserver_xgboost": _CONVERT,
    "mlserver_lightgbm": _CONVERT,
    "mlserver_catboost": "it writes ONNX itself: model.save_model('model.onnx', format='onnx')",
    "mlserver_alibi_detect": "keep the detector where it runs, or write a Python model",
    "mlserver_alibi_explain": "keep the explainer where it runs, or write a Python model",
    "mlserver_mllib": "export the pipeline to ONNX with onnxmltools",
}
_SERVER_FIELDS = {"host": "host", "http_port": "port", "grpc_port": "grpc_port"}
_SERVER_FIELDS |= {"metrics_port": "metrics_port"}
_SERVER_WHY = {
    "parallel_workers": "instances of a model are set one by one; --workers shares the port",
    "extensions": "extensions of MLServer are not loaded",
    "cors_settings": "browsers reach the server through a proxy",
    "root_path": "routes begin at /",
    "logging_settings": "--log-level and --log-format say it",
    "kafka_enabled": "requests come over HTTP and gRPC only",
}
_MODEL_WHY = {
    "max_batch_time": "a batch never waits for more rows",
    "warm_workers": "every instance is loaded before the model is ready",
    "inputs": "read from the model's own file",
    "outputs": "read from the model's own file",
}
_QUIET = {"name", "implementation", "parameters", "platform", "versions", "debug"}


def model_files(root: Path) -> list[Path]:
    """Every ``model-settings.json`` of ``root`` and of the folders in it."""
    if not root.is_dir():
        return [root] if root.name == MODEL_FILE else []
    found = [root / MODEL_FILE, *sorted(root.glob(f"*/{MODEL_FILE}"))]
    return [path for path in found if path.is_file()]


def read(root: Path) -> Plan:
    """Reads the settings of every model below ``root``.

    Raises:
        ConfigError: a file is not JSON.
    """
    folder = root if root.is_dir() else root.parent
    server: dict[str, Any] = {}
    notes: list[str] = []
    if (folder / SERVER_FILE).is_file():
        server, notes = _server(read_json(folder / SERVER_FILE), folder / SERVER_FILE)
    return Plan(
        kind="MLServer",
        root=folder,
        models=tuple(_model(path) for path in model_files(root)),
        server=server,
        notes=tuple(notes),
    )


def _server(settings: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    table: dict[str, Any] = {}
    notes = []
    for name, value in settings.items():
        field = _SERVER_FIELDS.get(name)
        if field in ServerConfig.__struct_fields__:
            table[str(field)] = value
        elif name == "load_models_at_startup":
            if value is False:
                table["model_control"] = "explicit"
        elif name != "debug":
            why = _SERVER_WHY.get(name, "there is no setting like it")
            notes.append(f"{path}: {name} is not carried over: {why}")
    return ({"server": table} if table else {}), notes


def _model(path: Path) -> ModelPlan:
    settings = read_json(path)
    parameters = settings.get("parameters") or {}
    name = str(settings.get("name") or path.parent.resolve().name)
    uri = str(parameters.get("uri") or "")
    implementation = str(settings.get("implementation", ""))
    place = _source(path.parent, uri)
    common: dict[str, Any] = {
        "name": name,
        "version": natural_version(parameters.get("version", "1")),
        "settings": _settings(settings),
        "notes": tuple(_notes(settings, path)),
    }
    onnx = place if place.is_file() and is_servable(place) else _inner_onnx(place)
    if onnx is not None:
        target = "model" + onnx.suffix.lower()
        return ModelPlan(source=str(onnx), target=target, **common)
    if "huggingface" in implementation.lower():
        return _huggingface(place, parameters, common)
    obstacle, hint = _obstacle(implementation, place, uri)
    return ModelPlan(obstacle=obstacle, hint=hint, **common)


def _source(folder: Path, uri: str) -> Path:
    place = Path(uri.removeprefix("file://"))
    return place if place.is_absolute() else folder / place


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    if settings.get("max_batch_size"):
        table["batching"] = {"max_batch_size": int(settings["max_batch_size"])}
    if settings.get("cache_enabled"):
        table["response_cache"] = True
    if settings.get("parallel_workers"):
        table["instances"] = int(settings["parallel_workers"])
    return table


def _notes(settings: Mapping[str, Any], path: Path) -> list[str]:
    known = {"max_batch_size", "cache_enabled", "parallel_workers", *_QUIET}
    notes = [
        f"{path}: {name} is not carried over: {_MODEL_WHY.get(name, 'there is no setting like it')}"
        for name, value in settings.items()
        if name not in known and value
    ]
    parameters = settings.get("parameters") or {}
    notes += [
        f"{path}: parameters.{name} is not carried over: the model's file says what it takes"
        for name in ("content_type", "environment_tarball", "extra", "format")
        if parameters.get(name)
    ]
    return notes


def _inner_onnx(place: Path) -> Path | None:
    """The ONNX file of an MLflow folder (its ``MLmodel`` names it), or the only one there is."""
    if not place.is_dir():
        return None
    if (place / "MLmodel").is_file():
        text = read_text(place / "MLmodel")
        found = re.search(r"^  onnx:\n(?:    .*\n)*?    data: *(\S+)", text, re.MULTILINE)
        return place / found[1] if found and (place / found[1]).is_file() else None
    files = [entry for entry in list_folder(place) if entry.suffix.lower() == ".onnx"]
    return files[0] if len(files) == 1 else None


def _huggingface(place: Path, parameters: Mapping[str, Any], common: dict[str, Any]) -> ModelPlan:
    """A local folder is served as it is; a name on the hub must be fetched first."""
    try:
        local = place.is_dir() and find_model(place, list_folder(place), runtime="auto", root=place)
    except ModelLoadError as error:
        return ModelPlan(obstacle=error.message, hint=error.hint, **common)
    if local and parameters.get("uri"):
        return ModelPlan(source=str(place), **common)
    wanted = (parameters.get("extra") or {}).get("pretrained_model", "the model")
    return ModelPlan(
        obstacle=f"{wanted} is a model on the Hugging Face hub, not a folder here",
        hint="headrace pull fetches models; then serve that folder",
        **common,
    )


def _obstacle(implementation: str, place: Path, uri: str) -> tuple[str, str]:
    package = implementation.partition(".")[0]
    if package == "mlserver_sklearn" or place.suffix.lower() in (".joblib", ".pkl", ".pickle"):
        file = place if uri else place / "model.joblib"
        return why_not(file.with_suffix(file.suffix or ".joblib"), here="is no ONNX model")
    if package in _NOT_HERE:
        return f"{implementation} needs the library that trained it", _NOT_HERE[package]
    if package == "mlserver_mlflow":
        return (
            f"{place} has no ONNX flavour",
            "log the model with mlflow.onnx.log_model(...), and import that one",
        )
    if not implementation:
        return "it names no implementation", "add the field `implementation`, or serve the file"
    return (
        f"{implementation} is a Python class written for MLServer's interface",
        "write its predict() as a headrace Python model: a class with type hints in model.py",
    )
