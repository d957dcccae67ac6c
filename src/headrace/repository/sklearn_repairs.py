"""What some of skl2onnx's converters need to be exact, or to work at all.

Three repairs, all through its documented hook ``custom_conversion_functions``:

* Histogram-boosted trees hand on numpy's ``bool`` and ``uint32`` as they are; protobuf, since
  version 6, takes neither for an integer.
* In double precision, thresholds are rounded to float all the same, and scores are declared
  double although the operator gives floats. A value that stands exactly on a threshold, as
  thresholds of histogram-boosted trees do, then takes the wrong branch as soon as anything
  (a scaler, say) has come before. Operator set ai.onnx.ml 3 has double thresholds: they are
  written as its ``*_as_tensor`` attributes, and the scores are cast.
* ONNX Runtime's Imputer takes single precision only; for doubles it is said in two plain
  operators, x where it is there and the statistic where it is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_TREES = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")
_DOUBLE = 11  # TensorProto.DOUBLE
_VERSION = 3  # of ai.onnx.ml, the first with double thresholds


def repaired_converters() -> dict[type, Any]:
    """Estimator class -> converter."""
    from sklearn import ensemble, impute, tree

    trees = dict.fromkeys(
        [
            ensemble.HistGradientBoostingClassifier,
            ensemble.HistGradientBoostingRegressor,
            ensemble.RandomForestClassifier,
            ensemble.RandomForestRegressor,
            ensemble.ExtraTreesClassifier,
            ensemble.ExtraTreesRegressor,
            ensemble.GradientBoostingClassifier,
            ensemble.GradientBoostingRegressor,
            tree.DecisionTreeClassifier,
            tree.DecisionTreeRegressor,
        ],
        _convert_trees,
    )
    return trees | {impute.SimpleImputer: _convert_imputer}


def _convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    from skl2onnx.common._registration import get_converter
    from skl2onnx.common.data_types import DoubleTensorType

    imputer = operator.raw_operator
    statistics = np.asarray(imputer.statistics_)
    plain = (
        len(operator.inputs) == 1
        and isinstance(operator.inputs[0].type, DoubleTensorType)
        and statistics.dtype.kind == "f"
        and not np.isnan(statistics).any()
        and _is_nan(imputer.missing_values)
        and not imputer.add_indicator
    )
    if not plain:
        get_converter(operator.type)(scope, operator, container)
        return
    source, target = operator.inputs[0].full_name, operator.outputs[0].full_name
    values, missing = f"{target}_statistics", f"{target}_missing"
    container.add_initializer(values, _DOUBLE, [len(statistics)], statistics.tolist())
    container.add_node("IsNaN", source, missing)
    container.add_node("Where", [missing, values, source], target)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and np.isnan(value)


def _convert_trees(scope: Any, operator: Any, container: Any) -> None:
    from skl2onnx.common._registration import get_converter
    from skl2onnx.common.data_types import DoubleTensorType

    promised = isinstance(operator.outputs[-1].type, DoubleTensorType)
    arguments = [scope, operator, _TreeContainer(container, promised)]
    double = isinstance(operator.inputs[0].type, DoubleTensorType)
    if double and _rounds_in_version_1(operator.raw_operator):
        arguments += ["TreeEnsembleClassifier", "ai.onnx.ml", _VERSION]
    get_converter(operator.type)(*arguments)


def _rounds_in_version_1(estimator: Any) -> bool:
    """The classifiers whose converter keeps doubles only when it is told the version."""
    from sklearn import ensemble

    return isinstance(
        estimator,
        ensemble.HistGradientBoostingClassifier
        | ensemble.RandomForestClassifier
        | ensemble.ExtraTreesClassifier,
    )


class _TreeContainer:
    """A conversion container whose trees have plain integers and true doubles.

    ``double_scores``: skl2onnx promised doubles to whatever comes next.
    """

    def __init__(self, container: Any, double_scores: bool) -> None:
        self._container = container
        self._double_scores = double_scores

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(
        self, op_type: str, inputs: Any, outputs: Any, *rest: Any, **attributes: Any
    ) -> None:
        """As skl2onnx's own, which every converter ends in."""
        plain = {name: _plain(value) for name, value in attributes.items()}
        if op_type not in _TREES or not any(map(_is_double, plain.values())):
            self._container.add_node(op_type, inputs, outputs, *rest, **plain)
            return
        doubled = dict(_in_double(name, value) for name, value in plain.items())
        doubled["op_version"] = _VERSION
        if not self._double_scores:
            self._container.add_node(op_type, inputs, outputs, *rest, **doubled)
            return
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        single = f"{names[-1]}_single"
        self._container.add_node(op_type, inputs, [*names[:-1], single], *rest, **doubled)
        self._container.add_node("Cast", single, names[-1], to=_DOUBLE)


def _plain(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    numbers = [each.item() if isinstance(each, np.generic) else each for each in value]
    return [int(each) if isinstance(each, bool) else each for each in numbers]


def _is_double(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float64


def _in_double(name: str, value: Any) -> tuple[str, Any]:
    from onnx import numpy_helper

    if not _is_double(value):
        return name, value
    return f"{name}_as_tensor", numpy_helper.from_array(value, name)
