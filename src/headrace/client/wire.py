"""Tensors and texts -> whole HTTP requests; answers -> what is wrong with them, if anything.

Requests are encoded once, before the run. Answers are checked every time, because a server
that answers quickly with the wrong thing must not win: the status, that every output the
metadata promises is there with data, and that binary sizes add up. Numbers are not decoded
(msgspec steps over them), so a check costs microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from headrace.client.connection import BinaryConnection, Connection
from headrace.client.spec import WireName
from headrace.client.target import Target
from headrace.errors import ConfigError
from headrace.types import Tensor

Check = Callable[[int, int, bytes], str]
"""``(status, header_length, body)`` -> what is wrong, "" where nothing is."""

MAX_REASON = 160
"""Characters kept of a server's error text."""

CONNECTIONS: dict[WireName, type[Connection]] = {
    "json": Connection,
    "binary": BinaryConnection,
    "openai": Connection,
}
"""Which connection fills in what the check of a wire form needs."""


class HttpHead(msgspec.Struct, frozen=True):
    """What every request of a run begins with: the path, and headers beside our own."""

    target: Target
    path: str
    headers: tuple[tuple[str, str], ...] = ()

    def request(
        self, body: bytes, *, header_length: int | None = None, method: str = "POST"
    ) -> bytes:
        """A complete HTTP/1.1 request; ``header_length`` marks the V2 binary extension."""
        binary = header_length is not None
        lines = [
            f"{method} {self.target.prefix}{self.path} HTTP/1.1",
            f"Host: {self.target.authority}",
            "User-Agent: headrace-bench",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        if method != "GET":
            lines.append(f"Content-Type: application/{'octet-stream' if binary else 'json'}")
            lines.append(f"Content-Length: {len(body)}")
        if binary:
            lines.append(f"Inference-Header-Content-Length: {header_length}")
        return "\r\n".join((*lines, "", "")).encode("latin-1") + body


# V2 as JSON


def json_body(tensors: Sequence[Tensor]) -> bytes:
    """The body of a V2 request with flat ``data`` arrays.

    Raises:
        ConfigError: a BF16 tensor, which JSON cannot carry.
    """
    return msgspec.json.encode(
        {
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": tensor.shape,
                    "data": _plain(tensor),
                }
                for tensor in tensors
            ]
        }
    )


def _plain(tensor: Tensor) -> list[Any]:
    if tensor.datatype == "BF16":
        raise ConfigError(
            f"input {tensor.name!r} is BF16, which JSON cannot carry", hint="add --binary"
        )
    flat = tensor.data.ravel()
    if tensor.datatype == "BYTES":
        return [element.decode() for element in flat]
    if tensor.datatype in {"FP16", "FP32"}:  # as short as exact: 0.1, not 0.10000000149011612
        return [float(str(value)) for value in flat]
    values: list[Any] = flat.tolist()
    return values


# V2 with the binary tensor extension


def binary_body(
    tensors: Sequence[Tensor], extra: Mapping[str, Any] | None = None
) -> tuple[bytes, int]:
    """The body and the length of its JSON part; outputs are asked for in binary, too.

    ``extra`` are members of the request beside its inputs (``id``, ``outputs`` ...).

    Source: https://github.com/triton-inference-server/server, protocol/extension_binary_data.md
    """
    blobs = [_blob(tensor) for tensor in tensors]
    extra = extra or {}
    header = msgspec.json.encode(
        {
            **extra,
            "parameters": {"binary_data_output": True, **(extra.get("parameters") or {})},
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": len(blob)},
                }
                for tensor, blob in zip(tensors, blobs, strict=True)
            ],
        }
    )
    return header + b"".join(blobs), len(header)


def _blob(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        return b"".join(
            len(element).to_bytes(4, "little") + element for element in tensor.data.ravel()
        )
    little = tensor.data.dtype.newbyteorder("<")
    return np.ascontiguousarray(tensor.data, little).tobytes()


# answers


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw(b"")


class _Answer(msgspec.Struct):
    outputs: list[_Output]


class _Embedding(msgspec.Struct):
    embedding: msgspec.Raw


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


_answer = msgspec.json.Decoder(_Answer)
_embeddings = msgspec.json.Decoder(_Embeddings)


def v2_check(expected: frozenset[str]) -> Check:
    """For JSON and binary answers: every expected output is there, and all have their data.

    Nothing expected means that any output will do, but one there must be.
    """

    def check(status: int, header_length: int, body: bytes) -> str:
        if status != 200:
            return error_text(body)
        split = header_length if header_length >= 0 else len(body)
        try:
            answer = _answer.decode(memoryview(body)[:split])
        except msgspec.DecodeError as error:
            return f"not a V2 answer: {error}"[:MAX_REASON]
        blobs = len(body) - split
        for output in answer.outputs:
            size = output.parameters.get("binary_data_size")
            if isinstance(size, int):
                blobs -= size
            elif not memoryview(output.data).nbytes:
                return f"output {output.name!r} has no data"
        if blobs:
            return f"binary sizes are wrong by {abs(blobs)} bytes"
        if not answer.outputs:
            return "an answer without outputs"
        missing = expected.difference(output.name for output in answer.outputs)
        return f"outputs missing: {', '.join(sorted(missing))}" if missing else ""

    return check


def embeddings_check(texts: int | None) -> Check:
    """For ``/v1/embeddings``: as many embeddings as texts were sent (None: at least one)."""

    def check(status: int, header_length: int, body: bytes) -> str:
        del header_length
        if status != 200:
            return error_text(body)
        try:
            count = len(_embeddings.decode(body).data)
        except msgspec.DecodeError as error:
            return f"not a list of embeddings: {error}"[:MAX_REASON]
        if count == texts or (texts is None and count):
            return ""
        return f"{count} embeddings for {texts or 'some'} texts"

    return check


def error_text(body: bytes) -> str:
    """The message in an error body of V2 or OpenAI, or the beginning of whatever it is."""
    try:
        error = msgspec.json.decode(body)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (msgspec.DecodeError, KeyError, TypeError):
        text = body[: 4 * MAX_REASON].decode("utf-8", "replace")
    # One line of printable characters: a server's text must not steer our terminal.
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line[:MAX_REASON] or "no reason given"
