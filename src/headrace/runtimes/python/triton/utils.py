"""``triton_python_backend_utils`` as models import it: names and behaviour of Triton's own.

Lives in the child process. ``install`` puts it into ``sys.modules`` under Triton's name; the
model's calls to other models and its answers go through the ``Session`` given to it.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.runtimes.python.triton import metrics, model_config, objects
from headrace.runtimes.python.triton.objects import (
    DATATYPE_NUMBERS,
    SESSIONS,
    InferenceRequest,
    InferenceResponse,
    Session,
    Tensor,
    TritonModelException,
)
from headrace.runtimes.python.triton.wire import from_bytes, to_bytes
from headrace.types import DATATYPE_OF, DTYPE_OF

MODULE = "triton_python_backend_utils"

TRITONSERVER_MEMORY_CPU = 0
TRITONSERVER_MEMORY_GPU = 1

_TRITON_OF = {f"TYPE_{'STRING' if name == 'BYTES' else name}": name for name in DTYPE_OF}


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """The input of this name, or None."""
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    """The output of this name, or None. Raises TritonModelException: the response is an error."""
    error = response.error()
    if error is not None:
        raise TritonModelException(error.message())
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    """The ``input`` entry of this name, or None."""
    return next((each for each in model_config.get("input", ()) if each["name"] == name), None)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    """The ``output`` entry of this name, or None."""
    return next((each for each in model_config.get("output", ()) if each["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether the configuration says so."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def triton_to_numpy_type(data_type: int) -> Any:
    """The numpy type for a number of ``model_config.proto``."""
    found = next((name for name, number in DATATYPE_NUMBERS.items() if number == data_type), None)
    return np.object_ if found == "BYTES" else None if found is None else DTYPE_OF[found].type


def numpy_to_triton_type(data_type: Any) -> int | None:
    """The reverse."""
    return DATATYPE_NUMBERS.get(DATATYPE_OF.get(np.dtype(data_type), ""))


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """The numpy type for ``TYPE_FP32`` and the like."""
    name = _TRITON_OF.get(triton_type_string)
    return None if name is None else np.object_ if name == "BYTES" else DTYPE_OF[name].type


def serialize_byte_tensor(input_tensor: np.ndarray) -> np.ndarray:
    """BYTES elements with their lengths, as an array of one object; of none if it is empty."""
    if not input_tensor.size:
        return np.empty([0], dtype=object)
    return np.asarray(to_bytes(input_tensor), dtype=object)


def deserialize_bytes_tensor(encoded_tensor: Any) -> np.ndarray:
    """The reverse, of the bytes: an array of one dimension."""
    return from_bytes(encoded_tensor, (-1,))


def get_model_dir() -> str:
    """The folder of the model's version."""
    return _MODEL_DIR[-1] if _MODEL_DIR else ""


_MODEL_DIR: list[str] = []


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether another model can be asked."""
    return bool(SESSIONS) and SESSIONS[-1].is_ready(model_name, model_version)


def load_model(model_name: str, config: Any = "", files: Any = None) -> None:
    """Not from within a model: ``headrace`` is told by its operator what to load.

    Raises:
        TritonModelException: always.
    """
    del config, files
    raise TritonModelException(f"model '{model_name}' cannot be loaded by another model here")


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """As :func:`load_model`."""
    del unload_dependents
    raise TritonModelException(f"model '{model_name}' cannot be unloaded by another model here")


class PreferredMemory:
    """Where a caller would like outputs; there is main memory only."""

    def __init__(
        self, preferred_memory_type: int = TRITONSERVER_MEMORY_CPU, preferred_device_id: int = 0
    ) -> None:
        self.preferred_memory_type = preferred_memory_type
        self.preferred_device_id = preferred_device_id


class Logger:
    """Lines in the server's log, through the child's standard error."""

    INFO, WARNING, ERROR, VERBOSE = "INFO", "WARNING", "ERROR", "VERBOSE"

    @classmethod
    def log(cls, message: str, level: str = INFO) -> None:
        """One line."""
        print(f"{level}: {message}", file=sys.stderr, flush=True)

    @classmethod
    def log_info(cls, message: str) -> None:
        """One line."""
        cls.log(message, cls.INFO)

    @classmethod
    def log_warn(cls, message: str) -> None:
        """One line."""
        cls.log(message, cls.WARNING)

    @classmethod
    def log_error(cls, message: str) -> None:
        """One line."""
        cls.log(message, cls.ERROR)

    @classmethod
    def log_verbose(cls, message: str) -> None:
        """Nothing: the server's own level is not known here."""


def install(session: Session, folder: str) -> types.ModuleType:
    """Makes ``import triton_python_backend_utils`` work in this process."""
    module = types.ModuleType(MODULE, __doc__)
    for source in (objects, model_config, metrics, sys.modules[__name__]):
        for name, value in vars(source).items():
            made_here = isinstance(value, type | types.FunctionType) and (
                value.__module__ == source.__name__
            )
            if (made_here and name[0] != "_") or name.startswith("TRITONSERVER_"):
                setattr(module, name, value)
    sys.modules[MODULE] = module
    SESSIONS.append(session)
    _MODEL_DIR.append(folder)
    return module
