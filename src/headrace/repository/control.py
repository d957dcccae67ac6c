"""The repository at run time: which models there are, and one of them looked at again.

What a load request of Triton's repository API may bring along is understood: a configuration
that takes the place of ``config.pbtxt``, and files that take the place of the model's folder
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from headrace.config import Config
from headrace.errors import InvalidRequest, ModelLoadError, ModelNotFound, OperatorError
from headrace.repository.base import ScanResult
from headrace.repository.folders import check_name, list_folder
from headrace.repository.scanner import NOT_THERE, Scanner, looks_like_model
from headrace.repository.versions import VERSION_FOLDER

FILE_PREFIX = "file:"
"""What the names of files begin with among the parameters of a load request."""

MAX_FILES = 1000
"""Of one load request; a model with external weights has some hundreds."""

_FOLDER_PREFIX = "headrace-model-"


def list_models(roots: Sequence[Path]) -> tuple[str, ...]:
    """The names of everything in the repositories that is meant as a model, sorted.

    Nothing is read but names, so it is cheap enough for every request for the index. A root
    that is a model itself is not listed: it was loaded when the server started.
    """
    names: set[str] = set()
    for root in roots:
        try:
            entries = list_folder(root) if root.is_dir() else []
        except ModelLoadError:
            continue  # said when the server started; there may be others
        if any(VERSION_FOLDER.fullmatch(entry.name) for entry in entries):
            continue
        names.update(entry.name for entry in entries if entry.is_dir() and looks_like_model(entry))
    return tuple(sorted(names))


def scan_model(
    roots: Sequence[Path],
    name: str,
    *,
    config: Config,
    override: str | None = None,
    files: Mapping[str, bytes] | None = None,
    given_name: str = "",
) -> ScanResult:
    """Looks for one model in the repositories again.

    Args:
        roots: as the server was given them.
        name: the model's.
        config: as the server has it.
        override: JSON in the shape of Triton's ``ModelConfig``; takes the place of the
            model's ``config.pbtxt``.
        files: path (``1/model.onnx``) -> content; they take the place of the model's folder,
            and need ``override``. They are written to a folder of their own, which must stay
            while the model is loaded: see :func:`discard`.
        given_name: what the server was told to call its one model.

    Returns:
        At least one version, or at least one problem with the model as a whole.

    Raises:
        ModelNotFound: no repository has a model of this name.
        InvalidRequest: ``files`` without ``override``, or a path that leaves the folder.
        ConfigError, ModelLoadError: it cannot be served.
    """
    if files:
        return _scan_files(name, config, override, files)
    scanner = Scanner(config, given_name, only=frozenset([name]), override=override)
    for root in roots:
        scanner.add(root)
    found = scanner.result()
    if any(problem.error.code == NOT_THERE for problem in found.problems):
        raise ModelNotFound(
            f"failed to load '{name}', failed to poll from model repository",
            hint="the model's folder must lie in one of the repositories",
            model=name,
        )
    if override is not None and config.server.code_from != "anywhere":
        found = _keep_code(found, roots, name, config, given_name)
    return found


def discard(found: ScanResult) -> None:
    """Deletes the files that a load request brought, once its model is unloaded again."""
    if found.uploaded_to is not None:
        shutil.rmtree(found.uploaded_to, ignore_errors=True)


def _keep_code(
    found: ScanResult, roots: Sequence[Path], name: str, config: Config, given_name: str
) -> ScanResult:
    """A configuration that was sent selects no code: only what would run without it may run."""
    scanner = Scanner(config, given_name, only=frozenset([name]))
    try:
        for root in roots:
            scanner.add(root)
    except OperatorError:
        pass  # without the configuration it could not be served, or not all of it
    own = {
        (source.format, source.path.name)
        for source in scanner.result().models
        if source.may_run_code
    }
    models = tuple(
        msgspec.structs.replace(source, may_run_code=(source.format, source.path.name) in own)
        for source in found.models
    )
    return msgspec.structs.replace(found, models=models)


def _scan_files(
    name: str, config: Config, override: str | None, files: Mapping[str, bytes]
) -> ScanResult:
    if override is None:
        raise InvalidRequest(
            f"failed to load '{name}', a configuration must be provided with files: set the "
            "parameter 'config'",
            model=name,
        )
    if len(files) > MAX_FILES:
        raise InvalidRequest(f"failed to load '{name}', {len(files)} files are too many")
    check_name(name, Path(name))
    root = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    try:
        for path, content in files.items():
            target = root / name / _safe(path.removeprefix(FILE_PREFIX), name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        scanner = Scanner(config, only=frozenset([name]), override=override, uploaded=True)
        scanner.add(root)
        return msgspec.structs.replace(scanner.result(), uploaded_to=root)
    except OSError as error:
        shutil.rmtree(root, ignore_errors=True)
        raise InvalidRequest(
            f"failed to load '{name}', its files cannot be written: {error.strerror}", model=name
        ) from None
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise


def _safe(path: str, name: str) -> PurePosixPath:
    relative = PurePosixPath(path)
    parts = relative.parts
    if not parts or relative.is_absolute() or "\0" in path or set(parts) & {"..", "\\"}:
        raise InvalidRequest(
            f"failed to load '{name}', {path!r} is not a path within the model's folder",
            hint="such as file:1/model.onnx",
            model=name,
        )
    return relative
