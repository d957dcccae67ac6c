"""A stand-in for what the REST application asks of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import ModelNotFound, ModelNotReady
from headrace.types import ModelMetadata, ModelVersionStatus


class FakeEngineView:
    """Implements ``frontends.rest.EngineView`` over plain values.

    Args:
        models: ready models by name; each is ready in all of its versions.
        kinds: task kinds that are not "tensor", by name.
        loading: names of models that are not ready yet, with the reason.
    """

    def __init__(
        self,
        models: Mapping[str, ModelMetadata],
        *,
        kinds: Mapping[str, str] | None = None,
        loading: Mapping[str, str] | None = None,
    ) -> None:
        self.models = dict(models)
        self.kinds = dict(kinds or {})
        self.loading = dict(loading or {})

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Raises ModelNotFound or ModelNotReady."""
        if name in self.loading:
            raise ModelNotReady(
                f"model '{name}' is loading", model=name, retry_after_ns=1_500_000_000
            )
        found = self.models.get(name)
        if found is None or (version and version not in found.versions):
            raise ModelNotFound(f"Request for unknown model: '{name}' is not found", model=name)
        return found

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """As :meth:`metadata`."""
        found = self.metadata(name, version)
        return {"name": found.name, "platform": found.platform, "max_batch_size": 8}

    def is_ready(self, name: str = "", version: str = "") -> bool:
        """One model, or all."""
        if not name:
            return bool(self.models) and not self.loading
        found = self.models.get(name)
        return found is not None and (not version or version in found.versions)

    def statuses(self) -> list[ModelVersionStatus]:
        """Sorted by name and version."""
        ready = [
            ModelVersionStatus(name, version, "READY")
            for name, model in self.models.items()
            for version in model.versions
        ]
        loading = [
            ModelVersionStatus(name, "1", "LOADING", why) for name, why in self.loading.items()
        ]
        return sorted(ready + loading, key=lambda status: (status.name, status.version))

    def task_kind(self, name: str, version: str = "") -> str:
        """As :meth:`metadata`."""
        self.metadata(name, version)
        return self.kinds.get(name, "tensor")
