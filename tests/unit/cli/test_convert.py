from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from headrace.cli.convert import export_sklearn
from headrace.cli.main import main
from headrace.repository.sklearn_export import read_record

ROWS, SPECIES = load_iris(return_X_y=True)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    path = tmp_path / "iris.joblib"
    joblib.dump(LogisticRegression(max_iter=500).fit(ROWS, SPECIES), path)
    return path


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.csv"
    np.savetxt(path, ROWS, delimiter=",", header="a,b,c,d", comments="", fmt="%.18g")
    return path


class Trap:
    """What a hostile pickle does when it is opened."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.sprung),)


def test_it_converts_says_how_well_and_how_to_serve(
    pickled: Path, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "iris"
    command = ["convert", str(pickled), "--sample", str(sample), "--out", str(out), "--trust"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "LogisticRegression" in lines[0]
    assert "agrees on 150 rows: 100.0% of labels equal" in lines[-2]
    assert lines[-1] == f"headrace serve {out}"
    record = read_record(out)
    assert (record.source, record.name) == ("scikit-learn: iris.joblib", "iris")


def test_a_pickle_is_not_opened_without_trust(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap = tmp_path / "trap.pkl"
    joblib.dump(Trap(tmp_path / "sprung"), trap)
    assert main(["convert", str(trap), "--sample", str(sample), "--out", str(tmp_path / "m")]) == 2
    told = capsys.readouterr().err
    assert "runs whatever code" in told
    assert "--trust" in told
    assert not (tmp_path / "sprung").exists()
    joblib.load(trap)  # it would have been sprung
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a pickle", "cannot be unpickled"),
        (joblib.hash(1).encode(), "cannot be unpickled"),
    ],
)
def test_what_is_no_pickle(
    content: bytes, message: str, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.joblib"
    path.write_bytes(content)
    assert main(["convert", str(path), "--sample", str(sample), "--trust"]) == 1
    assert message in capsys.readouterr().err


def test_what_is_no_estimator(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list.joblib"
    joblib.dump([1, 2], path)
    assert main(["convert", str(path), "--sample", str(sample), "--trust"]) == 2
    assert "list has no predict()" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.joblib", "--trust"], "there is no file none.joblib"),
        (["{pickled}", "--trust"], "--sample is missing"),
        (["{pickled}", "--trust", "--sample", "none.csv"], "cannot read none.csv"),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], message: str, pickled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *(each.format(pickled=pickled) for each in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_from_a_notebook(tmp_path: Path) -> None:
    estimator = LogisticRegression(max_iter=500).fit(ROWS, SPECIES)
    folder = export_sklearn(estimator, ROWS, tmp_path / "iris")
    assert read_record(folder).agreement.holds
