from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrace.errors import ConfigError
from headrace.repository.samples import Sample, read_csv, read_sample

NAN = float("nan")


def described(sample: Sample) -> dict[str, tuple[str, list[Any]]]:
    return {name: (sample.datatype(name), list(v)) for name, v in sample.columns.items()}


@pytest.mark.parametrize(
    "table",
    [
        {"age": [30, 40], "city": ["Ulm", "Bonn"], "size": [1.5, 2], "new": [True, False]},
        pd.DataFrame(
            {"age": [30, 40], "city": ["Ulm", "Bonn"], "size": [1.5, 2], "new": [True, False]}
        ),
        np.array(
            [(30, "Ulm", 1.5, True), (40, "Bonn", 2, False)],
            dtype=[("age", "i2"), ("city", "U4"), ("size", "f4"), ("new", "?")],
        ),
    ],
    ids=["mapping", "frame", "structured"],
)
def test_tables_of_every_kind_are_the_same_table(table: Any) -> None:
    assert described(read_sample(table)) == {
        "age": ("INT64", [30, 40]),
        "city": ("BYTES", ["Ulm", "Bonn"]),
        "size": ("FP64", [1.5, 2]),
        "new": ("BOOL", [True, False]),
    }


def test_bare_rows_are_given_names() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert list(read_sample(rows).columns) == ["x0", "x1"]
    assert described(read_sample(rows, ["a", "b"]))["b"] == ("FP64", [2.0, 4.0])


def test_columns_are_chosen_and_ordered() -> None:
    assert list(read_sample({"a": [1], "b": [2], "c": [3]}, ["c", "a"]).columns) == ["c", "a"]
    with pytest.raises(ConfigError, match="no column 'd'"):
        read_sample({"a": [1]}, ["d"])


def test_missing_numbers_are_nan() -> None:
    sample = read_sample(pd.DataFrame({"a": [1, None], "b": pd.array([1, None], dtype="Int64")}))
    for name in ("a", "b"):
        assert sample.datatype(name) == "FP64"
        np.testing.assert_array_equal(sample.columns[name], [1, NAN])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "no columns"),
        ({"a": []}, "no rows"),
        ({"a": [1, 2], "b": [1]}, "different lengths"),
        ({"a": ["x", None]}, "'a'.*missing values and is not numeric"),
        ({"a": ["x", 1]}, "'a'.*mixes int, str"),
        ({"a": np.array(["2020-01-01"], "M8[D]")}, "'a'.*datetime64"),
        ({"a": np.zeros((2, 2))}, "'a'.*2 dimensions"),
        (np.zeros(3), r"shape \[3\]"),
    ],
)
def test_what_no_client_could_send_is_refused(table: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sample(table)


def test_names_for_bare_rows_must_be_as_many() -> None:
    with pytest.raises(ConfigError, match="3 names for 2 columns"):
        read_sample(np.zeros((1, 2)), ["a", "b", "c"])


class TestCsv:
    def read(self, tmp_path: Path, text: str, **options: Any) -> dict[str, Any]:
        path = tmp_path / "sample.csv"
        path.write_bytes(text.encode())
        return described(read_csv(path, **options))

    def test_types_are_guessed(self, tmp_path: Path) -> None:
        text = '\ufeffage, size,city,new\n30,1.5,"Ulm, Donau",True\n40,1e3,Bonn,false\n\n'
        assert self.read(tmp_path, text) == {
            "age": ("INT64", [30, 40]),
            "size": ("FP64", [1.5, 1000]),
            "city": ("BYTES", ["Ulm, Donau", "Bonn"]),
            "new": ("BOOL", [True, False]),
        }

    def test_an_empty_cell_is_a_missing_number_or_an_empty_text(self, tmp_path: Path) -> None:
        columns = self.read(tmp_path, "a,b\n1,\nNA,x\n")
        assert columns["a"][0] == "FP64"
        np.testing.assert_array_equal(columns["a"][1], [1, NAN])
        assert columns["b"] == ("BYTES", ["", "x"])

    def test_what_looks_like_numbers_may_be_text(self, tmp_path: Path) -> None:
        text = "zip,n\n01234,1\n99999,2\n"
        assert self.read(tmp_path, text)["zip"] == ("INT64", [1234, 99999])
        assert self.read(tmp_path, text, as_text=["zip"])["zip"] == ("BYTES", ["01234", "99999"])

    def test_a_number_beyond_64_bits_is_no_whole_number(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, f"a\n{2**70}\n")["a"] == ("FP64", [2.0**70])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no rows under a header"),
            ("a,b\n", "no rows under a header"),
            ("a,a\n1,2\n", "doubled or empty names"),
            ("a,\n1,2\n", "doubled or empty names"),
            ("a,b\n1,2\n3\n", "row 3 has 1 cells, not 2"),
        ],
    )
    def test_broken_files(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            self.read(tmp_path, text)

    def test_other_broken_files(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot read"):
            read_csv(tmp_path / "none.csv")
        (tmp_path / "latin.csv").write_bytes(b"a\n\xff\n")
        with pytest.raises(ConfigError, match="not a CSV file in UTF-8"):
            read_csv(tmp_path / "latin.csv")
        with pytest.raises(ConfigError, match="no column 'c'"):
            self.read(tmp_path, "a\n1\n", as_text=["c"])
