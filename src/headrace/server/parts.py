"""Parts of a server process that are made from its configuration, perhaps none."""

from __future__ import annotations

from pathlib import Path

from headrace.clock import MonotonicClock
from headrace.config import Config, ServerConfig
from headrace.engine.recording import Recorder
from headrace.engine.shared_cache import SharedTier
from headrace.frontends.byte_account import ByteAccount, default_total_bytes
from headrace.machine import memory_bytes
from headrace.server.group import Group
from headrace.telemetry.metrics import Metrics


def shared_cache_of(server: ServerConfig, metrics: Metrics) -> SharedTier | None:
    """The cache that servers share; None: none is configured."""
    shared = server.shared_cache
    if not shared.url:
        return None
    return SharedTier(shared, MonotonicClock.now_ns, metrics.shared_cache_asked)


def recorder_of(server: ServerConfig, group: Group | None) -> Recorder | None:
    """What records the scheduler's events; None: nothing is to be recorded."""
    if not server.record:
        return None
    suffix = "" if group is None or server.workers < 2 else f".{group.seat.index}"
    return Recorder(Path(server.record + suffix), server.record_max_bytes)


def byte_account_of(config: Config) -> ByteAccount:
    """The account of this process, as large as the configuration or the machine says."""
    server = config.server
    limits = server.limits
    usable_bytes = memory_bytes()
    if config.memory_budget_bytes:
        usable_bytes = min(usable_bytes, config.memory_budget_bytes * server.workers)
    return ByteAccount(
        limits.max_memory_bytes
        or default_total_bytes(usable_bytes, server.workers, limits.max_body_bytes)
    )
