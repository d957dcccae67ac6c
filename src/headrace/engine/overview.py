"""Every version of every model on one line each, for operators."""

from __future__ import annotations

from typing import Any

from headrace.engine.catalog import ABSENT, Catalog
from headrace.engine.history import Histories
from headrace.engine.lobby import Lobby
from headrace.engine.residency import Residency
from headrace.types import ModelVersionStatus


def describe(
    catalog: Catalog, residency: Residency, histories: Histories, lobby: Lobby
) -> list[dict[str, Any]]:
    """By name and version: state, why, aliases; of what is in memory: size, use, processes."""
    lines = [_known(status, catalog, lobby) for status in catalog.statuses()]
    by_key = {(line["name"], line["version"]): line for line in lines}
    current = set(catalog.served())
    # The copy that serves last, so that it stands over one that leaves.
    for served in sorted(residency.places, key=lambda each: each in current):
        line = by_key.get((served.name, served.version))
        if line is not None:
            phase = histories.phase(residency.places[served].copy)
            line |= {
                "runtime": served.runtime,
                "pinned": residency.is_pinned(served),
                "standby": phase == "standby",
                **residency.describe(served),
            }
    return lines


def _known(status: ModelVersionStatus, catalog: Catalog, lobby: Lobby) -> dict[str, Any]:
    aliases = catalog.aliases(status.name).items()
    absent = status.reason == ABSENT
    return {
        "name": status.name,
        "version": status.version,
        "state": status.state,
        "reason": status.reason,
        "aliases": sorted([alias for alias, version in aliases if version == status.version]),
        "default": catalog.default(status.name) == status.version,
        "absent": absent,
        "waiting": lobby.waiting(status.name) if absent else 0,
    }
