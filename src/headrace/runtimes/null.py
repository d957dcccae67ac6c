"""Answers at once, with zeros of the declared shape: what is left is our own overhead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from headrace.errors import InferenceFailed, ModelLoadError
from headrace.runtimes.base import Artifact, InstanceConfig, ShapePolicy
from headrace.runtimes.options import read_options
from headrace.types import DTYPE_OF, DYNAMIC, TensorSpec


class NullTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One declared input or output; -1 is a free dimension."""

    name: Annotated[str, Meta(min_length=1)]
    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
        "FP16", "BF16", "FP32", "FP64", "BYTES",
    ]  # fmt: skip
    shape: tuple[Annotated[int, Meta(ge=DYNAMIC)], ...]
    optional: bool = False

    def spec(self) -> TensorSpec:
        """As the rest of headrace says it."""
        return TensorSpec(self.name, self.datatype, self.shape, self.optional)


class NullOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``runtime_options``: the signature. The default is that of the benchmarks' tiny MLP."""

    inputs: Annotated[tuple[NullTensor, ...], Meta(min_length=1)] = (
        NullTensor("x", "FP32", (DYNAMIC, 16)),
    )
    outputs: Annotated[tuple[NullTensor, ...], Meta(min_length=1)] = (
        NullTensor("y", "FP32", (DYNAMIC, 2)),
    )


class NullRuntime:
    """Needs no file: the signature is in the options, see :class:`NullOptions`."""

    name = "null"
    formats: tuple[str, ...] = ("null",)

    def load(self, artifact: Artifact, config: InstanceConfig) -> NullModel:
        """Reads the signature from the options.

        Raises:
            ModelLoadError: a declared tensor is not ``{name, datatype, shape}``, or two
                inputs or outputs share a name.
        """
        options = read_options(artifact, NullOptions, self.name)
        for tensors in (options.inputs, options.outputs):
            names = [tensor.name for tensor in tensors]
            if len(set(names)) < len(names):
                raise ModelLoadError(
                    f"model '{artifact.name}' declares a name twice: {', '.join(names)}",
                    hint="give every input, and every output, a name of its own",
                    model=artifact.name,
                )
        return NullModel(artifact.name, options, config.concurrency)


class NullModel:
    """Zeros (and empty BYTES). A :class:`headrace.runtimes.base.LoadedModel`.

    A free dimension of an output has the size of the same axis of the first input given, or
    1 where that has no such axis.
    """

    def __init__(self, name: str, options: NullOptions, concurrency: int) -> None:
        self.inputs = tuple(tensor.spec() for tensor in options.inputs)
        self.outputs = tuple(tensor.spec() for tensor in options.outputs)
        self.concurrency = concurrency
        self.shape_policy = ShapePolicy()
        self._name = name

    def execute(self, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """Checks the shapes, as every runtime does, and makes the zeros."""
        sizes: tuple[int, ...] = ()
        for spec, array in zip(self.inputs, inputs, strict=True):
            if array is None:
                if not spec.optional:
                    raise InferenceFailed(f"input '{spec.name}' of '{self._name}' is missing")
                continue
            if not _fits(array.shape, spec.shape):
                raise InferenceFailed(
                    f"input '{spec.name}' of '{self._name}' has shape {list(array.shape)}, "
                    f"expected {list(spec.shape)}",
                    input=spec.name,
                )
            sizes = sizes or array.shape
        return [_zeros(spec, sizes) for spec in self.outputs]

    def unload(self) -> None:
        """There is nothing to give back."""


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    for got, want in zip(shape, expected, strict=True):  # noqa: SIM110 - all() costs twice
        if want not in (got, DYNAMIC):
            return False
    return True


def _zeros(spec: TensorSpec, sizes: tuple[int, ...]) -> np.ndarray:
    shape = [
        size if size != DYNAMIC else sizes[axis] if axis < len(sizes) else 1
        for axis, size in enumerate(spec.shape)
    ]
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, DTYPE_OF[spec.datatype])
