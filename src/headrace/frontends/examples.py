"""Example requests made from a model's signature: for the documentation and its form."""

from __future__ import annotations

from math import prod
from typing import Any

from headrace.types import DYNAMIC, ModelMetadata, TensorSpec

MAX_ELEMENTS = 64
"""Values that are written out. A picture has 150,000; nobody reads those."""

DYNAMIC_SIZE = 1
"""Stands for a free dimension: valid for every model and the smallest request there is."""

EMBEDDING_TEXTS = ["What drives the turbine?", "The headrace brings the water."]

_VALUES: dict[str, list[Any]] = {"BOOL": [True, False], "BYTES": ["some text"]}


def infer_example(metadata: ModelMetadata) -> dict[str, Any]:
    """A request that the model accepts, as the JSON of V2.

    A tensor of more than ``MAX_ELEMENTS`` elements has ``{"fill": value}`` for its data, which
    is not the protocol's: the form on the documentation page writes it out before it sends.
    """
    return {
        "inputs": [_tensor(spec) for spec in metadata.inputs if not spec.optional],
    }


def is_complete(example: dict[str, Any]) -> bool:
    """Whether the example can be sent as it is (see :func:`infer_example`)."""
    return all(isinstance(tensor["data"], list) for tensor in example["inputs"])


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [DYNAMIC_SIZE if size == DYNAMIC else size for size in spec.shape]
    count = prod(shape)
    data: object
    if count > MAX_ELEMENTS:
        data = {"fill": _values(spec.datatype)[0]}
    else:
        values = _values(spec.datatype)
        data = [values[i % len(values)] for i in range(count)]
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape, "data": data}


def _values(datatype: str) -> list[Any]:
    known = _VALUES.get(datatype)
    if known is not None:
        return known
    # Small whole numbers are in the range of every integer type, and of most vocabularies.
    return [0.1, 0.2, 0.3, 0.4] if datatype.startswith(("FP", "BF")) else [1, 2, 3, 4]
