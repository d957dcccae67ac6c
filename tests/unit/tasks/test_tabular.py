from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import (
    ConfigError,
    HeadraceError,
    InferenceFailed,
    InvalidRequest,
    ModelLoadError,
)
from headrace.tasks.base import Item
from headrace.tasks.tabular import Tabular
from headrace.types import DTYPE_OF, InferenceRequest, Tensor, TensorSpec

MATRIX = (TensorSpec("X", "FP32", (-1, 3)),)
CLASSIFIER = (TensorSpec("label", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 2)))
REGRESSOR = (TensorSpec("variable", "FP32", (-1, 1)),)
THREE = [
    {"name": "age", "datatype": "INT64"},
    {"name": "income", "nullable": True},
    {"name": "member", "datatype": "BOOL"},
]
ROW = {"age": 30, "income": 1.5, "member": True}


def make(
    columns: list[Any] = THREE,
    inputs: tuple[TensorSpec, ...] = MATRIX,
    outputs: tuple[TensorSpec, ...] = CLASSIFIER,
    **options: Any,
) -> Tabular:
    return Tabular.create(inputs, outputs, {"columns": columns, **options})


def request(tensors: list[Tensor]) -> InferenceRequest:
    return InferenceRequest("model", tensors)


def tensor(name: str, datatype: str, values: list[Any]) -> Tensor:
    data = np.array(values, dtype=DTYPE_OF[datatype])
    return Tensor(name, datatype, data.shape, data)


def item_of(task: Tabular, records: list[dict[str, Any]]) -> Item:
    (item,) = task.prepare(request(task.from_records(records))).items
    return item


def finish(task: Tabular, *arrays: np.ndarray) -> list[Tensor]:
    item = Item((np.zeros((len(arrays[0]), 3), np.float32),), len(arrays[0]))
    return task.finish(request([]), [item], [arrays])


class TestSignature:
    def test_every_column_is_an_input_of_one_value_a_row(self) -> None:
        assert make().inputs == (
            TensorSpec("age", "INT64", (-1,)),
            TensorSpec("income", "FP64", (-1,)),
            TensorSpec("member", "BOOL", (-1,)),
        )
        assert make().padding is None

    def test_a_bare_name_takes_the_datatype_of_the_models_input(self) -> None:
        inputs = (
            TensorSpec("city", "BYTES", (-1, 1)),
            TensorSpec("floor", "INT64", (-1, 1)),
            TensorSpec("size", "FP32", (-1, 1)),
        )
        task = make(["size", "city", "floor"], inputs)
        assert [spec.datatype for spec in task.inputs] == ["FP64", "BYTES", "INT64"]

    @pytest.mark.parametrize(
        ("outputs", "options", "expected"),
        [
            (CLASSIFIER, {}, {"label": ("INT64", (-1,)), "probabilities": ("FP32", (-1, 2))}),
            (
                CLASSIFIER,
                {"labels": ["no", "yes"]},
                {"label": ("BYTES", (-1,)), "probabilities": ("FP32", (-1, 2))},
            ),
            (CLASSIFIER[:1], {}, {"label": ("INT64", (-1,))}),
            (
                (TensorSpec("p", "FP64", (-1, -1)),),
                {"labels": [3, 5, 8]},
                {"label": ("INT64", (-1,)), "probabilities": ("FP32", (-1, 3))},
            ),
            (REGRESSOR, {}, {"prediction": ("FP64", (-1,))}),
            ((TensorSpec("y", "FP32", (-1, 4)),), {}, {"prediction": ("FP64", (-1, 4))}),
        ],
    )
    def test_outputs_follow_from_the_models(
        self, outputs: tuple[TensorSpec, ...], options: Mapping[str, Any], expected: object
    ) -> None:
        task = make(outputs=outputs, **options)
        assert {spec.name: (spec.datatype, spec.shape) for spec in task.outputs} == expected


class TestInputs:
    def test_columns_become_one_matrix_in_the_order_of_training(self) -> None:
        sent = [
            tensor("member", "BOOL", [True, False]),
            tensor("age", "INT64", [30, 40]),
            tensor("income", "FP64", [1.5, float("nan")]),
        ]
        (item,) = make().prepare(request(sent)).items
        (matrix,) = item.arrays
        assert matrix is not None
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, [[30, 1.5, 1], [40, np.nan, 0]])
        assert (item.rows, item.length) == (2, 0)

    def test_a_column_of_a_data_frame_may_stand_upright(self) -> None:
        """MLServer's pandas codec sends [n, 1]."""
        sent = make().from_records([ROW, ROW])
        for each in sent:
            each.data = each.data.reshape(-1, 1)
        assert make().prepare(request(sent)).items[0].rows == 2

    def test_each_column_can_be_an_input_of_its_own(self) -> None:
        inputs = (
            TensorSpec("size", "FP64", (-1,)),
            TensorSpec("city", "BYTES", (-1, 1)),
            TensorSpec("floor", "INT32", (-1, 1)),
        )
        columns = [
            {"name": "city", "datatype": "BYTES"},
            {"name": "floor", "datatype": "INT64"},
            {"name": "size"},
        ]
        task = make(columns, inputs)
        item = item_of(task, [{"city": "Köln", "floor": 2, "size": 70.5}])
        size, city, floor = item.arrays
        assert size is not None
        assert city is not None
        assert floor is not None
        assert (size.shape, size.dtype) == ((1,), np.float64)
        assert city.tolist() == [["Köln".encode()]]
        assert (floor.tolist(), floor.dtype) == ([[2]], np.int32)

    @given(
        rows=st.lists(
            st.tuples(
                st.integers(-(2**24), 2**24),
                st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
                st.booleans(),
            ),
            min_size=1,
        )
    )
    def test_records_and_columns_give_the_same_matrix(self, rows: list[tuple[Any, ...]]) -> None:
        task = make()
        item = item_of(
            task, [dict(zip(("age", "income", "member"), row, strict=True)) for row in rows]
        )
        expected = [[np.nan if v is None else float(v) for v in row] for row in rows]
        np.testing.assert_array_equal(item.arrays[0], np.array(expected, np.float32))
        assert item.rows == len(rows)


class TestBadRecords:
    @pytest.mark.parametrize(
        ("record", "message", "hint"),
        [
            ({"age": 1, "income": 2.0}, "record 1 has no column 'member'", "age, income, member"),
            ({**ROW, "incone": 1}, "record 1 has an unknown column 'incone'", "mean 'income'"),
            ({**ROW, "zzz": 1}, "record 1 has an unknown column 'zzz'", "columns: age"),
            ({**ROW, "age": "30"}, "'age' is '30' in row 1; expected a whole number", ""),
            ({**ROW, "age": 30.5}, "'age' is 30.5 in row 1; expected a whole number", ""),
            ({**ROW, "age": True}, "'age' is True in row 1", ""),
            ({**ROW, "age": None}, "'age' is null in row 1", "fill it"),
            ({**ROW, "age": 2**63}, "out of range in row 1", ""),
            ({**ROW, "member": 1}, "'member' is 1 in row 1; expected a boolean", ""),
            ({**ROW, "income": "much"}, "'income' is 'much' in row 1; expected a number", ""),
            ({**ROW, "income": 10**400}, "out of range in row 1", ""),
            ([1, 2, 3], "record 1 is a list", ""),
        ],
    )
    def test_what_is_wrong_is_named(self, record: Any, message: str, hint: str) -> None:
        with pytest.raises(InvalidRequest, match=message) as caught:
            make().from_records([ROW, record])
        assert hint in caught.value.hint
        assert caught.value.details["row"] == 1

    def test_no_records(self) -> None:
        with pytest.raises(InvalidRequest, match="no records"):
            make().from_records([])

    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from(["age", "income", "member", "x"]),
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats()
                | st.text()
                | st.lists(st.integers()),
            )
        )
    )
    def test_nothing_that_json_can_say_raises_anything_else(self, records: Any) -> None:
        task = make()
        try:
            task.prepare(request(task.from_records(records)))
        except HeadraceError as error:
            assert isinstance(error, InvalidRequest)  # noqa: PT017 - either outcome is fine


class TestBadColumns:
    def test_missing_values_only_where_they_mean_something(self) -> None:
        task = make([{"name": "a"}], (TensorSpec("X", "FP32", (-1, 1)),))
        with pytest.raises(InvalidRequest, match="'a' is null or NaN in row 1"):
            task.prepare(request([tensor("a", "FP64", [1.0, float("nan")])]))

    @pytest.mark.parametrize("nullable", [True, False])
    def test_infinity_is_no_value(self, nullable: bool) -> None:
        task = make([{"name": "a", "nullable": nullable}], (TensorSpec("X", "FP32", (-1, 1)),))
        with pytest.raises(InvalidRequest, match=r"'a' is -inf.*row 0"):
            task.prepare(request([tensor("a", "FP64", [float("-inf")])]))

    @pytest.mark.parametrize(
        ("datatype", "value", "model"), [("FP64", 1e39, "FP32"), ("INT64", 2**40, "INT32")]
    )
    def test_what_the_models_datatype_cannot_hold(
        self, datatype: str, value: float, model: str
    ) -> None:
        task = make([{"name": "a", "datatype": datatype}], (TensorSpec("X", model, (-1, 1)),))
        with pytest.raises(InvalidRequest, match=f"'a' is .* in row 1; too large for {model}"):
            task.prepare(request([tensor("a", datatype, [0, value])]))

    def test_columns_of_different_lengths(self) -> None:
        sent = make().from_records([ROW, ROW])
        sent[2].data = sent[2].data[:1]
        with pytest.raises(InvalidRequest, match="'member' has 1 rows, but 'age' has 2"):
            make().prepare(request(sent))

    def test_no_rows(self) -> None:
        sent = make().from_records([ROW])
        for each in sent:
            each.data = each.data[:0]
        with pytest.raises(InvalidRequest, match="no rows"):
            make().prepare(request(sent))


class TestOutputs:
    def test_the_models_own_label_is_kept(self) -> None:
        """A tuned threshold may choose the class that is less likely."""
        task = make()
        probabilities = np.array([[0.7, 0.3]], np.float32)
        label, _ = finish(task, np.array([1]), probabilities)
        assert label.data.tolist() == [1]
        assert task.to_records([label]) == [{"label": 1}]

    def test_names_for_a_model_that_counts(self) -> None:
        task = make(labels=["no", "yes"])
        outputs = finish(task, np.array([0, 1]), np.array([[0.75, 0.25], [0.5, 0.5]], np.float32))
        assert [each.name for each in outputs] == ["label", "probabilities"]
        assert task.to_records(outputs) == [
            {"label": "no", "probabilities": {"no": 0.75, "yes": 0.25}},
            {"label": "no", "probabilities": {"no": 0.5, "yes": 0.5}},
        ]

    def test_names_of_the_models_own(self) -> None:
        outputs = (TensorSpec("label", "BYTES", (-1,)), CLASSIFIER[1])
        task = make(outputs=outputs, labels=["leaves", "größer"])
        label = np.array(["größer".encode()], dtype=object)
        made = finish(task, label, np.array([[0.25, 0.75]], np.float32))
        assert task.to_records(made) == [
            {"label": "größer", "probabilities": {"leaves": 0.25, "größer": 0.75}}
        ]

    def test_classes_without_names_are_counted(self) -> None:
        task = make()
        made = finish(task, np.array([7]), np.array([[0.25, 0.75]], np.float32))
        assert task.to_records(made) == [{"label": 7, "probabilities": {"0": 0.25, "1": 0.75}}]

    def test_probabilities_alone_are_enough(self) -> None:
        task = make(outputs=(TensorSpec("p", "FP64", (-1, 2)),), labels=[10, 20])
        label, probabilities = finish(task, np.array([[0.25, 0.75]]))
        assert label.data.tolist() == [20]
        assert probabilities.data.dtype == np.float32

    def test_a_regression_is_a_number_a_row(self) -> None:
        task = make(outputs=REGRESSOR)
        (prediction,) = finish(task, np.array([[1.5], [2.5]], np.float32))
        assert (prediction.datatype, prediction.shape) == ("FP64", (2,))
        assert task.to_records([prediction]) == [{"prediction": 1.5}, {"prediction": 2.5}]

    def test_or_several(self) -> None:
        task = make(outputs=(TensorSpec("y", "FP32", (-1, 2)),))
        made = finish(task, np.array([[1.5, 2.5]], np.float32))
        assert task.to_records(made) == [{"prediction": [1.5, 2.5]}]

    @pytest.mark.parametrize(
        "arrays",
        [
            (np.array([1, 2, 3]), np.zeros((3, 2), np.float32)),
            (np.array([1]), np.zeros((1, 3), np.float32)),
            (np.array([1]), np.zeros(1, np.float32)),
        ],
    )
    def test_a_model_that_breaks_its_word(self, arrays: tuple[np.ndarray, ...]) -> None:
        task = make(labels=[0, 1])
        item = Item((np.zeros((1, 3), np.float32),), 1)
        with pytest.raises(InferenceFailed, match="the model gave"):
            task.finish(request([]), [item], [arrays])

    def test_a_regression_that_breaks_its_word(self) -> None:
        with pytest.raises(InferenceFailed, match=r"expected \[rows\]"):
            finish(make(outputs=REGRESSOR), np.zeros((1, 2), np.float32))


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "needs the names of its columns"),
            ({"columns": []}, "needs the names of its columns"),
            ({"columns": ["a"], "label": ["x"]}, "unknown field `label`"),
            ({"columns": [{"name": "a", "datatype": "FP16"}]}, "Invalid enum value 'FP16'"),
            ({"columns": [{"name": "a", "null": True}]}, "unknown field `null`"),
            ({"columns": ["a", "a"]}, "'a' is listed 2 times"),
            (
                {"columns": [{"name": "a", "datatype": "INT64", "nullable": True}]},
                "'a' is nullable and INT64",
            ),
            ({"columns": ["a"], "labels": ["x", 1]}, "neither all names nor all numbers"),
            ({"columns": ["a"], "labels": ["x"]}, "1 labels, but output 'probabilities' has 2"),
        ],
    )
    def test_what_cannot_be_is_refused_at_load(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Tabular.create((TensorSpec("X", "FP32", (-1, 1)),), CLASSIFIER, options)

    @pytest.mark.parametrize(
        ("columns", "inputs", "outputs", "message"),
        [
            (["a"], MATRIX, CLASSIFIER, "takes 3 columns, but task_options lists 1"),
            (
                ["a", "b"],
                (TensorSpec("a", "FP32", (-1, 1)), TensorSpec("c", "FP32", (-1, 1))),
                CLASSIFIER,
                r"only the model has \['c'\], only the options have \['b'\]",
            ),
            (["a"], (TensorSpec("X", "INT64", (-1, 1)),), CLASSIFIER, "'a' is FP64, but input 'X'"),
            (["a"], (TensorSpec("X", "FP32", (-1, 1, 1)),), CLASSIFIER, r"shape \[-1, 1, 1\]"),
            (["a", "b"], (TensorSpec("X", "FP32", (-1,)),), CLASSIFIER, r"takes \[-1, 2\]"),
            (
                ["a"],
                (TensorSpec("X", "FP32", (-1, 1)),),
                (TensorSpec("y", "UINT8", (1,)),),
                "neither",
            ),
        ],
    )
    def test_a_model_that_does_not_fit_is_refused_at_load(
        self,
        columns: list[Any],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        message: str,
    ) -> None:
        with pytest.raises(ModelLoadError, match=message):
            make(columns, inputs, outputs)

    def test_names_need_something_to_choose_by(self) -> None:
        with pytest.raises(ConfigError, match="no probabilities to choose by"):
            make(outputs=CLASSIFIER[:1], labels=["no", "yes"])
