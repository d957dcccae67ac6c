"""The nouns on the wire, in the words of the Open Inference Protocol V2.

A tensor's ``data`` is always a C-contiguous ``numpy`` array of exactly ``shape``:

========  ==========================================================================
datatype  numpy dtype
========  ==========================================================================
BOOL      ``bool``
UINT8…64  ``uint8`` … ``uint64``; INT8…64: ``int8`` … ``int64``
FP16…64   ``float16``, ``float32``, ``float64``
BF16      ``uint16``: the raw bits, because numpy has no bfloat16 of its own
BYTES     ``object``: every element is a ``bytes``
========  ==========================================================================
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

DYNAMIC = -1
"""In a :class:`TensorSpec`, a dimension that the request decides."""

DTYPE_OF: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
"""V2 datatype name -> the dtype of ``Tensor.data`` (see the module's table)."""

DATATYPE_OF: dict[np.dtype[Any], str] = {
    dtype: name for name, dtype in DTYPE_OF.items() if name != "BF16"
}
"""The reverse of :data:`DTYPE_OF`; a bare ``uint16`` array is UINT16, never BF16."""


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, datatype and shape of one input or output; ``-1`` is a free dimension.

    ``optional`` inputs may be left out of a request.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


class ModelMetadata(msgspec.Struct, frozen=True):
    """What ``GET /v2/models/{name}`` tells: the public signature of a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    properties: dict[str, str] = {}


class Tensor(msgspec.Struct, gc=False):
    """One named array. ``data`` has exactly ``shape`` (see the module's table of dtypes)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: np.ndarray


class SharedMemoryRange(msgspec.Struct, frozen=True, gc=False):
    """Bytes of a registered region of shared memory."""

    region: str
    offset: int
    byte_size: int


class RequestedOutput(msgspec.Struct, gc=False):
    """One output the caller asked for. ``binary`` is None where the caller did not say.

    ``classification`` > 0 asks for the top-k classes as BYTES ``"value:index[:label]"``.
    ``shared_memory``: where it is to be put instead of into the answer.
    """

    name: str
    binary: bool | None = None
    classification: int = 0
    shared_memory: SharedMemoryRange | None = None


class InferenceRequest(msgspec.Struct):
    """One request, decoded but not yet checked against a model's signature.

    ``model_version`` "" means "the one the version policy serves". ``outputs`` None means
    all. ``timeout_ns`` 0 means the model's default, after which nobody waits any more; ``slo_ns``
    0 the model's own SLO, within which the answer is wanted; ``priority`` 0 the model's default
    too, 1 is the highest. ``sequence_id`` 0 or "": not part of a sequence. ``trace_context`` is the
    caller's ``traceparent`` (W3C Trace Context), as it came. ``caller``: whose sequence it is,
    "" for requests of none. Stamps are of the engine's clock.
    """

    model_name: str
    inputs: list[Tensor]
    model_version: str = ""
    id: str = ""
    outputs: list[RequestedOutput] | None = None
    parameters: dict[str, Any] | None = None
    timeout_ns: int = 0
    priority: int = 0
    tenant: str = ""
    arrived_ns: int = 0
    decoded_ns: int = 0
    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    trace_context: str = ""
    slo_ns: int = 0
    caller: str = ""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What a request consumed, as far as the task knows it (0 where it does not)."""

    tokens: int = 0


class InferenceResponse(msgspec.Struct, gc=False):
    """The answer to a request that succeeded, or one of several where a model streams them.

    ``outputs`` are in the order asked for; the last of a stream may have none.
    """

    model_name: str
    model_version: str
    id: str
    outputs: list[Tensor]
    parameters: dict[str, Any] | None = None
    usage: Usage | None = None


class ModelVersionStatus(msgspec.Struct, frozen=True):
    """One line of the repository index. ``state``: UNAVAILABLE, LOADING, READY, UNLOADING."""

    name: str
    version: str
    state: str
    reason: str = ""
