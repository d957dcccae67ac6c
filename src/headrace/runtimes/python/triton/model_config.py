"""What ``auto_complete_config`` is given: ``ModelConfig`` of ``triton_python_backend_utils``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_INPUT = {"name", "data_type", "dims", "optional", "allow_ragged_batch"}
_OUTPUT = {"name", "data_type", "dims"}


class ModelConfig:
    """A configuration, which a model completes."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def as_dict(self) -> dict[str, Any]:
        """The configuration."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Raises ValueError: a larger one is configured."""
        configured = int(self._config.get("max_batch_size", 0))
        if configured > max_batch_size:
            raise ValueError(
                f"the configuration of model '{self._name}' has max_batch_size {configured}, and "
                f"auto_complete_config says {max_batch_size}"
            )
        self._config["max_batch_size"] = int(max_batch_size)

    def set_dynamic_batching(self) -> None:
        """Requests may be put together. Raises ValueError: another scheduler is configured."""
        for scheduler in ("sequence_batching", "ensemble_scheduling"):
            if self._config.get(scheduler):
                raise ValueError(
                    f"the configuration of model '{self._name}' has {scheduler}, and "
                    "auto_complete_config wants dynamic_batching"
                )
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """Whether it is decoupled. Raises ValueError: it is configured otherwise."""
        unknown = set(transaction_policy_dict) - {"decoupled"}
        if unknown:
            raise ValueError(f"a transaction policy has no {sorted(unknown)}")
        wanted = bool(transaction_policy_dict.get("decoupled", False))
        configured = self._config.get("model_transaction_policy") or {}
        if configured.get("decoupled", wanted) != wanted and configured["decoupled"]:
            raise ValueError(
                f"the configuration of model '{self._name}' says that it is decoupled, and "
                "auto_complete_config that it is not"
            )
        self._config["model_transaction_policy"] = {"decoupled": wanted}

    def add_input(self, input: Mapping[str, Any]) -> None:  # noqa: A002 - the backend's own name
        """One input, unless it is there. Raises ValueError: it is incomplete or another one."""
        self._add("input", input, _INPUT)

    def add_output(self, output: Mapping[str, Any]) -> None:
        """One output, unless it is there. Raises ValueError: it is incomplete or another one."""
        self._add("output", output, _OUTPUT)

    @property
    def _name(self) -> str:
        return str(self._config.get("name", ""))

    def _add(self, kind: str, tensor: Mapping[str, Any], known: set[str]) -> None:
        missing = [key for key in ("name", "data_type", "dims") if key not in tensor]
        unknown = sorted(set(tensor) - known)
        if missing or unknown:
            raise ValueError(
                f"{kind} {dict(tensor)} of model '{self._name}' lacks {missing} and has "
                f"{unknown} beyond {sorted(known)}"
            )
        there = self._config.setdefault(kind, [])
        for each in there:
            if each["name"] != tensor["name"]:
                continue
            for key in ("data_type", "dims"):
                got = [int(size) for size in each[key]] if key == "dims" else each.get(key)
                said = list(tensor[key]) if key == "dims" else tensor[key]
                if got != said:
                    raise ValueError(
                        f"{kind} '{tensor['name']}' of model '{self._name}' is configured with "
                        f"{key} {got}, and auto_complete_config says {said}"
                    )
            each.update({key: value for key, value in tensor.items() if key not in each})
            return
        there.append(dict(tensor))
