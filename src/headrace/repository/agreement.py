"""Does the converted model say what the estimator says? Asked before a file is written."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import msgspec
import numpy as np

from headrace.errors import ConfigError, ModelLoadError
from headrace.repository.samples import Sample
from headrace.repository.sklearn_convert import MATRIX_INPUT, InputForm
from headrace.types import DTYPE_OF

TOLERANCE = 1e-4
"""Largest difference of a probability, or of a prediction relative to its size (at least
1). Single precision keeps seven digits; a sum over a thousand trees loses three."""


class Agreement(msgspec.Struct, frozen=True):
    """How far estimator and model agree on a sample.

    ``labels_equal``: the share of rows with the same label (1.0 for a regression), or with
    either label of a tie; ``ties``: rows whose label differs because two classes are equally
    likely, as ten trees of twenty may have it; ``max_difference``: of probabilities, or of
    predictions relative to their size.
    """

    rows: int
    labels_equal: float
    max_difference: float
    ties: int = 0
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether the model may be served in the estimator's place."""
        return self.labels_equal == 1.0 and self.max_difference <= self.tolerance


class Answers(msgspec.Struct, frozen=True):
    """What was said about a sample, for every row. None: it does not say such a thing."""

    labels: np.ndarray | None = None
    numbers: np.ndarray | None = None
    relative: bool = False

    @property
    def width(self) -> int:
        """Numbers for each row; 0 where there are only labels."""
        return 0 if self.numbers is None else self.numbers.reshape(len(self.numbers), -1).shape[1]

    @property
    def rows(self) -> int:
        """How many were asked about."""
        said = self.numbers if self.labels is None else self.labels
        return 0 if said is None else len(said)


class Original:
    """The estimator, asked in the way it was trained.

    Attributes:
        kind: "classification", "regression" or "assignment" (clusters, outliers).
        classes: of a classifier, in the order of its probabilities; else empty.
        scores: whether it gives probabilities.

    Raises:
        ConfigError: it predicts nothing, or several things at a time.
    """

    def __init__(self, estimator: Any) -> None:
        from sklearn.base import is_classifier, is_regressor

        if not hasattr(estimator, "predict"):
            raise ConfigError(
                f"{type(estimator).__name__} has no predict(), so there is nothing to serve",
                hint="give the whole pipeline, fitted, with its last step",
            )
        self._estimator = estimator
        self.kind = (
            "classification"
            if is_classifier(estimator)
            else "regression"
            if is_regressor(estimator)
            else "assignment"
        )
        classes = getattr(estimator, "classes_", []) if self.kind == "classification" else []
        if isinstance(classes, list) and classes:
            raise ConfigError(
                f"{type(estimator).__name__} predicts {len(classes)} labels for each row; "
                "one model answers one question",
                hint="export the estimators one by one",
            )
        self.classes: list[Any] = np.asarray(classes).tolist()
        self.scores = self.kind == "classification" and hasattr(estimator, "predict_proba")

    def answers(self, sample: Sample) -> Answers:
        """Asks the estimator.

        Raises:
            ConfigError: it cannot take the sample.
        """
        try:
            rows = as_fitted(self._estimator, sample)
            predicted = np.asarray(self._estimator.predict(rows))
            if self.kind == "regression":
                return Answers(numbers=predicted.astype(np.float64), relative=True)
            if not self.scores:
                return Answers(labels=predicted)
            return Answers(predicted, np.asarray(self._estimator.predict_proba(rows)))
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - scikit-learn checks input by raising anything
            raise ConfigError(
                f"{type(self._estimator).__name__} cannot predict on the sample: "
                f"{str(error).strip().splitlines()[0][:200]}",
                hint="the sample has the columns it was trained on, without the target",
            ) from None


def as_fitted(estimator: Any, sample: Sample) -> Any:
    """The sample as the estimator saw its training data: a data frame or an array.

    Raises:
        ConfigError: it was fitted on named columns, and pandas is not installed.
    """
    if not hasattr(estimator, "feature_names_in_"):
        columns = list(sample.columns.values())
        mixed = any(column.dtype == object for column in columns)
        return np.column_stack([c.astype(object if mixed else np.float64) for c in columns])
    try:
        # Not a dependency: whoever fitted an estimator on a data frame has pandas already.
        pandas = import_module("pandas")
    except ImportError:
        raise ConfigError(
            "the estimator was fitted on a data frame; asking it again needs pandas",
            hint="pip install pandas",
        ) from None
    return pandas.DataFrame(sample.columns)


def graph_inputs(sample: Sample, form: InputForm) -> dict[str, np.ndarray]:
    """The sample as the converted model takes it; texts as ``bytes``."""
    dtype = DTYPE_OF[form.numbers]
    if form.matrix:
        return {MATRIX_INPUT: np.column_stack(list(sample.columns.values())).astype(dtype)}
    return {
        name: (_encoded(v) if v.dtype == object else v.astype(dtype)).reshape(-1, 1)
        for name, v in sample.columns.items()
    }


def model_answers(outputs: Sequence[np.ndarray], original: Original) -> Answers:
    """The converted model's outputs in the terms of :class:`Answers`.

    Raises:
        ModelLoadError: it has not the outputs that the estimator's kind calls for.
    """
    labels = [out for out in outputs if out.dtype.kind in "iuO"]
    numbers = [out for out in outputs if out.dtype.kind == "f"]
    if original.kind == "regression":
        if len(numbers) != 1:
            raise ModelLoadError(f"the converted model has {len(numbers)} numeric outputs, not 1")
        return Answers(numbers=numbers[0].astype(np.float64), relative=True)
    if len(labels) != 1 or len(numbers) != int(original.scores):
        raise ModelLoadError(
            f"the converted model has {len(labels)} outputs of labels and {len(numbers)} of "
            f"numbers; expected 1 and {int(original.scores)}"
        )
    return Answers(_decoded(labels[0].reshape(-1)), numbers[0] if numbers else None)


def compare(expected: Answers, got: Answers) -> Agreement:
    """Row by row. NaN agrees with NaN and with nothing else."""
    equal = np.ones(expected.rows, bool)
    if expected.labels is not None and got.labels is not None:
        equal = expected.labels.reshape(-1).astype(str) == got.labels.astype(str)
        if expected.labels.dtype.kind in "fb":  # 1.0 and True are both 1 to ONNX
            equal = expected.labels.reshape(-1).astype(np.int64) == got.labels.astype(np.int64)
    difference = 0.0
    if expected.numbers is not None and got.numbers is not None:
        difference = float(_difference(expected, got).max())
    tied = ~equal & _ties(expected)
    return Agreement(
        rows=expected.rows,
        labels_equal=float((equal | tied).mean()),
        max_difference=difference,
        ties=int(tied.sum()),
    )


def _ties(expected: Answers) -> np.ndarray:
    """Rows whose two best classes are closer than the tolerance: which wins is rounding."""
    if expected.labels is None or expected.numbers is None or expected.numbers.shape[1] < 2:
        return np.zeros(expected.rows, bool)
    best = np.sort(expected.numbers, axis=1)
    close: np.ndarray = best[:, -1] - best[:, -2] <= TOLERANCE
    return close


def _difference(expected: Answers, got: Answers) -> np.ndarray:
    assert expected.numbers is not None
    assert got.numbers is not None
    a = expected.numbers.reshape(len(expected.numbers), -1)
    b = got.numbers.reshape(len(got.numbers), -1).astype(np.float64)
    if a.shape != b.shape:
        return np.array([np.inf])
    size = np.maximum(1.0, np.abs(a)) if expected.relative else 1.0
    both_missing = np.isnan(a) & np.isnan(b)
    return np.where(both_missing, 0.0, np.nan_to_num(np.abs(a - b) / size, nan=np.inf))


def _encoded(values: np.ndarray) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = [value.encode() for value in values]
    return array


def _decoded(labels: np.ndarray) -> np.ndarray:
    if labels.dtype != object:
        return labels
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in labels])
