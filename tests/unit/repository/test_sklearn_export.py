from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from headrace.config import Config
from headrace.errors import ConfigError, InvalidRequest, ModelLoadError
from headrace.repository import sklearn_export
from headrace.repository.layout import scan
from headrace.repository.sklearn_export import ExportRecord, read_record
from headrace.tasks import registry
from headrace.tasks.tabular import Tabular
from headrace.types import InferenceRequest
from tests.unit.repository.onnx_trial import execute, signature

CANCER, MALIGNANT = load_breast_cancer(return_X_y=True)
DIABETES, PROGRESS = load_diabetes(return_X_y=True)
RNG = np.random.default_rng(0)
ROUNDED = np.round(RNG.normal(size=(1500, 4)) * 37, 2)
ABOVE = ROUNDED[:, 0] * ROUNDED[:, 1] + ROUNDED[:, 2] * 30 > 0


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for one another cost more than these small models."""
    with threadpool_limits(1):
        yield


def export_sklearn(estimator: Any, sample: Any, out: Path, **options: Any) -> Path:
    return sklearn_export.export_sklearn(estimator, sample, out, execute=execute, **options)


def customers(rows: int = 300) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 80, rows),
            "plan": rng.choice(["basic", "plus", "pro"], rows),
            "monthly": np.where(rng.random(rows) < 0.1, np.nan, rng.uniform(5, 90, rows).round(2)),
            "region": rng.integers(0, 4, rows),
            "autopay": rng.random(rows) < 0.5,
        }
    )
    return frame, np.where((frame.monthly > 50) & (frame["plan"] != "pro"), "leaves", "stays")


def churn_pipeline(last: Any) -> Pipeline:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    classes = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer(
        [("n", numbers, ["age", "monthly"]), ("c", classes, ["plan", "region"])],
        remainder="passthrough",
    )
    return make_pipeline(columns, last)


class Served:
    """The exported folder, found and asked as the server would."""

    def __init__(self, folder: Path) -> None:
        found = scan([folder], config=Config())
        assert not found.problems
        (source,) = found.models
        self._path = source.path
        self._inputs, outputs = signature(source.path)
        options = {**source.task_options, **source.config.task_options}
        task = registry.create(source.task, self._inputs, outputs, options)
        assert isinstance(task, Tabular)
        self.task = task

    def ask(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        request = InferenceRequest("m", self.task.from_records(records))
        (item,) = self.task.prepare(request).items
        feeds = {s.name: a for s, a in zip(self._inputs, item.arrays, strict=True) if a is not None}
        return self.task.to_records(self.task.finish(request, [item], [execute(self._path, feeds)]))


def records_of(table: Any) -> list[dict[str, Any]]:
    """As a client would send them: through JSON, to the last digit."""
    if not isinstance(table, pd.DataFrame):
        table = pd.DataFrame(table, columns=[f"x{i}" for i in range(table.shape[1])])
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    sent: list[dict[str, Any]] = json.loads(json.dumps(rows))
    return sent


TIMES = np.c_[1.7e9 + np.arange(569), CANCER[:, 0]]

CASES: Mapping[str, tuple[Any, Any, Any]] = {
    "forest": (RandomForestClassifier(20, random_state=0), CANCER, MALIGNANT),
    "boosting": (GradientBoostingClassifier(n_estimators=5), CANCER, MALIGNANT),
    "histogram boosting": (HistGradientBoostingClassifier(max_iter=10), CANCER, MALIGNANT),
    "histogram boosting, scaled": (
        make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=20)),
        ROUNDED,
        ABOVE,
    ),
    "forest, scaled": (
        make_pipeline(StandardScaler(), RandomForestClassifier(15, random_state=0)),
        ROUNDED,
        ABOVE,
    ),
    "stacked": (
        StackingClassifier(
            [("h", make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=5)))],
            cv=2,
        ),
        ROUNDED,
        ABOVE,
    ),
    "names": (
        make_pipeline(StandardScaler(), LogisticRegression()),
        CANCER,
        np.where(MALIGNANT, "good", "bad"),
    ),
    "seconds since 1970": (
        make_pipeline(StandardScaler(), LogisticRegression()),
        TIMES,
        MALIGNANT,
    ),
    "churn": (churn_pipeline(LogisticRegression(max_iter=500)), *customers()),
    "churn, boosted": (
        churn_pipeline(HistGradientBoostingClassifier(max_iter=10)),
        *customers(),
    ),
}


@cache
def fitted(name: str) -> tuple[Any, Any]:
    """The estimator, trained, and the table it was trained on."""
    estimator, table, labels = CASES[name]
    return estimator.fit(table, labels), table


@pytest.mark.parametrize("name", CASES)
def test_what_is_served_says_what_the_estimator_says(name: str, tmp_path: Path) -> None:
    estimator, table = fitted(name)
    served = Served(export_sklearn(estimator, table, tmp_path / "model"))
    rows = table[:40]
    answers = served.ask(records_of(rows))
    expected = estimator.predict_proba(rows)
    classes = [str(int(c) if isinstance(c, bool | np.bool_) else c) for c in estimator.classes_]
    got = np.array([[each["probabilities"][c] for c in classes] for each in answers])
    np.testing.assert_allclose(got, expected, atol=1e-4)
    clear = np.abs(expected[:, 0] - expected[:, 1]) > 1e-4
    labels = np.array([each["label"] for each in answers])
    assert (labels == estimator.predict(rows))[clear].all()


@pytest.mark.parametrize(
    ("estimator", "targets"),
    [
        (Ridge(), PROGRESS),
        (HistGradientBoostingRegressor(max_iter=10), PROGRESS),
        (make_pipeline(StandardScaler(), HistGradientBoostingRegressor(max_iter=10)), PROGRESS),
        (RandomForestRegressor(5, random_state=0), np.c_[PROGRESS, -PROGRESS]),
    ],
    ids=["ridge", "boosting", "scaled boosting", "two targets"],
)
def test_regressions(estimator: Any, targets: np.ndarray, tmp_path: Path) -> None:
    estimator.fit(DIABETES, targets)
    folder = export_sklearn(estimator, DIABETES, tmp_path / "model")
    answers = Served(folder).ask(records_of(DIABETES[:30]))
    got = np.array([each["prediction"] for each in answers])
    np.testing.assert_allclose(got, estimator.predict(DIABETES[:30]), rtol=1e-4)
    assert read_record(folder).kind == "regression"


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(StandardScaler(), LinearSVC()).fit(CANCER, MALIGNANT),
        KMeans(3, n_init=1, random_state=0).fit(CANCER),
    ],
    ids=["margins", "clusters"],
)
def test_numbers_that_are_no_probabilities_are_not_shown_as_such(
    estimator: Any, tmp_path: Path
) -> None:
    served = Served(export_sklearn(estimator, CANCER, tmp_path / "model"))
    assert [spec.name for spec in served.task.outputs] == ["label"]
    labels = [each["label"] for each in served.ask(records_of(CANCER[:50]))]
    assert labels == estimator.predict(CANCER[:50]).tolist()


class TestFolder:
    def test_it_says_what_a_request_looks_like(self, tmp_path: Path) -> None:
        estimator, table = fitted("churn")
        folder = export_sklearn(estimator, table, tmp_path / "churn")
        told = tomllib.loads((folder / "model.toml").read_text())
        assert told == {
            "task": "tabular",
            "task_options": {
                "columns": [
                    {"name": "age", "datatype": "INT64"},
                    {"name": "plan", "datatype": "BYTES"},
                    {"name": "monthly", "datatype": "FP64", "nullable": True},
                    {"name": "region", "datatype": "INT64"},
                    {"name": "autopay", "datatype": "BOOL"},
                ],
                "labels": ["leaves", "stays"],
            },
        }

    def test_it_says_where_it_came_from(self, tmp_path: Path) -> None:
        estimator, table = fitted("churn")
        folder = export_sklearn(estimator, table, tmp_path / "c", name="churn", source="c.joblib")
        record = read_record(folder)
        assert isinstance(record, ExportRecord)
        assert record.source == "scikit-learn: c.joblib"
        assert (record.name, record.kind) == ("churn", "classification")
        assert record.estimator.endswith("Pipeline(ColumnTransformer, LogisticRegression)")
        assert (record.agreement.rows, record.agreement.labels_equal) == (300, 1.0)
        digest = hashlib.sha256((folder / "1" / "model.onnx").read_bytes()).hexdigest()
        assert record.sha256 == {"1/model.onnx": digest}
        assert {"scikit-learn", "skl2onnx", "numpy", "python"} <= set(record.versions)

    def test_the_same_estimator_gives_the_same_files(self, tmp_path: Path) -> None:
        estimator, table = fitted("churn")
        one, two = (export_sklearn(estimator, table, tmp_path / n, name="m") for n in "ab")
        for name in ("1/model.onnx", "model.toml", "provenance.json"):
            assert (one / name).read_bytes() == (two / name).read_bytes()

    def test_it_does_not_overwrite(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "precious").touch()
        with pytest.raises(ConfigError, match="is there already"):
            export_sklearn(*fitted("forest"), tmp_path / "model")

    def test_an_empty_folder_is_filled_and_nothing_is_left_beside_it(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        export_sklearn(*fitted("forest"), tmp_path / "model")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        files = {path.name for path in (tmp_path / "model").iterdir()}
        assert files == {"1", "model.toml", "provenance.json"}

    def test_names_of_columns_are_written_so_that_they_can_be_read(self, tmp_path: Path) -> None:
        names = ['a "quoted"\\', "tab\there", "größe 📏", "del\x7f"]
        frame = pd.DataFrame(ROUNDED, columns=names)
        estimator = LogisticRegression().fit(frame, ABOVE)
        served = Served(export_sklearn(estimator, frame, tmp_path / "model"))
        assert [spec.name for spec in served.task.inputs] == names


class TestSample:
    def test_other_columns_are_left_out_and_order_does_not_matter(self, tmp_path: Path) -> None:
        estimator, table = fitted("churn")
        shuffled = table[sorted(table.columns)].assign(churned=1)
        mapping = {name: list(values) for name, values in shuffled.items()}
        folder = export_sklearn(estimator, mapping, tmp_path / "model")
        assert [spec.name for spec in Served(folder).task.inputs] == list(table.columns)

    def test_bare_rows_are_in_the_order_of_training(self, tmp_path: Path) -> None:
        frame = pd.DataFrame(DIABETES[:, :2], columns=["age", "sex"])
        estimator = Ridge().fit(frame, PROGRESS)
        for number, rows in enumerate([DIABETES[:, :2], DIABETES[:, :2].tolist()]):
            served = Served(export_sklearn(estimator, rows, tmp_path / f"m{number}"))
            assert [spec.name for spec in served.task.inputs] == ["age", "sex"]

    def test_names_can_be_given_to_bare_rows(self, tmp_path: Path) -> None:
        estimator = Ridge().fit(DIABETES[:, :2], PROGRESS)
        folder = export_sklearn(estimator, DIABETES[:, :2], tmp_path / "m", columns=["age", "sex"])
        assert [spec.name for spec in Served(folder).task.inputs] == ["age", "sex"]

    @pytest.mark.parametrize(
        ("name", "sample", "message"),
        [
            ("forest", np.c_[CANCER, MALIGNANT], "31 columns, but .* fitted on 30"),
            ("churn", customers()[0].drop(columns="plan"), "no column 'plan'"),
            ("names", np.full((2, 30), np.nan), "cannot predict on the sample.*NaN"),
        ],
        ids=["with the target", "without a column", "with holes"],
    )
    def test_what_does_not_fit_is_refused(
        self, name: str, sample: Any, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            export_sklearn(fitted(name)[0], sample, tmp_path / "model")
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize(
        ("estimator", "targets", "message"),
        [
            (StandardScaler(), None, r"no predict\(\)"),
            (MultiOutputClassifier(LogisticRegression()), np.c_[ABOVE, ABOVE], "predicts 2 labels"),
        ],
    )
    def test_what_answers_no_question_or_two(
        self, estimator: Any, targets: Any, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            export_sklearn(estimator.fit(ROUNDED, targets), ROUNDED, tmp_path / "model")


class TestMissingValues:
    def test_trees_that_learnt_what_missing_means(self, tmp_path: Path) -> None:
        holes = CANCER.copy()
        holes[RNG.random(CANCER.shape) < 0.1] = np.nan
        estimator = HistGradientBoostingClassifier(max_iter=10).fit(holes, MALIGNANT)
        served = Served(export_sklearn(estimator, CANCER[:100], tmp_path / "model"))
        record = records_of(CANCER[:1])[0] | {"x0": None, "x27": None}
        row = CANCER[:1].copy()
        row[0, [0, 27]] = np.nan
        (answer,) = served.ask([record])
        assert answer["probabilities"]["1"] == pytest.approx(
            estimator.predict_proba(row)[0, 1], abs=1e-5
        )

    @pytest.mark.parametrize("name", ["names", "forest"])
    def test_not_where_the_estimator_refuses_or_the_graph_differs(
        self, name: str, tmp_path: Path
    ) -> None:
        served = Served(export_sklearn(*fitted(name), tmp_path / "model"))
        with pytest.raises(InvalidRequest, match="'x0' is null or NaN in row 0"):
            served.ask([records_of(CANCER[:1])[0] | {"x0": None}])

    def test_only_in_the_columns_that_are_filled(self, tmp_path: Path) -> None:
        """No value is missing in the sample: the estimator is asked."""
        fill = ColumnTransformer([("f", SimpleImputer(), [0, 1])], remainder="passthrough")
        estimator = make_pipeline(fill, LogisticRegression()).fit(ROUNDED, ABOVE)
        folder = export_sklearn(estimator, ROUNDED, tmp_path / "model")
        columns = tomllib.loads((folder / "model.toml").read_text())["task_options"]["columns"]
        assert [c["name"] for c in columns if c.get("nullable")] == ["x0", "x1"]


class TestDisagreement:
    def test_a_graph_that_says_something_else_is_not_written(self, tmp_path: Path) -> None:
        def lying(path: Path, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            label, probabilities = execute(path, inputs)
            return [label, probabilities[:, ::-1]]

        with pytest.raises(ModelLoadError, match="gives other answers than the original") as caught:
            sklearn_export.export_sklearn(*fitted("names"), tmp_path / "model", execute=lying)
        assert caught.value.code == "disagrees"
        assert not (tmp_path / "model").exists()

    def test_a_tie_between_two_classes_is_no_disagreement(self, tmp_path: Path) -> None:
        """Ten trees of twenty vote each way; rounding decides, here and there."""
        x = np.zeros((40, 1))
        forest = RandomForestClassifier(2, bootstrap=False, random_state=0)
        forest.fit(np.arange(4.0).reshape(-1, 1), [0, 1, 0, 1])
        forest.estimators_[1].fit(np.arange(4.0).reshape(-1, 1), [1, 0, 1, 0])

        def other(path: Path, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            label, probabilities = execute(path, inputs)
            return [1 - label, probabilities]

        folder = sklearn_export.export_sklearn(forest, x, tmp_path / "model", execute=other)
        agreement = read_record(folder).agreement
        assert (agreement.labels_equal, agreement.ties) == (1.0, 40)

    def test_what_cannot_be_converted_says_why(self, tmp_path: Path) -> None:
        logs = make_pipeline(FunctionTransformer(np.log1p), LogisticRegression(max_iter=9000))
        with pytest.raises(ModelLoadError, match="cannot be converted: FunctionTransformer") as why:
            export_sklearn(logs.fit(CANCER[:, :3], MALIGNANT), CANCER[:, :3], tmp_path / "model")
        assert len(why.value.message) < 300
        assert "Python model" in why.value.hint
