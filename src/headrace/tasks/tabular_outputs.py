"""What a tabular model answers: which of its outputs means what, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.errors import ConfigError, InferenceFailed, ModelLoadError
from headrace.types import DYNAMIC, Tensor, TensorSpec

_FLOATS = ("FP16", "FP32", "FP64")
_LABELS = ("INT64", "INT32", "BYTES", "BOOL")


class TabularOutputs:
    """Public outputs ``label`` and ``probabilities``, or ``prediction``.

    ``labels`` are the classes in the order of the probabilities; empty where unknown, or
    for a regression.

    Raises:
        ModelLoadError: the model has no output that could be an answer.
        ConfigError: ``labels`` are not as many as the model's probabilities.
    """

    def __init__(self, model_outputs: Sequence[TensorSpec], labels: Sequence[str | int]) -> None:
        self._labels: list[str | int] = list(labels)
        self._label_at = _first(model_outputs, _LABELS)
        self._values_at = _first(model_outputs, _FLOATS)
        if self._label_at is None and self._values_at is None:
            raise ModelLoadError(
                f"the model's outputs {[spec.name for spec in model_outputs]} hold neither a "
                "label (INT64, INT32, BYTES, BOOL) nor numbers (FP16, FP32, FP64)",
                hint='set task = "tensor" to serve its tensors as they are',
            )
        self.classifies = self._label_at is not None or bool(self._labels)
        values = None if self._values_at is None else model_outputs[self._values_at]
        self.specs = self._classes(model_outputs, values) if self.classifies else _number(values)

    def tensors(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """The model's outputs, in its order -> the public ones.

        Raises:
            InferenceFailed: they are not of the shape the model declared.
        """
        if not self.classifies:
            assert self._values_at is not None
            return [self._prediction(arrays[self._values_at])]
        probabilities = None if self._values_at is None else self._matrix(arrays[self._values_at])
        tensors = [self._label(arrays, probabilities)]
        if probabilities is not None:
            tensors.append(_tensor("probabilities", "FP32", probabilities))
        return tensors

    def records(self, outputs: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Public outputs -> one object for each row."""
        columns = {tensor.name: self._values(tensor) for tensor in outputs}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _values(self, tensor: Tensor) -> list[Any]:
        if tensor.datatype == "BYTES":
            return [value.decode(errors="replace") for value in tensor.data.tolist()]
        if tensor.name != "probabilities":
            return list(tensor.data.tolist())
        names = [str(name) for name in self._labels] or [str(i) for i in range(tensor.shape[1])]
        return [dict(zip(names, row, strict=True)) for row in tensor.data.tolist()]

    def _classes(
        self, model_outputs: Sequence[TensorSpec], values: TensorSpec | None
    ) -> tuple[TensorSpec, ...]:
        own = None if self._label_at is None else model_outputs[self._label_at].datatype
        if self._labels:
            self._datatype = "BYTES" if isinstance(self._labels[0], str) else "INT64"
        else:
            self._datatype = "BYTES" if own == "BYTES" else "INT64"
        own_kind = None if own is None else ("BYTES" if own == "BYTES" else "INT64")
        # A model that says 0 and 1 where the options say "no" and "yes": the probabilities
        # decide, because what its numbers count is not known.
        self._own_label = own_kind == self._datatype
        if not self._own_label and values is None:
            raise ConfigError(
                f"labels are {self._datatype}, the model's own label is {own}, and there are no "
                "probabilities to choose by",
                hint="leave labels out",
            )
        label = TensorSpec("label", self._datatype, (DYNAMIC,))
        if values is None:
            return (label,)
        width = self._width(values)
        return (label, TensorSpec("probabilities", "FP32", (DYNAMIC, width)))

    def _width(self, values: TensorSpec) -> int:
        if len(values.shape) != 2:
            raise ModelLoadError(
                f"output {values.name!r} has shape {list(values.shape)}; probabilities are "
                "[-1, classes]"
            )
        declared = values.shape[1]
        if self._labels and declared not in (DYNAMIC, len(self._labels)):
            raise ConfigError(
                f"{len(self._labels)} labels, but output {values.name!r} has {declared} columns",
                expected=declared,
                got=len(self._labels),
            )
        return len(self._labels) or declared

    def _label(self, arrays: Sequence[np.ndarray], probabilities: np.ndarray | None) -> Tensor:
        if self._own_label:
            assert self._label_at is not None
            label = arrays[self._label_at].reshape(-1)
            data = label if self._datatype == "BYTES" else label.astype(np.int64)
        else:
            assert probabilities is not None
            best = probabilities.argmax(axis=1)
            data = _label_array(self._labels)[best]
        return _tensor("label", self._datatype, data)

    def _matrix(self, values: np.ndarray) -> np.ndarray:
        expected = len(self._labels)
        if values.ndim != 2 or (expected and values.shape[1] != expected):
            raise InferenceFailed(
                f"the model gave probabilities of shape {list(values.shape)}; expected "
                f"[rows, {expected or 'classes'}]"
            )
        return values.astype(np.float32, copy=False)

    def _prediction(self, values: np.ndarray) -> Tensor:
        data = values.astype(np.float64)
        if len(self.specs[0].shape) == 1:
            data = data.reshape(len(data), -1)
            if data.shape[1] != 1:
                raise InferenceFailed(f"the model gave shape {list(values.shape)}; expected [rows]")
            data = data[:, 0]
        return _tensor("prediction", "FP64", data)


def _number(values: TensorSpec | None) -> tuple[TensorSpec, ...]:
    """``[-1, 1]`` is one number for each row and is shown as ``[-1]``."""
    assert values is not None
    shape = (DYNAMIC,) if values.shape[1:] in ((), (1,)) else (DYNAMIC, *values.shape[1:])
    return (TensorSpec("prediction", "FP64", shape),)


def _label_array(labels: list[str | int]) -> np.ndarray:
    if isinstance(labels[0], int):
        return np.array(labels, dtype=np.int64)
    array = np.empty(len(labels), dtype=object)
    array[:] = [str(label).encode() for label in labels]
    return array


def _first(specs: Sequence[TensorSpec], datatypes: tuple[str, ...]) -> int | None:
    return next((i for i, spec in enumerate(specs) if spec.datatype in datatypes), None)


def _tensor(name: str, datatype: str, data: np.ndarray) -> Tensor:
    array = np.ascontiguousarray(data)
    return Tensor(name, datatype, array.shape, array)
