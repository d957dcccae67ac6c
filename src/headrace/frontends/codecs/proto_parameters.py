"""Parameters of requests and answers as protobuf: ``map<string, InferParameter>``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_INT64_END = 2**63


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``map<string, InferParameter>`` as plain values; what has no value is left out."""
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        chosen = parameter.WhichOneof("parameter_choice")
        if chosen is not None:
            found[name] = getattr(parameter, chosen)
    return found


def write_parameters(target: Any, parameters: Mapping[str, Any]) -> None:
    """The reverse.

    In the three kinds that every dialect has, where there is one of them for the value: KServe's
    and MLServer's clients know no ``double_param`` and no ``uint64_param``.
    """
    for name, value in parameters.items():
        told = target[name]
        if isinstance(value, bool):
            told.bool_param = value
        elif isinstance(value, int) and -_INT64_END <= value < _INT64_END:
            told.int64_param = value
        elif isinstance(value, int) and 0 <= value < 2 * _INT64_END:
            told.uint64_param = value
        elif isinstance(value, float):
            told.double_param = value
        else:
            told.string_param = str(value).encode("utf-8", "replace").decode()
