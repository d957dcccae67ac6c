"""The OpenAPI 3.1 description of every route, with examples from the models being served.

A pure function of the models, so the description cannot fall behind them; a test compares
its paths with the routes of the application. What JSON Schema cannot say (that ``data`` has
as many elements as ``shape`` multiplies to, which names and shapes a model has) is said in
words and answered with 400.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.frontends.examples import EMBEDDING_TEXTS, infer_example, is_complete
from headrace.frontends.openapi_control import CONTROL_SCHEMAS, CONTROL_TAG, control_paths
from headrace.frontends.openapi_schemas import SCHEMAS, Schema, embeddings_request, ref
from headrace.types import DYNAMIC, ModelMetadata

JSON = "application/json"
BINARY = "application/octet-stream"

_ERRORS = {
    400: "Malformed, or not what the model's signature asks for.",
    403: "From a web page of another site, for a host that is not known here, or "
    "switched off by the operator.",
    404: "No such model, version or route.",
    405: "The route exists for another method; see the Allow header.",
    408: "The request was not sent in time.",
    413: "The body is larger than the server's limit.",
    415: "The Content-Encoding is none that this server reads, or the Content-Type a form's.",
    417: "An Expect header other than 100-continue.",
    431: "The headers are larger than the server's limit.",
    500: "The model failed.",
    501: "Understood, but not something this model or server does.",
    503: "Not ready, or full; Retry-After says when to come again.",
    504: "The request's time ran out.",
}

_BEFORE_ROUTING = frozenset({400, 408, 413, 415, 417, 431, 503})
"""Refused before the route is known, so in V2's shape even where the route speaks OpenAI's."""

_EVERYWHERE = (405, *_BEFORE_ROUTING)
_MODEL = (404, *_EVERYWHERE)
_EXECUTION = (500, 501, 504, *_MODEL)

# The header belongs to this kind of body alone, which OpenAPI's parameters cannot say.
_BINARY_BODY = (
    "The binary tensor data extension: the JSON of an inference request, whose length "
    "is in `Inference-Header-Content-Length`, followed by the bytes of those inputs that have "
    "the parameter `binary_data_size`, in order. Little-endian, row-major; each BYTES element "
    "behind a 4-byte length."
)


class DescribedModel(msgspec.Struct, frozen=True):
    """A model that serves, as much of it as the documentation shows."""

    metadata: ModelMetadata
    task_kind: str = "tensor"

    @property
    def embeds(self) -> bool:
        """Whether ``/v1/embeddings`` can serve it."""
        return self.task_kind == EMBEDDING


EMBEDDING = "text-embedding"
"""Task kind of the models that the OpenAI API can serve."""


def build_openapi(
    models: Sequence[DescribedModel], *, version: str, control: bool = False
) -> dict[str, Any]:
    """The document as JSON values; ``models`` give the examples.

    ``control``: the routes that control the server are there too.
    """
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "headrace",
            "version": version,
            "description": (
                "The Open Inference Protocol V2 over HTTP, the embeddings of the OpenAI API,"
                " and metrics for Prometheus."
            ),
        },
        "tags": [
            {"name": "inference", "description": "Ask a model."},
            {"name": "models", "description": "What is served, and what it takes."},
            {"name": "health", "description": "For load balancers and people on call."},
            {"name": "documentation", "description": "This."},
        ],
        "paths": {
            **_inference_paths(models),
            **_model_paths(models),
            **_health_paths(),
            **_documentation_paths(),
        },
        "components": {
            "schemas": {**SCHEMAS, "EmbeddingsRequest": embeddings_request(_dimensions(models))}
        },
    }
    if control:
        versions = [v for each in models for v in each.metadata.versions]
        document["tags"].append(CONTROL_TAG)
        document["paths"] |= control_paths(
            _model_parameter(models),
            _path_parameter("version", versions),
            _errors((403, 501, *_EVERYWHERE)),
            _errors((403, 501, *_MODEL)),
        )
        document["components"]["schemas"] |= CONTROL_SCHEMAS
    return document


def _dimensions(models: Sequence[DescribedModel]) -> list[int]:
    """Sizes of vectors that can be asked for; none where a model does not say its own."""
    sizes = {model.metadata.outputs[0].shape[-1] for model in models if model.embeds}
    return [] if DYNAMIC in sizes else sorted(sizes)


def _inference_paths(models: Sequence[DescribedModel]) -> dict[str, Any]:
    infer = {
        "tags": ["inference"],
        "summary": "Infer",
        "description": (
            "Runs the model on the inputs. Names, datatypes and shapes are those of the "
            "model's metadata; `data` has as many elements as `shape` multiplies to."
        ),
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": ref("InferRequest"), **_infer_examples(models)},
                BINARY: {"schema": {"type": "string", "description": _BINARY_BODY}},
            },
        },
        "responses": {
            "200": {
                "description": "The outputs, in the order asked for.",
                "content": {
                    JSON: {"schema": ref("InferResponse")},
                    BINARY: {"schema": {"type": "string", "description": _BINARY_BODY}},
                },
            },
            **_errors(_EXECUTION),
        },
    }
    embeddings = {
        "tags": ["inference"],
        "summary": "Embed texts",
        "operationId": "create_embeddings",
        "description": "OpenAI's embeddings, for models whose task is text embedding.",
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": ref("EmbeddingsRequest"), **_embedding_examples(models)},
            },
        },
        "responses": {
            "200": _answer("One vector a text, in the order of the texts.", "EmbeddingsResponse"),
            **_errors(_EXECUTION, "OpenAIError"),
        },
    }
    paths: dict[str, Any] = {
        "/v1/embeddings": {"post": embeddings},
        "/v1/models/{model}:predict": {
            "parameters": [_path_parameter("model", ())],
            "post": _predict(),
        },
    }
    # Without names as examples: a tool would combine each with the body for another model.
    for path, parameters, suffix in _versioned("infer", ()):
        operation = {**infer, "operationId": f"infer{suffix}"}
        paths[path] = {"parameters": parameters, "post": operation}
    for what, media in (("generate", JSON), ("generate_stream", "text/event-stream")):
        for path, parameters, suffix in _versioned(what, ()):
            operation = {**_generate(media), "operationId": f"{what}{suffix}"}
            paths[path] = {"parameters": parameters, "post": operation}
    return paths


def _generate(media: str) -> dict[str, Any]:
    return {
        "tags": ["inference"],
        "summary": "Generate, in one answer" if media == JSON else "Generate, answer by answer",
        "description": (
            "Triton's generate extension: members of the body are inputs by name, and the "
            "members of an answer outputs by name."
        ),
        "requestBody": {"required": True, "content": {JSON: {"schema": {"type": "object"}}}},
        "responses": {
            "200": {"description": "Outputs by name.", "content": {media: {"schema": {}}}},
            **_errors(_EXECUTION),
        },
    }


def _predict() -> dict[str, Any]:
    return {
        "tags": ["inference"],
        "summary": "Predict rows",
        "operationId": "predict",
        "description": (
            "Rows as JSON objects (the V1 protocol of KServe and TensorFlow Serving): a value "
            "for each input of the model or column of the table, one prediction a row."
        ),
        "requestBody": {"required": True, "content": _json("PredictRequest")},
        "responses": {
            "200": _answer("One prediction a row, in order.", "PredictResponse"),
            **_errors(_EXECUTION),
        },
    }


def _model_paths(models: Sequence[DescribedModel]) -> dict[str, Any]:
    index = {
        "tags": ["models"],
        "summary": "Every version and its state",
        "operationId": "repository_index",
        "requestBody": {"required": False, "content": _json("RepositoryIndexRequest")},
        "responses": {
            "200": _answer("Sorted by name and version.", "RepositoryIndex"),
            **_errors(_EVERYWHERE),
        },
    }
    paths: dict[str, Any] = {
        "/v2": _get("models", "Server metadata", "server_metadata", _json("ServerMetadata")),
        "/v2/models": _get("models", "Names of all models", "list_models", _json("ModelList")),
        "/v2/repository/index": {"post": index},
        **_openai_model_paths(models),
    }
    for what, summary, schema in (
        ("", "Metadata: inputs and outputs", "ModelMetadata"),
        ("ready", "Is it ready", "ModelReady"),
        ("config", "Configuration, as Triton shows it", "ModelConfig"),
    ):
        for path, parameters, suffix in _versioned(what, models):
            name = f"model_{what or 'metadata'}{suffix}"
            operation = _get("models", summary, name, _json(schema), errors=_MODEL)
            paths[path] = {"parameters": parameters, **operation}
    return paths


def _openai_model_paths(models: Sequence[DescribedModel]) -> dict[str, Any]:
    error = "OpenAIError"
    every = _get(
        "models",
        "Models for the OpenAI API",
        "openai_models",
        _json("OpenAIModelList"),
        error=error,
    )
    one = _get(
        "models",
        "One model for the OpenAI API",
        "openai_model",
        _json("OpenAIModel"),
        error=error,
        errors=_MODEL,
    )
    parameter = _model_parameter([model for model in models if model.embeds])
    return {
        "/v1/models": every,
        "/v1/models/{model}": {"parameters": [parameter], **one},
    }


def _health_paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for path, summary, name, schema in (
        ("/v2/health/live", "Is the process alive", "live", "Live"),
        ("/v2/health/ready", "Can it take requests", "ready", "Ready"),
        ("/healthz", "Is the process alive, in a word", "healthz", "Health"),
    ):
        paths[path] = _get("health", summary, name, _json(schema))
        # A probe that says no is an answer, not an error.
        paths[path]["get"]["responses"]["503"] = _answer("Not now.", schema, "Error")
    text = {"text/plain": {"schema": {"type": "string"}}}
    paths["/metrics"] = _get("health", "Metrics for Prometheus", "metrics", text)
    return paths


def _documentation_paths() -> dict[str, Any]:
    tag = "documentation"
    description = {JSON: {"schema": {"type": "object"}}}
    return {
        "/": _get(tag, "What is served here", "landing", _HTML),
        "/docs": _get(tag, "This description, for people", "docs", _HTML),
        "/openapi.json": _get(tag, "This description", "openapi", description),
    }


def _get(
    tag: str,
    summary: str,
    name: str,
    content: dict[str, Any],
    *,
    error: str = "Error",
    errors: Sequence[int] = _EVERYWHERE,
) -> dict[str, Any]:
    return {
        "get": {
            "tags": [tag],
            "summary": summary,
            "operationId": name,
            "responses": {
                "200": {"description": "OK", "content": content},
                **_errors(errors, error),
            },
        }
    }


def _json(schema: str) -> dict[str, Any]:
    return {JSON: {"schema": ref(schema)}}


_HTML: dict[str, Any] = {"text/html": {"schema": {"type": "string"}}}


def _answer(description: str, *schemas: str) -> dict[str, Any]:
    choices = [ref(schema) for schema in schemas]
    schema = choices[0] if len(choices) == 1 else {"anyOf": choices}
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _errors(statuses: Sequence[int], schema: str = "Error") -> dict[str, Any]:
    return {
        str(status): _answer(
            _ERRORS[status],
            *dict.fromkeys((schema, "Error" if status in _BEFORE_ROUTING else schema)),
        )
        for status in sorted(statuses)
    }


def _versioned(
    what: str, models: Sequence[DescribedModel]
) -> tuple[tuple[str, list[Schema], str], ...]:
    """The route without and with a version: path, parameters, suffix of the operation's id."""
    end = f"/{what}" if what else ""
    model = _model_parameter(models)
    version = _path_parameter("version", [v for each in models for v in each.metadata.versions])
    return (
        (f"/v2/models/{{model}}{end}", [model], ""),
        (f"/v2/models/{{model}}/versions/{{version}}{end}", [model, version], "_version"),
    )


def _model_parameter(models: Sequence[DescribedModel]) -> Schema:
    return _path_parameter("model", [model.metadata.name for model in models])


def _path_parameter(name: str, examples: Sequence[str]) -> Schema:
    schema: Schema = {"type": "string", "minLength": 1, "pattern": "^[^/]+$"}
    if examples:
        schema["examples"] = sorted(set(examples))
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _infer_examples(models: Sequence[DescribedModel]) -> dict[str, Any]:
    examples = {}
    for model in models:
        value = infer_example(model.metadata, model.task_kind)
        if is_complete(value):
            name = model.metadata.name
            examples[name] = {"summary": f"for the model {name}", "value": value}
    return {"examples": examples} if examples else {}


def _embedding_examples(models: Sequence[DescribedModel]) -> dict[str, Any]:
    examples = {
        model.metadata.name: {
            "summary": f"two texts for the model {model.metadata.name}",
            "value": {"model": model.metadata.name, "input": EMBEDDING_TEXTS},
        }
        for model in models
        if model.embeds
    }
    return {"examples": examples} if examples else {}
