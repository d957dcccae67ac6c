"""TorchServe: ``config.properties``, and model archives (``.mar``: a zip with a manifest).

Formats: https://pytorch.org/serve/configuration.html and the manifest of its model archiver.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from headrace.errors import ConfigError, ModelLoadError
from headrace.repository.archives import Archive
from headrace.repository.archives import read_text as read_member
from headrace.repository.importing.files import (
    is_servable,
    json_object,
    natural_version,
    read_text,
    why_not,
)
from headrace.repository.importing.plan import ModelPlan, Plan, opened

PROPERTIES = "config.properties"
MANIFEST = "MAR-INF/MANIFEST.json"
MODEL_YAML = "model-config.yaml"

_NOT_EXPORTED = (
    "export it to ONNX where it was trained: torch.onnx.export(model, args, 'model.onnx')"
)
_WHY = {
    "management_address": "models are loaded over the V2 repository API, on the same port",
    "metrics_address": "metrics are at /metrics, on the same port",
    "install_py_dep_per_model": "nothing is installed when a model is loaded",
    "number_of_netty_threads": "connections are served by one event loop",
    "netty_client_threads": "connections are served by one event loop",
    "default_service_handler": "handlers are TorchServe's own",
    "maxBatchDelay": "a batch never waits for more rows",
    "handler": "handlers are TorchServe's own; the V2 protocol carries tensors",
    "deviceType": "models run on the CPU",
    "keystore": "tls takes PEM files",
    "keystore_pass": "tls takes PEM files",
}
_QUIET = {"inference_address", "model_store", "load_models", "models", "model_snapshot"}


def is_there(root: Path) -> bool:
    """Whether ``root`` looks like TorchServe's: a configuration or archives."""
    if root.is_file():
        return root.name == PROPERTIES or root.suffix == ".mar"
    return (root / PROPERTIES).is_file() or any(root.glob("*.mar"))


def read(root: Path) -> Plan:
    """Reads the configuration and the manifest of every archive.

    Raises:
        ConfigError: the configuration has lines that are none, or bad values.
    """
    folder = root if root.is_dir() else root.parent
    path = root if root.name == PROPERTIES else folder / PROPERTIES
    properties = _properties(read_text(path), path) if path.is_file() else {}
    server, notes = _server(properties, path)
    said = _models_said(properties, path)
    archives = [root] if root.suffix == ".mar" else _archives(folder, properties)
    wanted = properties.get("load_models", "all")
    if wanted not in ("all", "", "standalone"):
        named = {part.partition("=")[2] or part for part in wanted.split(",")}
        archives = [archive for archive in archives if archive.name in {n.strip() for n in named}]
    return Plan(
        kind="TorchServe",
        root=folder,
        models=tuple(_model(archive, said) for archive in archives),
        server=server,
        notes=tuple(notes),
    )


def _properties(text: str, path: Path) -> dict[str, str]:
    """Java's properties: ``key=value``, ``#`` comments, lines continued by a backslash."""
    table = {}
    for number, raw in enumerate(re.sub(r"\\\n\s*", "", text).splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#!":
            continue
        found = re.match(r"([\w.-]+)\s*[=:]\s*(.*)", line)
        if found is None:
            raise ConfigError(f"{path}:{number}: expected key=value, got {line[:40]!r}")
        table[found[1]] = found[2]
    return table


def _archives(folder: Path, properties: Mapping[str, str]) -> list[Path]:
    store = folder / properties.get("model_store", ".")
    if not store.is_dir() and (folder / "model-store").is_dir():
        store = folder / "model-store"
    return sorted(store.glob("*.mar")) if store.is_dir() else []


def _server(properties: Mapping[str, str], path: Path) -> tuple[dict[str, Any], list[str]]:
    server: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    if address := properties.get("inference_address"):
        parts = urlsplit(address)
        server |= {"host": parts.hostname or "127.0.0.1", "port": parts.port or 8080}
    if "certificate_file" in properties and "private_key_file" in properties:
        server["tls"] = {
            "certificate": properties["certificate_file"],
            "key": properties["private_key_file"],
        }
    if size := _number(properties, "max_request_size", path):
        server["limits"] = {"max_body_bytes": size}
    if count := _number(properties, "default_workers_per_model", path):
        defaults["instances"] = count
    queue = {
        field: number
        for name, field in (
            ("job_queue_size", "max_queue_size"),
            ("default_response_timeout", "timeout_s"),
        )
        if (number := _number(properties, name, path))
    }
    if queue:
        defaults["queue"] = queue
    used = {"certificate_file", "private_key_file", "max_request_size", "job_queue_size"}
    used |= {"default_workers_per_model", "default_response_timeout", *_QUIET}
    notes = [
        f"{path}: {name} is not carried over: {_WHY.get(name, 'there is no setting like it')}"
        for name in properties
        if name not in used
    ]
    tables = {"server": server, "defaults": defaults}
    return {name: table for name, table in tables.items() if table}, notes


def _number(properties: Mapping[str, str], name: str, path: Path) -> int:
    text = properties.get(name, "0").strip()
    if not text.isdigit():
        raise ConfigError(f"{path}: {name}: expected a whole number, got {text!r}")
    return int(text)


def _models_said(properties: Mapping[str, str], path: Path) -> dict[str, dict[str, Any]]:
    """Archive -> what ``models={...}`` says of it."""
    text = properties.get("models")
    if not text:
        return {}
    said = {}
    for versions in json_object(text, f"{path}: models").values():
        for settings in versions.values() if isinstance(versions, dict) else ():
            if isinstance(settings, dict) and "marName" in settings:
                said[str(settings["marName"])] = settings
    return said


def _model(archive: Path, said: Mapping[str, dict[str, Any]]) -> ModelPlan:
    try:
        with opened(archive) as content:
            if MANIFEST not in content.members:
                raise ModelLoadError(f"{archive} has no {MANIFEST}", hint="it is no model archive")
            manifest = json_object(read_member(content, MANIFEST), f"{archive}: {MANIFEST}")
            return _from_manifest(archive, content, manifest, said.get(archive.name, {}))
    except (ModelLoadError, ConfigError) as error:
        return ModelPlan(name=archive.stem, obstacle=error.message, hint=error.hint)


def _from_manifest(
    archive: Path, content: Archive, manifest: Mapping[str, Any], said: Mapping[str, Any]
) -> ModelPlan:
    model = manifest.get("model") or {}
    file = str(model.get("serializedFile") or "")
    settings = dict(said)
    if MODEL_YAML in content.members:
        settings = dict(_flat_yaml(read_member(content, MODEL_YAML))) | settings
    if model.get("handler"):
        settings["handler"] = model["handler"]
    common: dict[str, Any] = {
        "name": str(model.get("modelName") or archive.stem),
        "version": natural_version(model.get("modelVersion", "1")),
        "settings": _settings(settings),
        "notes": tuple(_notes(settings, archive)),
    }
    if file in content.members and is_servable(Path(file)):
        target = "model" + PurePosixPath(file).suffix.lower()
        return ModelPlan(archive=archive, source=file, target=target, **common)
    if not file:
        return ModelPlan(
            obstacle=f"{archive} holds code only (handler {model.get('handler')})",
            hint="write what the handler does as a headrace Python model: a class in model.py",
            **common,
        )
    obstacle, hint = why_not(Path(file), here="is of a kind that needs TorchServe")
    return ModelPlan(obstacle=f"in {archive}: {obstacle}", hint=hint or _NOT_EXPORTED, **common)


def _settings(said: Mapping[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, at in (
        ("batchSize", ("batching", "max_batch_size")),
        ("responseTimeout", ("queue", "timeout_s")),
        ("jobQueueSize", ("queue", "max_queue_size")),
    ):
        if isinstance(said.get(name), int) and said[name] > 0:
            table.setdefault(at[0], {})[at[1]] = said[name]
    if isinstance(said.get("minWorkers"), int) and said["minWorkers"] > 0:
        table["instances"] = said["minWorkers"]
    return table


def _notes(said: Mapping[str, Any], archive: Path) -> list[str]:
    used = {"batchSize", "responseTimeout", "jobQueueSize", "minWorkers", "maxWorkers", "marName"}
    return [
        f"{archive}: {name} is not carried over: {_WHY.get(name, 'there is no setting like it')}"
        for name in said
        if name not in used | {"defaultVersion"}
    ]


def _flat_yaml(text: str) -> Iterator[tuple[str, Any]]:
    """The plain values at the top of a YAML file; what is nested is TorchServe's own."""
    for line in text.splitlines():
        found = re.match(r"(\w+)\s*:\s*([^#]*)", line)
        if found is None:
            continue
        value = found[2].strip().strip("\"'")
        yield found[1], int(value) if value.isdigit() else value
