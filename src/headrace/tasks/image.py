"""Encoded images -> class, score and probabilities.

Public input: ``image`` BYTES [-1], each element a whole PNG, JPEG, WebP, GIF (its first
frame) or BMP file. Outputs: ``label`` BYTES and ``score`` FP32, both [-1] (or [-1, top_k]),
and ``probabilities`` FP32 [-1, n]. Every image is an item of its own, so images of many
requests share a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.errors import ConfigError, InferenceFailed, InvalidRequest, ModelLoadError
from headrace.tasks.base import Item, Padding, Prepared
from headrace.tasks.image_decode import require_pillow
from headrace.tasks.image_options import (
    ImageOptions,
    geometry,
    gives_probabilities,
    read_options,
)
from headrace.tasks.image_pixels import Preprocessor
from headrace.types import DYNAMIC, InferenceRequest, Tensor, TensorSpec

_FLOATS = ("FP16", "FP32", "FP64")


class ImageClassification:
    """See the module; the options are those of :class:`ImageOptions`."""

    kind = "image-classification"
    padding: Padding | None = None

    def __init__(
        self,
        preprocessor: Preprocessor,
        model_outputs: tuple[TensorSpec, ...],
        options: ImageOptions,
    ) -> None:
        self._preprocessor = preprocessor
        self._output_at = _output_index(model_outputs, options)
        output = model_outputs[self._output_at]
        self._softmax = not gives_probabilities(output, options)
        self._classes = _class_count(output, options)
        self._labels = _label_array(options.labels)
        self._top_k = options.top_k
        top = (DYNAMIC,) if options.top_k == 1 else (DYNAMIC, options.top_k)
        self.inputs = (TensorSpec("image", "BYTES", (DYNAMIC,)),)
        self.outputs = (
            TensorSpec("label", "BYTES", top),
            TensorSpec("score", "FP32", top),
            TensorSpec("probabilities", "FP32", (DYNAMIC, self._classes)),
        )

    @classmethod
    def create(
        cls,
        model_inputs: tuple[TensorSpec, ...],
        model_outputs: tuple[TensorSpec, ...],
        options: Mapping[str, Any],
    ) -> ImageClassification:
        """Fits the options to the model's own tensors.

        Raises:
            ConfigError: an option is unknown or contradicts the model.
            ModelLoadError: the model is no image classifier.
            MissingExtra: Pillow is not installed.
        """
        require_pillow()
        known = read_options(options)
        if len(model_inputs) != 1:
            raise ModelLoadError(
                f"the model has {len(model_inputs)} inputs "
                f"({', '.join(spec.name for spec in model_inputs)}); an image classifier has one",
                hint='set task = "tensor" to serve its tensors as they are',
            )
        shape = geometry(model_inputs[0], known)
        return cls(Preprocessor(shape, known), model_outputs, known)

    def prepare(self, request: InferenceRequest) -> Prepared:
        """One item of one row for each image.

        Raises:
            InvalidRequest: no image, or one that cannot be read; names its index.
            PayloadTooLarge: one has more than ``max_pixels``.
        """
        images = request.inputs[0].data.reshape(-1).tolist()
        if not images:
            raise InvalidRequest("the request has no image; expected at least one", input="image")
        return Prepared(
            [Item((self._preprocessor.tensor(data, i),)) for i, data in enumerate(images)]
        )

    def finish(
        self,
        request: InferenceRequest,  # noqa: ARG002 - the protocol's signature
        items: Sequence[Item],  # noqa: ARG002 - as above; an image is one row
        results: Sequence[Sequence[np.ndarray]],
    ) -> list[Tensor]:
        """The model's numbers for every image as labels, scores and probabilities.

        Raises:
            InferenceFailed: not as many numbers for each image as there are classes.
        """
        rows = [arrays[self._output_at].reshape(1, -1) for arrays in results]
        if len({row.shape[1] for row in rows}) > 1:
            raise InferenceFailed("the model gave different numbers of classes for two images")
        numbers = np.concatenate(rows).astype(np.float32)
        count = numbers.shape[1]
        if self._classes not in (DYNAMIC, count):
            raise InferenceFailed(
                f"the model gave {count} numbers for each image; expected {self._classes}"
            )
        probabilities = _softmax(numbers) if self._softmax else numbers
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : min(self._top_k, count)]
        score = np.take_along_axis(probabilities, best, axis=1)
        label = self._named(best)
        if self._top_k == 1:
            label, score = label[:, 0], score[:, 0]
        return [
            _tensor("label", "BYTES", label),
            _tensor("score", "FP32", score),
            _tensor("probabilities", "FP32", probabilities),
        ]

    def _named(self, classes: np.ndarray) -> np.ndarray:
        if len(self._labels):
            named: np.ndarray = self._labels[classes]
            return named
        return _label_array([str(number) for number in classes.ravel()]).reshape(classes.shape)


def _output_index(specs: Sequence[TensorSpec], options: ImageOptions) -> int:
    for index, spec in enumerate(specs):
        if spec.name == options.output or (not options.output and spec.datatype in _FLOATS):
            return index
    names = [f"{spec.name} ({spec.datatype})" for spec in specs]
    if options.output:
        raise ConfigError(f"the model has no output {options.output!r}; it has {', '.join(names)}")
    raise ModelLoadError(
        f"the model has no floating-point output; it has {', '.join(names)}",
        hint='set task = "tensor" to serve its tensors as they are',
    )


def _class_count(output: TensorSpec, options: ImageOptions) -> int:
    """From the output's shape, which may end in 1 x 1 pixels, or from the labels."""
    tail = output.shape[1:]
    declared = DYNAMIC if DYNAMIC in tail or not tail else int(np.prod(tail))
    count = len(options.labels)
    if count and declared not in (DYNAMIC, count):
        raise ConfigError(
            f"{count} labels, but output {output.name!r} of shape {list(output.shape)} has "
            f"{declared} classes",
            expected=declared,
            got=count,
        )
    known = count or declared
    if known != DYNAMIC and options.top_k > known:
        raise ConfigError(f"top_k is {options.top_k}, but the model has {known} classes")
    return known


def _label_array(labels: Sequence[str]) -> np.ndarray:
    array = np.empty(len(labels), dtype=object)
    array[:] = [label.encode() for label in labels]
    return array


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Of every row; the row's maximum is taken off first, so nothing overflows."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return result


def _tensor(name: str, datatype: str, data: np.ndarray) -> Tensor:
    array = np.ascontiguousarray(data)
    return Tensor(name, datatype, array.shape, array)
