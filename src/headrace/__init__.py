"""headrace: the inference system around a model.

The public names are looked up when they are first used (PEP 562), so ``import headrace``
costs nothing and pulls in no runtime, web or array library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.cli.convert import export_sklearn
    from headrace.config import Config, ModelConfig, ServerConfig
    from headrace.errors import (
        CapacityError,
        HeadraceError,
        ModelError,
        OperatorError,
        RequestError,
    )
    from headrace.loading import load_config
    from headrace.repository.pull import pull
    from headrace.types import (
        InferenceRequest,
        InferenceResponse,
        ModelMetadata,
        Tensor,
        TensorSpec,
    )

__version__ = "0.1.0"

__all__ = [
    "CapacityError",
    "Config",
    "HeadraceError",
    "InferenceRequest",
    "InferenceResponse",
    "ModelConfig",
    "ModelError",
    "ModelMetadata",
    "OperatorError",
    "RequestError",
    "ServerConfig",
    "Tensor",
    "TensorSpec",
    "__version__",
    "export_sklearn",
    "load_config",
    "pull",
]

_HOME = {
    "CapacityError": "errors",
    "Config": "config",
    "HeadraceError": "errors",
    "InferenceRequest": "types",
    "InferenceResponse": "types",
    "ModelConfig": "config",
    "ModelError": "errors",
    "ModelMetadata": "types",
    "OperatorError": "errors",
    "RequestError": "errors",
    "ServerConfig": "config",
    "Tensor": "types",
    "TensorSpec": "types",
    "export_sklearn": "cli.convert",
    "load_config": "loading",
    "pull": "repository.pull",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    value = getattr(import_module(f"headrace.{_HOME[name]}"), name)
    globals()[name] = value  # the next look finds it without us
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
