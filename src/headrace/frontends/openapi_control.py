"""The part of the OpenAPI description that is about controlling a running server."""

from __future__ import annotations

from typing import Any

from headrace.frontends.openapi_schemas import Schema, a_list, an_object, ref

_STRING: Schema = {"type": "string"}
_BOOL: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}

_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"

CONTROL_TAG = {
    "name": "control",
    "description": (
        "Load and unload models (with model_control explicit or watch), which version answers, "
        "statistics, traces, the log."
    ),
}

_DURATION = an_object({"count": _COUNT, "ns": _COUNT})
_TRACE_LEVEL = a_list({"type": "string", "enum": ["OFF", "TIMESTAMPS", "TENSORS"]})

CONTROL_SCHEMAS: dict[str, Schema] = {
    "RepositoryLoadRequest": {
        "type": "object",
        "properties": {
            "parameters": {
                "type": "object",
                "properties": {
                    "config": {
                        "type": ["string", "object"],
                        "description": "A ModelConfig as JSON, in place of `config.pbtxt`.",
                    }
                },
                "patternProperties": {
                    "^file:": {
                        "type": "string",
                        "contentEncoding": "base64",
                        "pattern": _BASE64,
                        "description": "A file in place of the model's folder: `file:1/model.onnx`",
                    }
                },
                "additionalProperties": False,
            }
        },
    },
    "RepositoryUnloadRequest": {
        "type": "object",
        "properties": {
            "parameters": {"type": "object", "properties": {"unload_dependents": _BOOL}}
        },
    },
    "ModelOverview": a_list(
        {
            "type": "object",
            "properties": {
                "name": _STRING,
                "version": _STRING,
                "state": _STRING,
                "reason": _STRING,
                "aliases": a_list(_STRING),
                "default": _BOOL,
                "absent": _BOOL,
                "size_bytes": _COUNT,
            },
            "required": ["name", "version", "state"],
        }
    ),
    "ModelHistory": a_list(
        an_object(
            {
                "at": {"type": "number"},
                "version": _STRING,
                "copy": _COUNT,
                "event": _STRING,
                "state": _STRING,
                "phase": _STRING,
                "reason": _STRING,
                "lasted_s": {"type": "number"},
            }
        )
    ),
    "PromoteRequest": an_object({"version": _STRING}, {"alias": _STRING}),
    "RollbackRequest": {"type": "object", "properties": {"alias": _STRING}},
    "PinRequest": {"type": "object", "properties": {"pinned": _BOOL}},
    "ModelAliases": an_object(
        {"name": _STRING, "aliases": {"type": "object", "additionalProperties": _STRING}}
    ),
    "ModelPinned": an_object({"name": _STRING, "pinned": _BOOL}),
    "RepositoryLoaded": an_object({"name": _STRING, "load": _BOOL}),
    "RepositoryUnloaded": an_object({"name": _STRING, "unload": _BOOL}),
    "Duration": _DURATION,
    "SharedMemoryRegion": an_object(
        {"key": _STRING, "byte_size": {"type": "integer"}}, {"offset": {"type": "integer"}}
    ),
    "SharedMemoryRegions": a_list(
        an_object({"name": _STRING, "key": _STRING, "offset": _COUNT, "byte_size": _COUNT})
    ),
    "ModelStatistics": an_object(
        {
            "model_stats": a_list(
                an_object(
                    {
                        "name": _STRING,
                        "version": _STRING,
                        "last_inference": _COUNT,
                        "inference_count": _COUNT,
                        "execution_count": _COUNT,
                        "inference_stats": {
                            "type": "object",
                            "additionalProperties": ref("Duration"),
                        },
                        "response_stats": {"type": "object"},
                        "batch_stats": a_list({"type": "object"}),
                        "memory_usage": a_list({"type": "object"}),
                    }
                )
            )
        }
    ),
    "SettingsUpdate": {
        "type": "object",
        "description": (
            "Some of the settings that GET shows, and their new values; null takes one back to "
            "what it was at the start, or, of a model, to the server's. Where files are is not "
            "for a client to say."
        ),
    },
    "TraceSettings": {
        "type": "object",
        "properties": {
            "trace_level": _TRACE_LEVEL,
            "trace_rate": _STRING,
            "trace_count": _STRING,
            "log_frequency": _STRING,
            "trace_file": _STRING,
            "trace_mode": _STRING,
        },
    },
    "LogSettings": {
        "type": "object",
        "properties": {
            "log_file": _STRING,
            "log_info": _BOOL,
            "log_warning": _BOOL,
            "log_error": _BOOL,
            "log_verbose_level": _COUNT,
            "log_format": {"enum": ["default", "ISO8601"]},
        },
    },
}


def control_paths(
    model: Schema, version: Schema, everywhere: dict[str, Any], of_a_model: dict[str, Any]
) -> dict[str, Any]:
    """The paths of ``rest_control.py``.

    Args:
        model, version: the parameters of paths.
        everywhere: the answers of errors that any route may give.
        of_a_model: those of a route that names a model.
    """
    repository: Schema = {**model, "name": "repository", "schema": _STRING | {"minLength": 1}}
    paths: dict[str, Any] = {}
    for prefix, parameters, suffix in (
        ("/v2/repository", [], ""),
        ("/v2/repository/{repository}", [repository], "_in"),
    ):
        if suffix:
            body, answer = "RepositoryIndexRequest", "RepositoryIndex"
            operation = _post("Every version and its state", "index" + suffix, body, answer)
            paths[f"{prefix}/index"] = _path(parameters, everywhere, post=operation)
        for what, body, answer in (
            ("load", "RepositoryLoadRequest", "RepositoryLoaded"),
            ("unload", "RepositoryUnloadRequest", "RepositoryUnloaded"),
        ):
            operation = _post(f"{what.title()} a model", f"{what}_model{suffix}", body, answer)
            path = f"{prefix}/models/{{model}}/{what}"
            paths[path] = _path([*parameters, model], of_a_model, post=operation)
    paths |= _version_paths(model, everywhere, of_a_model)
    for path, parameters, name in (
        ("/v2/models/stats", [], "statistics"),
        ("/v2/models/{model}/stats", [model], "model_statistics"),
        ("/v2/models/{model}/versions/{version}/stats", [model, version], "version_statistics"),
    ):
        operation = _get("Counts and durations", name, "ModelStatistics")
        paths[path] = _path(parameters, of_a_model if parameters else everywhere, get=operation)
    for path, parameters, name, schema in (
        ("/v2/trace/setting", [], "trace_settings", "TraceSettings"),
        ("/v2/models/{model}/trace/setting", [model], "model_trace_settings", "TraceSettings"),
        ("/v2/logging", [], "log_settings", "LogSettings"),
    ):
        paths[path] = _path(
            parameters,
            of_a_model if parameters else everywhere,
            get=_get("Settings", name, schema),
            post=_post(
                "Change settings; null takes one back", f"set_{name}", "SettingsUpdate", schema
            ),
        )
    return paths | _shared_memory_paths({**repository, "name": "region"}, everywhere)


def _version_paths(
    model: Schema, everywhere: dict[str, Any], of_a_model: dict[str, Any]
) -> dict[str, Any]:
    """Which version answers, what is in memory, and what became of it."""
    overview = _get("Every version: aliases, size, use", "model_overview", "ModelOverview")
    history = _get("What became of a model", "model_history", "ModelHistory")
    paths = {
        "/v2/repository/models": _path([], everywhere, get=overview),
        "/v2/models/{model}/history": _path([model], of_a_model, get=history),
    }
    for what, summary, answer in (
        ("promote", "Which version an alias stands for", "ModelAliases"),
        ("rollback", "Back to the version before", "ModelAliases"),
        ("pin", "Keep a model in memory", "ModelPinned"),
    ):
        operation = _post(summary, f"{what}_model", f"{what.title()}Request", answer)
        operation["requestBody"]["required"] = what == "promote"
        path = f"/v2/repository/models/{{model}}/{what}"
        paths[path] = _path([model], of_a_model, post=operation)
    return paths


def _shared_memory_paths(region: Schema, everywhere: dict[str, Any]) -> dict[str, Any]:
    """Of the system's; CUDA's have routes as well, because clients ask, and nothing to offer."""
    root = "/v2/systemsharedmemory"
    paths: dict[str, Any] = {}
    for place, parameters, suffix in (("", [], ""), ("/region/{region}", [region], "_region")):
        name = f"shared_memory{suffix}"
        status = _get("What is registered", name, "SharedMemoryRegions")
        paths[f"{root}{place}/status"] = _path(parameters, everywhere, get=status)
        leave = _without_answer(_get("Unregister", f"unregister_{name}", "SharedMemoryRegions"))
        paths[f"{root}{place}/unregister"] = _path(parameters, everywhere, post=leave)
    enter = _post("Register", "register_shared_memory", "SharedMemoryRegion", "SharedMemoryRegions")
    enter["requestBody"]["required"] = True
    path = f"{root}/region/{{region}}/register"
    paths[path] = _path([region], everywhere, post=_without_answer(enter))
    return paths


def _without_answer(operation: dict[str, Any]) -> dict[str, Any]:
    operation["responses"]["200"] = {"description": "Done."}
    return operation


def _path(parameters: list[Schema], errors: dict[str, Any], **operations: Any) -> dict[str, Any]:
    for operation in operations.values():
        operation["responses"] |= errors
    return {**({"parameters": parameters} if parameters else {}), **operations}


def _get(summary: str, name: str, answer: str) -> dict[str, Any]:
    content = {"application/json": {"schema": ref(answer)}}
    return {
        "tags": ["control"],
        "summary": summary,
        "operationId": name,
        "responses": {"200": {"description": "OK", "content": content}},
    }


def _post(summary: str, name: str, body: str, answer: str) -> dict[str, Any]:
    content = {"application/json": {"schema": ref(body)}}
    return {
        **_get(summary, name, answer),
        "requestBody": {"required": False, "content": content},
    }
