"""Example requests made from a model's signature: for the documentation and its form."""

from __future__ import annotations

import base64
import struct
import zlib
from math import prod
from typing import Any

from headrace.types import DYNAMIC, ModelMetadata, TensorSpec

MAX_ELEMENTS = 64
"""Values that are written out. A picture has 150,000; nobody reads those."""

DYNAMIC_SIZE = 1
"""Stands for a free dimension: valid for every model and the smallest request there is."""

EMBEDDING_TEXTS = ["What drives the turbine?", "The headrace brings the water."]

IMAGE_TASKS = frozenset({"image-classification"})
"""Kinds of tasks whose BYTES are pictures: the file's bytes, in JSON as base64."""


def infer_example(metadata: ModelMetadata, task_kind: str = "tensor") -> dict[str, Any]:
    """A request that the model accepts, as the JSON of V2.

    A tensor of more than ``MAX_ELEMENTS`` elements has ``{"fill": value}`` for its data, which
    is not the protocol's: the form on the documentation page writes it out before it sends.
    """
    return {
        "inputs": [_tensor(spec, task_kind) for spec in metadata.inputs if not spec.optional],
    }


def is_complete(example: dict[str, Any]) -> bool:
    """Whether the example can be sent as it is (see :func:`infer_example`)."""
    return all(isinstance(tensor["data"], list) for tensor in example["inputs"])


def _tensor(spec: TensorSpec, task_kind: str) -> dict[str, Any]:
    shape = [DYNAMIC_SIZE if size == DYNAMIC else size for size in spec.shape]
    count = prod(shape)
    values = _values(spec.datatype, task_kind)
    data: object = {"fill": values[0]}
    if count <= MAX_ELEMENTS:
        data = [values[i % len(values)] for i in range(count)]
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape, "data": data}


def _values(datatype: str, task_kind: str) -> list[Any]:
    if datatype == "BYTES":
        return [_PICTURE if task_kind in IMAGE_TASKS else EMBEDDING_TEXTS[1]]
    if datatype == "BOOL":
        return [True, False]
    # Small whole numbers are in the range of every integer type, and of most vocabularies.
    return [0.1, 0.2, 0.3, 0.4] if datatype.startswith(("FP", "BF")) else [1, 2, 3, 4]


def _png(size: int) -> bytes:
    """A square of grey levels from dark to light; the format is RFC 2083."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        tagged = kind + data
        return struct.pack(">I", len(data)) + tagged + struct.pack(">I", zlib.crc32(tagged))

    row = b"\0" + bytes(column * 255 // (size - 1) for column in range(size))
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)  # 8 bits, grey
    pixels = zlib.compress(row * size)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


_PICTURE = base64.b64encode(_png(16)).decode()
