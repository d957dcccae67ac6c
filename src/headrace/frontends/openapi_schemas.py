"""The schemas of OpenAPI's ``components``: what bodies look like, as JSON Schema 2020-12."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.frontends.codecs.openai import MAX_INPUTS
from headrace.frontends.codecs.v1_json import INSTANCES_MAX
from headrace.types import DTYPE_OF

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_BOOL: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def ref(name: str) -> Schema:
    """A reference to one of :data:`SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def an_object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> Schema:
    """An object; other members are allowed, as the protocols allow them."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def a_list(items: Schema, **bounds: int) -> Schema:
    """An array."""
    return {"type": "array", "items": items, **bounds}


_DATATYPE: Schema = {"type": "string", "enum": list(DTYPE_OF)}
_REQUEST_SHAPE = a_list(_COUNT, maxItems=32)
_SIGNATURE_SHAPE = {
    **a_list({"type": "integer", "minimum": -1}),
    "description": "-1 is a dimension that the request decides.",
}
_MICROSECONDS: Schema = {
    "description": "In microseconds; 0 means the model's default.",
    "oneOf": [
        {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
        {"type": "string", "pattern": "^[0-9]{1,15}$"},
    ],
}

_INFER_INPUT = an_object(
    {"name": _STRING, "shape": _REQUEST_SHAPE, "datatype": _DATATYPE},
    {
        "data": {
            "type": "array",
            "description": (
                "Row-major, flat or nested as `shape` says; as many elements as the product of "
                "`shape`. Numbers, booleans for BOOL, strings for BYTES. Left out where the "
                "tensor follows the JSON as bytes."
            ),
        },
        "parameters": {
            "type": ["object", "null"],
            "properties": {
                "binary_data_size": {
                    **_COUNT,
                    "description": "Bytes of this tensor behind the JSON part of the body.",
                }
            },
        },
    },
)

_INFER_OUTPUT_WANTED = an_object(
    {"name": _STRING},
    {
        "parameters": {
            "type": ["object", "null"],
            "properties": {
                "binary_data": {**_BOOL, "description": "Answer with bytes behind the JSON."}
            },
        }
    },
)

_INFER_REQUEST = an_object(
    {"inputs": a_list(ref("InferInput"))},
    {
        "id": {**_STRING, "description": "Comes back with the answer."},
        "outputs": {
            "type": ["array", "null"],
            "items": ref("InferRequestedOutput"),
            "description": "All outputs where it is left out.",
        },
        "parameters": {
            "type": ["object", "null"],
            "properties": {
                "timeout": _MICROSECONDS,
                "priority": {"oneOf": _MICROSECONDS["oneOf"]},
                "binary_data_output": {
                    **_BOOL,
                    "description": "All outputs as bytes behind the JSON.",
                },
            },
        },
    },
)

_INFER_RESPONSE = an_object(
    {
        "model_name": _STRING,
        "model_version": _STRING,
        "outputs": a_list(
            an_object(
                {"name": _STRING, "shape": _REQUEST_SHAPE, "datatype": _DATATYPE},
                {"data": {"type": "array"}, "parameters": {"type": "object"}},
            )
        ),
    },
    {"id": _STRING, "parameters": {"type": "object"}},
)

_TENSOR_METADATA = an_object(
    {"name": _STRING, "datatype": _DATATYPE, "shape": _SIGNATURE_SHAPE},
    {"optional": {**_BOOL, "description": "Present and true where it may be left out."}},
)

_EMBEDDINGS_RESPONSE = an_object(
    {
        "object": {"const": "list"},
        "data": a_list(
            an_object(
                {
                    "object": {"const": "embedding"},
                    "index": _COUNT,
                    "embedding": {
                        "oneOf": [
                            a_list({"type": "number"}),
                            {
                                "type": "string",
                                "description": "base64 of little-endian float32.",
                                "contentEncoding": "base64",
                            },
                        ]
                    },
                }
            )
        ),
        "model": _STRING,
        "usage": an_object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
    }
)

_OPENAI_MODEL = an_object(
    {
        "id": _STRING,
        "object": {"const": "model"},
        "created": {"type": "integer", "description": "Unix time, seconds."},
        "owned_by": _STRING,
    }
)


def embeddings_request(dimensions: Sequence[int]) -> Schema:
    """The body of ``POST /v1/embeddings``; ``dimensions`` are those that models here have."""
    size: Schema = {"type": ["integer", "null"], "minimum": 1}
    if dimensions:
        size = {"enum": [*dimensions, None]}
    request = an_object(
        {
            "model": {**_STRING, "minLength": 1},
            "input": {
                "oneOf": [
                    {**_STRING, "minLength": 1},
                    a_list({**_STRING, "minLength": 1}, minItems=1, maxItems=MAX_INPUTS),
                ],
                "description": "A text or a list of texts.",
            },
        },
        {
            "encoding_format": {"enum": ["float", "base64", None], "default": "float"},
            "dimensions": {
                **size,
                "description": "Only the model's own number of dimensions is accepted.",
            },
            "user": {"type": ["string", "null"]},
        },
    )
    return {**request, "additionalProperties": False}


SCHEMAS: dict[str, Schema] = {
    "Error": an_object(
        {"error": {**_STRING, "description": "What was wrong, and what was expected."}},
        {
            "code": {**_STRING, "description": "Stable name for programs."},
            "hint": {**_STRING, "description": "What to do about it."},
        },
    ),
    "OpenAIError": an_object(
        {
            "error": an_object(
                {
                    "message": _STRING,
                    "type": _STRING,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                }
            )
        }
    ),
    "ServerMetadata": an_object(
        {"name": _STRING, "version": _STRING, "extensions": a_list(_STRING)}
    ),
    "Live": an_object({"live": _BOOL}),
    "Ready": an_object({"ready": _BOOL}, {"waiting_for": a_list(_STRING)}),
    "Health": an_object({"status": {"enum": ["ok", "stopping"]}}),
    "ModelReady": an_object({"name": _STRING, "ready": _BOOL}),
    "ModelList": an_object({"models": a_list(_STRING)}),
    "TensorMetadata": _TENSOR_METADATA,
    "ModelMetadata": an_object(
        {
            "name": _STRING,
            "versions": a_list(_STRING),
            "platform": _STRING,
            "inputs": a_list(ref("TensorMetadata")),
            "outputs": a_list(ref("TensorMetadata")),
        },
        {"properties": {"type": "object", "additionalProperties": _STRING}},
    ),
    "ModelConfig": an_object(
        {"name": _STRING}, {"platform": _STRING, "max_batch_size": {"type": "integer"}}
    ),
    "RepositoryIndexRequest": an_object(
        {}, {"ready": {**_BOOL, "description": "Only versions that are ready."}}
    ),
    "RepositoryIndex": a_list(
        an_object(
            {
                "name": _STRING,
                "version": _STRING,
                "state": {"enum": ["UNAVAILABLE", "LOADING", "READY", "UNLOADING"]},
                "reason": _STRING,
            }
        )
    ),
    "InferInput": _INFER_INPUT,
    "InferRequestedOutput": _INFER_OUTPUT_WANTED,
    "InferRequest": _INFER_REQUEST,
    "InferResponse": _INFER_RESPONSE,
    "EmbeddingsRequest": embeddings_request(()),
    "EmbeddingsResponse": _EMBEDDINGS_RESPONSE,
    "PredictRequest": an_object(
        {"instances": {"type": "array", "minItems": 1, "maxItems": INSTANCES_MAX}}
    ),
    "PredictResponse": an_object({"predictions": {"type": "array"}}),
    "OpenAIModel": _OPENAI_MODEL,
    "OpenAIModelList": an_object({"object": {"const": "list"}, "data": a_list(ref("OpenAIModel"))}),
}
