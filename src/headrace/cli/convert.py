"""``headrace convert``: a pickled scikit-learn estimator, by whoever trusts the file."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError, MissingExtra, ModelLoadError

_EPILOG = """\
A pickle is a program: opening it runs whatever its author put there. The server therefore
never opens one. This command does, once, if you say --trust: on a machine, and with a file,
where you would also run a script by the same author.

The sample is a CSV file with a header line and a few (better: a thousand) rows like those
that will be sent; columns that the estimator was not fitted on are left out. The answers of
estimator and converted model are compared on every row of it.

examples:
  headrace convert churn.joblib --sample test.csv --out models/churn --trust
  headrace convert churn.pkl --sample test.csv --text-column zip --out models/churn --trust
"""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "convert",
        help="make a servable model of a scikit-learn estimator",
        description="Converts a pickled scikit-learn estimator to ONNX and checks the result.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a .joblib or .pkl file")
    parser.add_argument("--sample", metavar="CSV", help="rows like those that will be sent")
    parser.add_argument("--out", metavar="DIR", help="the folder to make (default: models/NAME)")
    parser.add_argument("--name", default="", help="the model's name (default: the file's)")
    parser.add_argument(
        "--text-column",
        action="append",
        default=[],
        metavar="COLUMN",
        help="this column is text, although it looks like numbers; can be repeated",
    )
    parser.add_argument(
        "--trust", action="store_true", help="open the pickle, which runs the code inside it"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Converts and prints how well it went. The last line is the command that serves it.

    Raises:
        ConfigError: no --trust, no --sample, or they do not fit the estimator.
        ModelLoadError: the file is no estimator, or cannot be converted faithfully.
        MissingExtra: scikit-learn or skl2onnx is not installed.
    """
    from headrace.repository.samples import read_csv

    path = Path(args.model)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    if not args.sample:
        raise ConfigError(
            "--sample is missing: a CSV file with rows like those that will be sent",
            hint="the converted model is compared with the original on it; the test set is good",
        )
    if not args.trust:
        raise ConfigError(
            f"{path} is a pickle: opening it runs whatever code its author put there",
            hint="if you would also run a script by that author here, say --trust",
        )
    sample = read_csv(Path(args.sample), as_text=args.text_column)
    name = args.name or path.stem
    out = Path(args.out or Path("models") / name)
    export_sklearn(_unpickle(path), sample, out, name=name, source=path.name)
    _tell(out)
    return 0


def export_sklearn(
    estimator: Any,
    sample: Any,
    out: Path | str,
    *,
    name: str = "",
    columns: Sequence[str] = (),
    source: str = "",
) -> Path:
    """Converts a fitted estimator, compares, and writes a folder for ``headrace serve``.

    :func:`headrace.repository.sklearn_export.export_sklearn`, checked in the runtime of the
    base install; arguments and errors as there.
    """
    from headrace.cli.graph_trial import execute
    from headrace.repository import sklearn_export

    return sklearn_export.export_sklearn(
        estimator, sample, Path(out), execute=execute, name=name, columns=columns, source=source
    )


def _unpickle(path: Path) -> Any:
    try:
        joblib = import_module("joblib")  # comes with scikit-learn
    except ImportError:
        raise MissingExtra("headrace convert", extra="sklearn", package="scikit-learn") from None
    try:
        with warnings.catch_warnings(record=True) as noticed:
            warnings.simplefilter("always")
            estimator = joblib.load(path)
    # The file's own code runs here, and it may raise what it likes.
    except Exception as error:  # noqa: BLE001
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ModelLoadError(
            f"{path} cannot be unpickled: {reason}",
            hint="it needs the packages, and mostly the scikit-learn version, it was made with",
        ) from None
    for notice in noticed:
        print(f"note: {str(notice.message).splitlines()[0][:200]}")
    return estimator


def _tell(out: Path) -> None:
    import shlex

    from headrace.repository.sklearn_export import read_record

    record = read_record(out)
    agreement = record.agreement
    labels = (
        f"{agreement.labels_equal:.1%} of labels equal, " if record.kind != "regression" else ""
    )
    print(f"{record.estimator} -> {out / '1' / 'model.onnx'} ({record.numbers})")
    print(
        f"agrees on {agreement.rows} rows: {labels}"
        f"largest difference {agreement.max_difference:.2g}"
    )
    print(f"headrace serve {shlex.quote(str(out))}")
