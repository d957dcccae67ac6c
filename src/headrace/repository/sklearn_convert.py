"""A fitted scikit-learn estimator -> ONNX bytes, through skl2onnx and around its corners.

The operator sets are pinned, so that the same estimator gives the same file wherever it is
converted, and so that every runtime of the last years reads it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.errors import MissingExtra, ModelLoadError
from headrace.repository.sklearn_repairs import repaired_converters

OPSETS = {"": 17, "ai.onnx.ml": 3}
"""ONNX 1.12 (2022). ai.onnx.ml 3 is the first whose trees take double thresholds."""

MATRIX_INPUT = "X"

_LABELS = (7, 8)
"""TensorProto.INT64 and STRING: what a label can be."""


class InputForm(msgspec.Struct, frozen=True):
    """How the columns reach the graph.

    ``matrix``: side by side in one input, else each as an input of its own. ``numbers``:
    FP32 or FP64, also for whole numbers and booleans, because skl2onnx cannot join columns
    of different types.
    """

    matrix: bool
    numbers: str

    def datatype(self, column: str) -> str:
        """What a column of this datatype (FP64, INT64, BOOL, BYTES) is to the graph."""
        return column if column == "BYTES" else self.numbers


def forms_to_try(estimator: Any, datatypes: Sequence[str]) -> list[InputForm]:
    """The forms that could work, best first: single precision is what servers are fast at.

    Double is for what single cannot tell apart: times in seconds since 1970, long account
    numbers, values that stand exactly on a tree's threshold.
    """
    matrix = "BYTES" not in datatypes and not _selects_by_name(estimator)
    return [InputForm(matrix, "FP32"), InputForm(matrix, "FP64")]


def convert(
    estimator: Any, columns: Sequence[tuple[str, str]], form: InputForm, *, width: int
) -> bytes:
    """The estimator as an ONNX model.

    Args:
        estimator: fitted.
        columns: (name, datatype) in the order of training.
        form: how they reach the graph.
        width: how many probabilities or predictions there are for each row; 0 where there are
            only labels, and then a classifier's margins are left out of the graph.

    Raises:
        MissingExtra: skl2onnx is not installed.
        ModelLoadError: skl2onnx cannot convert it; says what it stumbled over.
    """
    try:
        from skl2onnx import convert_sklearn
    except ImportError:
        raise MissingExtra("converting an estimator", extra="sklearn", package="skl2onnx") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # skl2onnx's own use of what its libraries deprecate
            model = convert_sklearn(
                estimator,
                name=type(estimator).__name__,
                initial_types=_initial_types(columns, form),
                target_opset=OPSETS,
                options=_options(estimator, width),
                custom_conversion_functions=repaired_converters(),
            )
    # Converters are a hundred separate pieces; what one raises on an estimator it does not
    # understand is NotImplementedError, RuntimeError, IndexError ... and means "cannot".
    except Exception as error:  # noqa: BLE001
        raise ModelLoadError(
            f"{type(estimator).__name__} cannot be converted: {_first_line(error)}",
            hint="https://onnx.ai/sklearn-onnx/supported.html lists what can; anything else can "
            "be served as a Python model",
            estimator=type(estimator).__name__,
        ) from None
    _settle_outputs(model, width)
    return bytes(model.SerializeToString())


def _initial_types(columns: Sequence[tuple[str, str]], form: InputForm) -> list[tuple[str, Any]]:
    from skl2onnx.common import data_types as kinds

    types = {
        "FP32": kinds.FloatTensorType,
        "FP64": kinds.DoubleTensorType,
        "BYTES": kinds.StringTensorType,
    }
    if form.matrix:
        return [(MATRIX_INPUT, types[form.numbers]([None, len(columns)]))]
    return [(name, types[form.datatype(kind)]([None, 1])) for name, kind in columns]


def _selects_by_name(estimator: Any) -> bool:
    """Whether a ColumnTransformer anywhere inside finds its columns by their names."""
    if hasattr(estimator, "transformers_"):
        return any(_names_in(columns) for _, _, columns in estimator.transformers)
    inner = [step for _, step in getattr(estimator, "steps", [])]
    inner += [step for _, step in getattr(estimator, "transformer_list", [])]
    inner += [getattr(estimator, name, None) for name in ("best_estimator_", "estimator")]
    return any(_selects_by_name(part) for part in inner if part is not None)


def _names_in(columns: Any) -> bool:
    """A name, a list of names, or a selector that is given a data frame."""
    if isinstance(columns, str) or callable(columns):
        return True
    return not isinstance(columns, slice | int) and any(isinstance(c, str) for c in columns)


def _options(estimator: Any, width: int) -> dict[Any, dict[str, bool]]:
    """Probabilities as a matrix instead of a list of dictionaries."""
    if width and hasattr(estimator, "predict_proba"):
        return {id(estimator): {"zipmap": False}}
    # Without options of its own, one at the end of a pipeline is given the wrong ones.
    from sklearn.svm import LinearSVC

    return {LinearSVC: {}}


def _settle_outputs(model: Any, width: int) -> None:
    """Labels alone where there is nothing else to say; else the numbers' true shape.

    skl2onnx declares [-1, 1] for a forest that predicts two numbers, and whoever reads the
    signature believes it.
    """
    outputs = list(model.graph.output)
    labels = [out for out in outputs if out.type.tensor_type.elem_type in _LABELS]
    if not width and labels:
        del model.graph.output[:]
        model.graph.output.append(labels[0])
    for out in outputs:
        dims = out.type.tensor_type.shape.dim
        if width and out not in labels and len(dims) == 2:
            dims[1].dim_value = width


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 200 else f"{line[:197]}..."
