"""Which models there are, which version answers to a name, and what is wrong with the rest."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.engine.served import ServedModel
from headrace.errors import ModelNotFound, ModelNotReady
from headrace.types import ModelMetadata, ModelVersionStatus

UNLOADED = "unloaded"
"""Why a version is not served that somebody wanted gone; Triton's word."""


class Catalog:
    """Names and versions -> served models; the read side that the protocols' metadata needs."""

    def __init__(self) -> None:
        # (name, version) and (name, "") -> model: one look-up on the path of a request.
        self._routes: dict[tuple[str, str], ServedModel] = {}
        self._statuses: dict[tuple[str, str], ModelVersionStatus] = {}

    def resolve(self, name: str, version: str = "") -> ServedModel:
        """The model that answers; without a version the highest that is ready.

        Raises:
            ModelNotFound: no model of this name, or not in this version.
            ModelNotReady: known, and not ready: the message says why.
        """
        try:
            return self._routes[name, version]
        except KeyError:
            error = self._missing(name, version)
        raise error

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """The public signature; without a version, all that are ready are named.

        Raises as :meth:`resolve`.
        """
        metadata = self.resolve(name, version).metadata
        if version:
            return metadata
        ready = [each.version for each in self.served() if each.name == name]
        return msgspec.structs.replace(metadata, versions=tuple(sorted(ready, key=_number)))

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """Triton's ModelConfig as JSON-able values. Raises as :meth:`resolve`."""
        return self.resolve(name, version).triton_config()

    def task_kind(self, name: str, version: str = "") -> str:
        """The name of the model's task ("tensor" for none). Raises as :meth:`resolve`."""
        task = self.resolve(name, version).task
        return "tensor" if task is None else task.kind

    def is_ready(self, name: str = "", version: str = "") -> bool:
        """One model, or with no name: all that are known, and at least one.

        An ensemble is only as ready as its steps.

        Raises:
            ModelNotFound: ``name`` was given and is not known.
        """
        if name:
            try:
                served = self.resolve(name, version)
            except ModelNotReady:
                return False
            steps = [(step.model, step.version) for step in served.config.ensemble]
            return all(step in self._routes and self.is_ready(*step) for step in steps)
        return bool(self._statuses) and all(s.state == "READY" for s in self.statuses())

    def statuses(self) -> list[ModelVersionStatus]:
        """Every version known, sorted by name and version."""
        return [self._statuses[key] for key in sorted(self._statuses, key=_by_name_and_number)]

    def set_status(self, name: str, version: str, state: str, reason: str = "") -> None:
        """Records what the index shows for a version."""
        self._statuses[name, version] = ModelVersionStatus(name, version, state, reason)

    def publish(self, served: ServedModel) -> None:
        """Routes requests for this version to ``served`` from now on."""
        self._routes[served.name, served.version] = served
        self.set_status(served.name, served.version, "READY")
        self._update_routes(served.name)

    def withdraw(
        self, served: ServedModel, state: str = "UNAVAILABLE", reason: str = UNLOADED
    ) -> None:
        """No new request reaches ``served``. Nothing else where another has taken its place."""
        if self._routes.get((served.name, served.version)) is served:
            del self._routes[served.name, served.version]
            self.set_status(served.name, served.version, state, reason)
            self._update_routes(served.name)

    def is_routed(self, name: str, version: str) -> bool:
        """Whether this very version answers requests now."""
        return (name, version) in self._routes

    def forget_failures(self, name: str) -> None:
        """What could not be loaded before is no longer shown."""
        for key, status in tuple(self._statuses.items()):
            if key[0] == name and status.state == "UNAVAILABLE" and status.reason != UNLOADED:
                del self._statuses[key]

    def served(self) -> list[ServedModel]:
        """Every version that is ready, once each."""
        return [model for (_, version), model in self._routes.items() if version]

    def steps_below(self, name: str) -> set[str]:
        """The models that an ensemble is made of, and those that these are; none for others."""
        below: set[str] = set()
        left = [name]
        while left:
            steps = {s for served in self.served() if served.name in left for s in served.steps}
            left = list(steps - below)
            below |= steps
        return below

    def _update_routes(self, name: str) -> None:
        versions = [model for model in self.served() if model.name == name]
        self._routes.pop((name, ""), None)
        if versions:
            latest = max(versions, key=lambda model: _number(model.version))
            self._routes[name, ""] = latest

    def _missing(self, name: str, version: str) -> ModelNotFound | ModelNotReady:
        known = {n: s for (n, _), s in self._statuses.items()}
        if name not in known:
            return ModelNotFound(
                f"Request for unknown model: '{name}' is not found",
                hint=f"the models here are {sorted(known)}" if known else "no model is loaded",
                model=name,
            )
        statuses = [s for s in self.statuses() if s.name == name]
        versions = [s.version for s in statuses]
        if version and version not in versions:
            return ModelNotFound(
                f"Request for unknown model: '{name}' version {version} is not found",
                hint=f"the versions here are {versions}",
                model=name,
                version=version,
            )
        status = next((s for s in statuses if s.version == version), statuses[-1])
        number = f" version {status.version}" if status.version else ""
        return ModelNotReady(
            f"Request for unknown model: '{name}'{number} is not ready: "
            f"{status.state}{', ' + status.reason if status.reason else ''}",
            model=name,
            version=status.version,
            state=status.state,
        )


def _number(version: str) -> tuple[int, str]:
    return (int(version), "") if version.isascii() and version.isdigit() else (-1, version)


def _by_name_and_number(key: tuple[str, str]) -> tuple[str, tuple[int, str]]:
    return key[0], _number(key[1])
