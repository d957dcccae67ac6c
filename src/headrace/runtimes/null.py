"""Answers at once, with zeros of the declared shape: what is left is our own overhead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.errors import ConfigError
from headrace.runtimes.base import Artifact, InstanceConfig, ShapePolicy
from headrace.types import DTYPE_OF, DYNAMIC, TensorSpec

_DEFAULT_INPUTS = [{"name": "x", "datatype": "FP32", "shape": [DYNAMIC, 16]}]
_DEFAULT_OUTPUTS = [{"name": "y", "datatype": "FP32", "shape": [DYNAMIC, 2]}]


class NullRuntime:
    """Options ``inputs`` and ``outputs``: lists of ``{name, datatype, shape}``.

    Without them the signature is that of the benchmark's tiny MLP: ``x`` FP32 [-1,16] to
    ``y`` FP32 [-1,2].
    """

    name = "null"
    formats = ("null",)

    def load(self, artifact: Artifact, config: InstanceConfig) -> NullModel:
        """Reads the signature from the options.

        Raises:
            ConfigError: a declared tensor is not ``{name, datatype, shape}``.
        """
        options = artifact.options
        return NullModel(
            _specs(options.get("inputs", _DEFAULT_INPUTS), "inputs"),
            _specs(options.get("outputs", _DEFAULT_OUTPUTS), "outputs"),
            config.concurrency,
        )


class NullModel:
    """Zeros (and empty BYTES): as many rows as came in, 1 for every other open dimension."""

    def __init__(
        self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], concurrency: int
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.concurrency = concurrency
        self.shape_policy = ShapePolicy()

    def execute(self, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """Does nothing, quickly."""
        rows = next((len(array) for array in inputs if array is not None and array.ndim), 1)
        answers = []
        for spec in self.outputs:
            shape = tuple(
                (rows if axis == 0 else 1) if size == DYNAMIC else size
                for axis, size in enumerate(spec.shape)
            )
            if spec.datatype == "BYTES":
                answers.append(np.full(shape, b"", dtype=object))
            else:
                answers.append(np.zeros(shape, DTYPE_OF[spec.datatype]))
        return answers

    def unload(self) -> None:
        """There is nothing to give back."""


def _specs(declared: Sequence[Mapping[str, Any]], what: str) -> tuple[TensorSpec, ...]:
    try:
        specs = tuple(
            TensorSpec(str(d["name"]), str(d["datatype"]), tuple(int(s) for s in d["shape"]))
            for d in declared
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"runtime_options.{what} must be a list of tables with name, datatype and shape: "
            f"{error!r}"
        ) from error
    for spec in specs:
        if spec.datatype not in DTYPE_OF:
            raise ConfigError(
                f"runtime_options.{what}: unknown datatype '{spec.datatype}'",
                hint=f"the datatypes are {', '.join(DTYPE_OF)}",
            )
    return specs
