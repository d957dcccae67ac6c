"""A fitted scikit-learn estimator -> a model folder that a server may load.

The server never opens a pickle, because a pickle is a program. So conversion happens where
the estimator was trained, by whoever trusts it::

    <out>/1/model.onnx       the estimator as a graph
    <out>/model.toml         task, columns and labels
    <out>/provenance.json    what was converted, with which versions, and how well it agrees

Nothing is written unless the graph says what the estimator says about every row of a sample.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from headrace.digests import sha256_of
from headrace.errors import ConfigError, HeadraceError, InferenceFailed, ModelLoadError
from headrace.repository.agreement import (
    Agreement,
    Answers,
    Original,
    compare,
    graph_inputs,
    model_answers,
)
from headrace.repository.folders import check_name
from headrace.repository.landing import land, staging
from headrace.repository.samples import Sample, has_names, read_sample
from headrace.repository.sklearn_convert import OPSETS, InputForm, convert, forms_to_try
from headrace.repository.trial import Execute

_PACKAGES = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy", "headrace")

_MAX_PROBED_COLUMNS = 256
_PROBED_ROWS = 32
"""To find out which columns may be missing: so many rows for each of so many columns. Wider
tables say it by having something missing in the sample."""


class ExportRecord(msgspec.Struct, frozen=True):
    """The whole of ``provenance.json``.

    Attributes:
        source: ``scikit-learn``, and the file it came from where there was one.
        name: of the model.
        estimator: its class, with the last step's for a pipeline.
        kind: classification, regression, or assignment (clusters, outliers).
        agreement: on the sample, measured in the runtime that will serve.
        numbers: FP32 or FP64: what the graph computes in.
        opsets: domain -> version.
        versions: of every package that had a part in it.
        sha256: path in the folder -> digest.
    """

    source: str
    name: str
    estimator: str
    kind: str
    agreement: Agreement
    numbers: str
    opsets: dict[str, int]
    versions: dict[str, str]
    sha256: dict[str, str]


class _Candidate(msgspec.Struct, frozen=True):
    """One converted graph, in a file, and how it did."""

    file: Path
    form: InputForm
    agreement: Agreement


def export_sklearn(
    estimator: Any,
    sample: Any,
    out: Path,
    *,
    execute: Execute,
    name: str = "",
    columns: Sequence[str] = (),
    source: str = "",
) -> Path:
    """Converts, compares, and writes a folder for ``headrace serve``.

    Args:
        estimator: fitted; a classifier, regressor, clusterer, outlier detector, or a
            pipeline that ends in one.
        sample: rows like those that will be sent, without the target: a data frame, a
            mapping of columns, a structured array, or an array of numbers. The test set is
            a good one; the answers are compared on every row of it.
        out: the folder to make; must not be there, or be empty.
        execute: runs a graph, in the runtime that will serve it.
        name: the model's name; by default the folder's.
        columns: names for an array without, or which columns of the sample to take. By
            default those that the estimator was fitted on.
        source: where the estimator came from, for the record.

    Returns:
        ``out``.

    Raises:
        ConfigError: the sample does not fit the estimator, or ``out`` is taken.
        ModelLoadError: it cannot be converted, or the graph disagrees with the estimator.
        MissingExtra: scikit-learn or skl2onnx is not installed.
        PullError: the folder cannot be written.
    """
    out = Path(out)
    name = check_name(name or out.name, out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already", hint="name a new folder, or remove it")
    original = Original(estimator)
    table = _table(estimator, sample, columns)
    with tempfile.TemporaryDirectory() as scratch:
        best = _best(estimator, original, table, execute, Path(scratch))
        nullable = _nullable(original, table, best, execute)
        record = _record(estimator, original, best, name, source)
        with staging(out) as stage:
            folder = stage / "model"
            (folder / "1").mkdir(parents=True)
            (folder / "1" / "model.onnx").write_bytes(best.file.read_bytes())
            told = _model_toml(table, nullable, original.classes)
            (folder / "model.toml").write_text(told, encoding="utf-8")
            (folder / "provenance.json").write_bytes(
                msgspec.json.format(msgspec.json.encode(record)) + b"\n"
            )
            land(folder, out, replace=True)
    return out


def read_record(folder: Path) -> ExportRecord:
    """What :func:`export_sklearn` wrote about the model in ``folder``."""
    return msgspec.json.decode((folder / "provenance.json").read_bytes(), type=ExportRecord)


def _table(estimator: Any, sample: Any, columns: Sequence[str]) -> Sample:
    """The sample's columns that the estimator was fitted on, in its order."""
    fitted = getattr(estimator, "feature_names_in_", None)
    if fitted is None:
        table = read_sample(sample, columns)
    else:
        names = [str(name) for name in fitted]
        table = read_sample(sample, columns or (() if has_names(sample) else names)).select(names)
    expected = getattr(estimator, "n_features_in_", len(table.columns))
    if len(table.columns) != expected:
        raise ConfigError(
            f"the sample has {len(table.columns)} columns, but {type(estimator).__name__} was "
            f"fitted on {expected}",
            hint="leave out the target and whatever else it did not see",
            expected=expected,
            got=len(table.columns),
        )
    return table


def _best(
    estimator: Any, original: Original, table: Sample, execute: Execute, scratch: Path
) -> _Candidate:
    """The first form whose graph agrees with the estimator."""
    kinds = [(name, table.datatype(name)) for name in table.columns]
    expected = original.answers(table)
    refused: list[HeadraceError] = []
    for number, form in enumerate(forms_to_try(estimator, [kind for _, kind in kinds])):
        file = scratch / f"{number}.onnx"
        try:
            file.write_bytes(convert(estimator, kinds, form, width=expected.width))
            got = _ask(file, form, table, original, execute)
        except (ModelLoadError, InferenceFailed) as error:
            refused.append(error)
            continue
        agreement = compare(expected, got)
        if agreement.holds:
            return _Candidate(file, form, agreement)
        refused.append(_disagrees(estimator, agreement))
    # What disagreed got further than what could not be built, and says more.
    raise next((error for error in refused if error.code == "disagrees"), refused[0])


def _ask(
    file: Path, form: InputForm, table: Sample, original: Original, execute: Execute
) -> Answers:
    return model_answers(execute(file, graph_inputs(table, form)), original)


def _disagrees(estimator: Any, agreement: Agreement) -> ModelLoadError:
    return ModelLoadError(
        f"converted, {type(estimator).__name__} gives other answers than the original: the same "
        f"label for {agreement.labels_equal:.1%} of {agreement.rows} rows, numbers up to "
        f"{agreement.max_difference:.3g} apart (allowed: {agreement.tolerance:g})",
        code="disagrees",
        hint="nothing was written; serve it as a Python model, or simplify the pipeline",
        rows=agreement.rows,
        labels_equal=agreement.labels_equal,
    )


def _nullable(
    original: Original, table: Sample, best: _Candidate, execute: Execute
) -> frozenset[str]:
    """The columns of numbers that may be missing: found by asking, not by guessing.

    Those that are missing somewhere in the sample have been compared already. The others
    are taken away one at a time, from some rows of the sample; where the estimator still
    answers, the graph must answer the same. One that does not condemns them all: then it
    treats NaN in another way, and the columns that passed were lucky.
    """
    numeric = [name for name in table.columns if table.datatype(name) == "FP64"]
    known = frozenset(name for name in numeric if np.isnan(table.columns[name]).any())
    unknown = [name for name in numeric if name not in known]
    if len(unknown) > _MAX_PROBED_COLUMNS:
        return known
    together = _agrees_without(original, table, unknown, best, execute)
    if together is not None:
        return known | frozenset(unknown) if together else known
    # One column that the estimator refuses hides all others, so they are asked alone.
    alone = {n: _agrees_without(original, table, [n], best, execute) for n in unknown}
    if False in alone.values():
        return known
    return known | frozenset(name for name, agrees in alone.items() if agrees)


def _agrees_without(
    original: Original, table: Sample, names: Sequence[str], best: _Candidate, execute: Execute
) -> bool | None:
    """Whether the graph agrees when any one of ``names`` is missing; None: no answer at all."""
    probe = _without_each(table, names)
    try:
        expected = original.answers(probe)
        got = _ask(best.file, best.form, probe, original, execute)
    except HeadraceError:
        return None
    return compare(expected, got).holds


def _without_each(table: Sample, names: Sequence[str]) -> Sample:
    """Rows of the sample, once for each name, with that column taken away."""
    rows = min(table.rows, _PROBED_ROWS)
    chosen = np.linspace(0, table.rows - 1, rows).astype(int)
    columns = {name: np.tile(v[chosen], max(1, len(names))) for name, v in table.columns.items()}
    for index, name in enumerate(names):
        columns[name][index * rows : (index + 1) * rows] = np.nan
    return Sample(columns)


def _model_toml(table: Sample, nullable: frozenset[str], classes: Sequence[Any]) -> str:
    lines = ['task = "tabular"', "", "[task_options]", "columns = ["]
    for name in table.columns:
        missing = ", nullable = true" if name in nullable else ""
        datatype = table.datatype(name)
        lines.append(f'    {{ name = {_quoted(name)}, datatype = "{datatype}"{missing} }},')
    lines.append("]")
    if classes:
        whole = all(isinstance(each, int | float) and each == int(each) for each in classes)
        labels = [str(int(c)) if whole else _quoted(str(c)) for c in classes]
        lines.append(f"labels = [{', '.join(labels)}]")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, all but DEL (https://toml.io/en/v1.0.0)."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007F")


def _record(
    estimator: Any, original: Original, best: _Candidate, name: str, source: str
) -> ExportRecord:
    return ExportRecord(
        source=f"scikit-learn: {source}" if source else "scikit-learn",
        name=name,
        estimator=_class_of(estimator),
        kind=original.kind,
        agreement=best.agreement,
        numbers=best.form.numbers,
        opsets=OPSETS,
        versions={"python": platform.python_version()} | _versions(),
        sha256={"1/model.onnx": sha256_of(best.file)},
    )


def _class_of(estimator: Any) -> str:
    steps = [type(step).__name__ for _, step in getattr(estimator, "steps", [])]
    own = f"{type(estimator).__module__}.{type(estimator).__qualname__}"
    return f"{own}({', '.join(steps)})" if steps else own


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
