"""``ModelConfig``, metrics: the smaller parts of ``triton_python_backend_utils``; see ``utils``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MetricFamily:
    """Metrics of the model's own. They are kept, and not exported by ``/metrics``."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.description, self.kind = name, description, kind

    def Metric(self, labels: Mapping[str, str] | None = None, **_: Any) -> Metric:  # noqa: N802
        """One series of the family."""
        return Metric(self, dict(labels or {}))


class Metric:
    """One series."""

    def __init__(self, family: MetricFamily, labels: dict[str, str]) -> None:
        self.family, self.labels = family, labels
        self._value = 0.0

    def increment(self, value: float) -> None:
        """Adds to it."""
        self._value += value

    def set(self, value: float) -> None:
        """Replaces it."""
        self._value = value

    def observe(self, value: float) -> None:
        """Counts one observation."""
        self._value += value

    def value(self) -> float:
        """What it is now."""
        return self._value


class ModelConfig:
    """What ``auto_complete_config`` is given to complete."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def as_dict(self) -> dict[str, Any]:
        """The configuration."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Unless a larger one is configured."""
        self._config["max_batch_size"] = max(
            int(self._config.get("max_batch_size", 0)), max_batch_size
        )

    def set_dynamic_batching(self) -> None:
        """Requests may be put together."""
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """Whether it is decoupled."""
        self._config["model_transaction_policy"] = dict(transaction_policy_dict)

    def add_input(self, input: Mapping[str, Any]) -> None:  # noqa: A002 - the backend's own name
        """One input, unless it is there."""
        self._add("input", input)

    def add_output(self, output: Mapping[str, Any]) -> None:
        """One output, unless it is there."""
        self._add("output", output)

    def _add(self, kind: str, tensor: Mapping[str, Any]) -> None:
        missing = [key for key in ("name", "data_type", "dims") if key not in tensor]
        if missing:
            raise ValueError(f"{kind} {dict(tensor)} lacks {missing}")
        there = self._config.setdefault(kind, [])
        for each in there:
            if each["name"] == tensor["name"]:
                if each.get("data_type") != tensor["data_type"]:
                    raise ValueError(
                        f"{kind} '{tensor['name']}' is configured as {each.get('data_type')}, and "
                        f"the model says {tensor['data_type']}"
                    )
                return
        there.append(dict(tensor))
