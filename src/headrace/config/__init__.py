"""Every setting as a frozen value with a bound, a default, and the reason for the default.

Pure: reading files, environment and flags is ``loading.py``'s job, so that a configuration
can be made in a test, a notebook or the simulator without any of them.
"""

from __future__ import annotations

import msgspec

from headrace.config.model import (
    BatchConfig,
    BatchInputConfig,
    CacheConfig,
    ControlConfig,
    EnsembleStep,
    ModelConfig,
    QueueConfig,
    SequenceConfig,
    SloConfig,
    StateConfig,
    TensorConfig,
    WarmupConfig,
)
from headrace.config.server import (
    ServerConfig,
    SharedCacheConfig,
    TenantConfig,
    TlsConfig,
    TraceConfig,
)
from headrace.lifetimes import ResidencyConfig, RolloutConfig
from headrace.limits import GIB, Http2Limits, HttpLimits, Positive
from headrace.units import size_bytes

__all__ = [
    "COMPILED_CACHE_BYTES",
    "BatchConfig",
    "BatchInputConfig",
    "CacheConfig",
    "Config",
    "ControlConfig",
    "EnsembleStep",
    "Http2Limits",
    "HttpLimits",
    "ModelConfig",
    "QueueConfig",
    "ResidencyConfig",
    "RolloutConfig",
    "SequenceConfig",
    "ServerConfig",
    "SharedCacheConfig",
    "SloConfig",
    "StateConfig",
    "TenantConfig",
    "TensorConfig",
    "TlsConfig",
    "TraceConfig",
    "WarmupConfig",
]

COMPILED_CACHE_BYTES = 8 * 1024**3
"""Some sixty encoders of MiniLM's size, or a few models of a billion weights."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of ``headrace.toml``."""

    server: ServerConfig = ServerConfig()
    defaults: ModelConfig = ModelConfig()
    """Applies to every model; a model's own table overrides field by field."""

    models: dict[str, ModelConfig] = {}
    tenants: dict[str, TenantConfig] = {}
    """By name, as requests say it. ``"*"``: the terms of every name that is not listed, each
    by itself; without it they share one place, so that nobody gains by inventing names."""

    cache_dir: str = ""
    """For built graphs, compiled models and measured profiles. "" = ``$XDG_CACHE_HOME/headrace``;
    safe to delete at any time."""

    store_cache_bytes: Positive = 64 * GIB
    """That the models of one store (``s3://``, ``https://``) may take in ``cache_dir``."""

    store_redirect_hosts: tuple[str, ...] = ()
    """Hosts that a store (``https://``) may redirect to, beside its own, such as its CDN; ``*``:
    any. Others are refused: a store could lead the server to addresses that it alone can reach."""

    compiled_cache_bytes: int = COMPILED_CACHE_BYTES
    """That compiled models may take in ``cache_dir``; those used least recently go. 0 = none
    are kept."""

    @property
    def memory_budget_bytes(self) -> int:
        """Of each worker; 0: none."""
        text = self.server.memory_budget
        return size_bytes(text) // self.server.workers if text else 0

    def __post_init__(self) -> None:
        shares = {name: model.min_share for name, model in self.models.items() if model.min_share}
        if sum(shares.values()) > 1:
            told = ", ".join([f"{name} {share:g}" for name, share in sorted(shares.items())])
            raise ValueError(f"the min_share of all models may be 1 together, not more: {told}")
