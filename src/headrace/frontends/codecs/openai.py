"""``POST /v1/embeddings``: OpenAI's JSON <-> texts and vectors. No I/O.

Shapes as in OpenAI's published specification: ``input`` is a text or a list of texts,
``encoding_format`` ``float`` (the default) or ``base64`` (little-endian float32, what
openai-python asks for by itself), and every vector has the index of its text.
"""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec
import numpy as np

from headrace.errors import InferenceFailed, InvalidRequest
from headrace.frontends.codecs import json_guard
from headrace.types import DYNAMIC

MAX_INPUTS = 2048
"""Texts in one request: OpenAI's own limit, which its clients know and split by."""

Encoding = Literal["float", "base64"]


class EmbeddingsRequest(msgspec.Struct, frozen=True):
    """What was asked for. ``dimensions`` None: whatever the model has. ``texts`` is not empty."""

    model: str
    texts: list[str]
    encoding: Encoding = "float"
    dimensions: int | None = None
    user: str = ""


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Encoding | None = None
    dimensions: int | None = None
    user: str | None = None


_decoder = msgspec.json.Decoder(_Body)
_encode = msgspec.json.Encoder().encode


def decode_embeddings(body: bytes | memoryview) -> EmbeddingsRequest:
    """Reads and checks the body of a request.

    Raises:
        InvalidRequest: what is wrong; the detail ``param`` names the field.
    """
    raw = json_guard.decode(_decoder, body, "request body")
    if not raw.model:
        raise _invalid("model", "'model' is empty, expected the name of a model")
    if raw.dimensions is not None and raw.dimensions < 1:
        raise _invalid("dimensions", f"'dimensions' is {raw.dimensions}, expected at least 1")
    return EmbeddingsRequest(
        raw.model,
        _texts(raw.input),
        raw.encoding_format or "float",
        raw.dimensions,
        raw.user or "",
    )


def check_dimensions(request: EmbeddingsRequest, dimensions: int) -> None:
    """Refuses a size that the model does not have; to be called before the model runs.

    A vector is never cut: only models trained for it (Matryoshka) stay meaningful, and
    nothing here knows whether this one was.

    Args:
        request: as it came.
        dimensions: the model's; -1 (DYNAMIC) where its signature does not say.

    Raises:
        InvalidRequest: ``dimensions`` was asked for and differs from the model's.
    """
    if request.dimensions is None or request.dimensions == dimensions:
        return
    known = dimensions != DYNAMIC
    what = f"has {dimensions} dimensions" if known else "does not say how many dimensions it has"
    raise _invalid(
        "dimensions",
        f"model '{request.model}' {what}, {request.dimensions} were asked for",
        code="unsupported_parameter",
        hint="leave 'dimensions' out" + (f", or send {dimensions}" if known else ""),
    )


def encode_embeddings(
    model: str, embeddings: np.ndarray, *, encoding: Encoding, tokens: int
) -> bytes:
    """The body of the answer.

    Args:
        model: name to show.
        embeddings: float32, ``[texts, dimensions]``, in the order of the texts.
        encoding: of every vector.
        tokens: of all texts together.

    Raises:
        InferenceFailed: the vectors hold NaN or infinity, which JSON has no number for.
    """
    if not np.isfinite(embeddings).all():
        raise InferenceFailed(
            f"model '{model}' returned NaN or infinity for one of the texts",
            code="nonfinite_output",
            model=model,
        )
    vectors: list[Any]
    if encoding == "base64":
        rows = np.ascontiguousarray(embeddings, dtype="<f4")
        vectors = [msgspec.Raw(b'"' + base64.b64encode(row) + b'"') for row in rows]
    else:
        vectors = embeddings.tolist()
    return _encode(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": vector}
                for index, vector in enumerate(vectors)
            ],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _texts(given: str | list[str | int | list[int]]) -> list[str]:
    if isinstance(given, str):
        given = [given]
    if not given:
        raise _invalid("input", "'input' is an empty list, expected at least one text")
    if len(given) > MAX_INPUTS:
        raise _invalid(
            "input",
            f"'input' has {len(given)} texts, expected at most {MAX_INPUTS}",
            hint="send several requests",
        )
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) != len(given):
        raise _invalid(
            "input",
            "'input' holds token numbers, expected texts: another model's tokens mean"
            " nothing to this one",
            code="token_input",
            hint="send the text itself; with LangChain set check_embedding_ctx_length=False",
        )
    if not all(texts):
        raise _invalid(f"input[{texts.index('')}]", "'input' holds an empty text")
    return texts


def _invalid(param: str, message: str, *, code: str = "", hint: str = "") -> InvalidRequest:
    return InvalidRequest(message, code=code, hint=hint, param=param)
