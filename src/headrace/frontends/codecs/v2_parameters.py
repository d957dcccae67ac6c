"""Parameters of V2 requests and tensors, which are the same in JSON and in protobuf.

Sources: Triton's extensions for parameters, sequences, schedule policy and shared memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, Protocol

import numpy as np

from headrace.errors import InvalidRequest, PayloadTooLarge
from headrace.limits import HttpLimits
from headrace.types import InferenceRequest, SharedMemoryRange, Tensor

NS_PER_US = 1000


class SharedMemory(Protocol):
    """What a codec asks of shared memory; ``frontends.shared_memory.RequestMemory`` is it."""

    def reserve(self, where: SharedMemoryRange) -> None:
        """An output is to be put there. Raises InvalidRequest, Forbidden."""
        ...

    def read(
        self, where: SharedMemoryRange, *, name: str, datatype: str, shape: tuple[int, ...]
    ) -> np.ndarray:
        """The tensor ``name``. Raises InvalidRequest, Forbidden."""
        ...

    def write(self, where: SharedMemoryRange, tensor: Tensor) -> int:
        """Puts an output there; how many bytes it has. Raises InvalidRequest."""
        ...


class _NoSharedMemory:
    """For whoever has none."""

    def reserve(self, where: SharedMemoryRange) -> None:
        raise _unknown(where)

    def read(
        self, where: SharedMemoryRange, *, name: str, datatype: str, shape: tuple[int, ...]
    ) -> np.ndarray:
        del name, datatype, shape
        raise _unknown(where)

    def write(self, where: SharedMemoryRange, tensor: Tensor) -> int:
        del tensor
        raise _unknown(where)


def _unknown(where: SharedMemoryRange) -> InvalidRequest:
    return InvalidRequest(
        f"Unable to find shared memory region: '{where.region}'", code="unknown_region"
    )


NO_SHARED_MEMORY: SharedMemory = _NoSharedMemory()


def apply_parameters(request: InferenceRequest, parameters: dict[str, Any]) -> None:
    """Sets the fields of ``request`` that its parameters speak of; keeps all of them.

    Raises:
        InvalidRequest: one of a known name has a value that it cannot have.
    """
    request.parameters = parameters
    # The schedule policy extension: microseconds, and 0 for "no preference".
    request.timeout_ns = NS_PER_US * whole_number(parameters, "timeout")
    request.priority = whole_number(parameters, "priority")
    if "sequence_id" in parameters:
        request.sequence_id = _sequence_id(parameters["sequence_id"])
        request.sequence_start = flag(parameters, "sequence_start")
        request.sequence_end = flag(parameters, "sequence_end")


def check_parameters(parameters: Sized, limits: HttpLimits) -> None:
    """Refuses more parameters than ``limits`` allow, of a request or of a tensor.

    Raises:
        PayloadTooLarge: there are more.
    """
    if len(parameters) > limits.max_parameters:
        raise too_many("parameters", len(parameters), "max_parameters", limits.max_parameters)


def too_many(what: str, got: int, limit: str, allowed: int) -> PayloadTooLarge:
    """The error for more inputs, outputs, parameters or dimensions than the setting ``limit``."""
    return PayloadTooLarge(
        f"the request has {got} {what}, more than {allowed}",
        code="request_too_complex",
        hint=f"send fewer, or raise {limit}",
        limit=limit,
        allowed=allowed,
        got=got,
    )


def whole_number(parameters: Mapping[str, Any], name: str) -> int:
    """0 where it is not said.

    Raises:
        InvalidRequest: it is no whole number, or a negative or absurd one.
    """
    value = parameters.get(name, 0)
    if type(value) is int and 0 <= value < 2**53:
        return value
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    raise _wrong(name, "a whole number of at least 0", value)


def flag(parameters: Mapping[str, Any], name: str) -> bool:
    """False where it is not said.

    Raises:
        InvalidRequest: it is neither true nor false.
    """
    value = parameters.get(name, False)
    if type(value) is not bool:
        raise _wrong(name, "true or false", value)
    return value


def _sequence_id(value: object) -> int | str:
    if type(value) is int and 0 <= value < 2**64:
        return value
    if type(value) is str:
        return value
    raise _wrong("sequence_id", "a whole number of at least 0 or a string", value)


def shared_memory_of(parameters: Mapping[str, Any], tensor: str) -> SharedMemoryRange | None:
    """Where a tensor lies, or is to be put; None where it travels with the request.

    Raises:
        InvalidRequest: the range is not one.
    """
    region = parameters.get("shared_memory_region")
    if region is None:
        return None
    if type(region) is not str or not region:
        raise _wrong("shared_memory_region", "the name of a region", region, tensor)
    if "shared_memory_byte_size" not in parameters:
        raise _wrong("shared_memory_byte_size", "a number of bytes", None, tensor)
    return SharedMemoryRange(
        region,
        whole_number(parameters, "shared_memory_offset"),
        whole_number(parameters, "shared_memory_byte_size"),
    )


def _wrong(name: str, expected: str, value: object, tensor: str = "") -> InvalidRequest:
    whose = f" of tensor '{tensor}'" if tensor else ""
    return InvalidRequest(
        f"parameter '{name}'{whose} must be {expected}, got {value!r}",
        code="wrong_parameter",
        parameter=name,
    )
