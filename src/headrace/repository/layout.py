"""Finds the models in the files and folders a person points at.

Three shapes are understood, and told apart by what is in them:

- a file: ``model.onnx``, ``anything.onnx``, ``model.xml`` (OpenVINO), ``model.py``;
- a model's folder: one model file, or a Hugging Face folder, or version folders
  (``<model>/<version>/<file>``, Triton's layout);
- a repository: a folder of model folders.

Only names, sizes and headers are read; nothing is loaded, built or run. What is broken in a
repository is reported beside what is not, so that one bad model never hides the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from headrace.config import Config, ModelConfig
from headrace.errors import ConfigError, ModelLoadError, OperatorError
from headrace.repository.base import ModelSource
from headrace.repository.folders import (
    check_name,
    list_folder,
    refuse_links_out,
    require_inside,
    some_names,
)
from headrace.repository.formats import (
    FORMAT_OF,
    Found,
    find_model,
    not_a_model,
    nothing_here,
    refusal,
)
from headrace.repository.model_toml import FILE_NAME as MODEL_TOML
from headrace.repository.model_toml import merge, overlay_folder
from headrace.repository.onnx_check import check_onnx
from headrace.repository.versions import VERSION_FOLDER, VersionPolicy


class Problem(msgspec.Struct, frozen=True):
    """One model, or one version of it, that cannot be served, and why.

    ``version`` is "" where the whole model is concerned.
    """

    name: str
    version: str
    path: Path
    error: OperatorError

    @property
    def reason(self) -> str:
        """The error as one line, its hint included."""
        return (
            f"{self.error.message} ({self.error.hint})" if self.error.hint else self.error.message
        )


class ScanResult(msgspec.Struct, frozen=True):
    """What was found.

    Attributes:
        models: every servable version, by name, newest version first.
        problems: what was meant to be a model and cannot be served.
        unused: names in ``Config.models`` that match nothing found: perhaps misspelt.
    """

    models: tuple[ModelSource, ...]
    problems: tuple[Problem, ...] = ()
    unused: tuple[str, ...] = ()


def scan(paths: Sequence[Path], *, config: Config, name: str = "") -> ScanResult:
    """Finds the models behind ``paths``.

    Args:
        paths: files, model folders or repositories, in any mixture.
        config: its ``defaults`` and ``models`` are merged with each ``model.toml``.
        name: what to call the model; only where exactly one is found.

    Raises:
        ModelLoadError: a path that was given is missing, unreadable, ambiguous, not a model
            at all, or holds nothing but broken versions of one model.
        ConfigError: a name that cannot be one, two models of one name, a wrong
            ``model.toml`` or version policy in a path that was given.
    """
    if not paths:
        raise ConfigError("no model was given", hint="headrace serve MODEL_OR_REPOSITORY ...")
    scanner = _Scanner(config, name)
    for path in paths:
        scanner.add(path)
    return scanner.result()


class _Scanner:
    def __init__(self, config: Config, name: str) -> None:
        self._config = config
        self._name = name
        self._models: list[ModelSource] = []
        self._problems: list[Problem] = []
        self._places: dict[str, Path] = {}

    def add(self, path: Path) -> None:
        """Whatever ``path`` is; raises for what a person pointed at directly."""
        try:
            if path.is_dir():
                self._add_folder(path)
            elif path.exists():
                self._add_file(path)
            else:
                raise _missing(path)
        except OSError as error:
            raise _unreadable(path, error) from None

    def result(self) -> ScanResult:
        found = {source.name for source in self._models} | {p.name for p in self._problems}
        return ScanResult(
            models=tuple(sorted(self._models, key=lambda m: (m.name, -int(m.version)))),
            problems=tuple(self._problems),
            unused=tuple(sorted(set(self._config.models) - found)),
        )

    def _add_file(self, path: Path) -> None:
        if path.suffix.lower() not in (*FORMAT_OF, ".safetensors"):
            raise not_a_model(path)
        folder = path.parent
        named = path.stem == "model"  # says nothing about which: its folder's name does
        place = folder.resolve()
        version = "1"
        if named and VERSION_FOLDER.fullmatch(place.name):
            version, place = place.name, place.parent
        name = self._claim(self._name or (place.name if named else path.stem), path)
        config = self._configure(name, [folder], folder)
        found = _among(path, folder, config)
        self._models.append(_checked(found, name, version, folder, config))

    def _add_folder(self, folder: Path) -> None:
        entries = list_folder(folder)
        name = self._name or folder.resolve().name
        runtime = self._configure(name, [folder], folder).runtime
        direct = find_model(folder, entries, runtime=runtime, root=folder)
        # Triton's numbers first: a folder of numbered folders is never a repository.
        if direct is not None or any(map(_is_version, entries)):
            _refuse_models_beside(direct, folder, entries)
            self._add_model(folder, folder, name)
            return
        folders = [entry for entry in entries if entry.is_dir() or entry.is_symlink()]
        if not any(map(_looks_like_model, folders)):
            raise nothing_here(folder, entries)
        self._add_repository(folder, folders)

    def _add_repository(self, root: Path, folders: Sequence[Path]) -> None:
        if self._name and len(folders) > 1:
            raise ConfigError(
                f"{root} is a repository of {len(folders)} models ({some_names(folders)}); "
                f"they cannot all be called {self._name!r}",
                hint="leave the name out, or point at one model's folder",
            )
        for folder in folders:
            name = self._name or folder.name
            self._refuse_twice(name, folder)
            error: OperatorError
            try:
                require_inside(folder, root)
                self._add_model(folder, root, name)
                continue
            except OperatorError as caught:
                error = caught
            except OSError as caught:
                error = _unreadable(folder, caught)
            self._problems.append(Problem(name=name, version="", path=folder, error=error))

    def _add_model(self, folder: Path, root: Path, name: str) -> None:
        """One model's folder, with or without versions; raises where none can be served."""
        entries = list_folder(folder)
        refuse_links_out(entries, root)
        name = self._claim(name, folder)
        config = self._configure(name, [folder], root)
        versions = {int(entry.name): entry for entry in entries if _is_version(entry)}
        direct = find_model(folder, entries, runtime=config.runtime, root=root)
        if direct is None and not versions:
            raise nothing_here(folder, entries)
        if direct is not None and versions:
            raise ModelLoadError(
                f"{folder} holds both versions ({some_names(versions.values())}) and a model of "
                f"its own ({direct.path.name})",
                hint="move the model into a version folder, or the version folders away",
                path=str(folder),
            )
        if direct is not None:
            require_inside(direct.path, root)
            self._models.append(_checked(direct, name, "1", folder, config))
            return
        self._add_versions(name, versions, root, config)

    def _add_versions(
        self, name: str, versions: dict[int, Path], root: Path, config: ModelConfig
    ) -> None:
        """As many as the policy wants; a broken newer one does not take an older one down."""
        policy = VersionPolicy(config.versions, model=name)
        problems: list[Problem] = []
        for missing in sorted(policy.named - set(versions)):
            there = ", ".join(map(str, sorted(versions)))
            error = ModelLoadError(
                f"version {missing} of model {name!r} is asked for, but only {there} is there"
            )
            place = next(iter(versions.values())).parent / str(missing)
            problems.append(Problem(name=name, version=str(missing), path=place, error=error))
        served = 0
        for version in policy.candidates(versions):
            if policy.enough(served):
                break
            try:
                self._models.append(self._version(name, versions[version], root))
                served += 1
            except OperatorError as error:
                problems.append(
                    Problem(name=name, version=str(version), path=versions[version], error=error)
                )
        if not served:
            raise problems[0].error
        self._problems += problems

    def _version(self, name: str, folder: Path, root: Path) -> ModelSource:
        require_inside(folder, root)
        entries = list_folder(folder)
        refuse_links_out(entries, root)
        config = self._configure(name, [folder.parent, folder], root)
        found = find_model(folder, entries, runtime=config.runtime, root=root)
        if found is None:
            raise nothing_here(folder, entries)
        require_inside(found.path, root)
        return _checked(found, name, folder.name, folder, config)

    def _configure(self, name: str, folders: Sequence[Path], root: Path) -> ModelConfig:
        config = self._config.defaults
        for folder in folders:
            config = overlay_folder(config, folder, root=root)
        return merge(config, self._config.models.get(name, ModelConfig()))

    def _claim(self, name: str, path: Path) -> str:
        self._refuse_twice(name, path)
        self._places[check_name(name, path)] = path
        return name

    def _refuse_twice(self, name: str, path: Path) -> None:
        if name in self._places:
            raise ConfigError(
                f"two models are called {name!r}: {self._places[name]} and {path}",
                hint="rename one of them",
                model=name,
            )


def _is_version(entry: Path) -> bool:
    return VERSION_FOLDER.fullmatch(entry.name) is not None and entry.is_dir()


def _looks_like_model(folder: Path) -> bool:
    """Whether somebody meant it as a model, however broken it is now."""
    try:
        entries = list_folder(folder)
    except ModelLoadError:
        return True  # it may be one: the reason why not belongs in the report
    return any(
        entry.name == MODEL_TOML
        or entry.stem == "model"
        or entry.suffix.lower() == ".onnx"
        or refusal(entry) is not None
        or _is_version(entry)
        for entry in entries
    )


def _refuse_models_beside(direct: Found | None, folder: Path, entries: Sequence[Path]) -> None:
    """A lone file next to model folders: serving only one of the two would surprise somebody.

    Python models and Hugging Face folders keep what they like in folders of their own.
    """
    if direct is None or direct.is_hub_folder or direct.format not in ("onnx", "openvino"):
        return
    beside = [
        entry
        for entry in entries
        if entry.is_dir() and not _is_version(entry) and _looks_like_model(entry)
    ]
    if beside:
        raise ModelLoadError(
            f"{folder} holds a model ({direct.path.name}) and folders with models "
            f"({some_names(beside)})",
            hint=f"put {direct.path.name} into a folder of its own",
            path=str(folder),
        )


def _among(path: Path, folder: Path, config: ModelConfig) -> Found:
    """A file given by itself, with what its folder tells if it is that folder's model."""
    try:
        found = find_model(folder, list_folder(folder), runtime=config.runtime, root=folder)
    except ModelLoadError:
        if path.suffix.lower() not in FORMAT_OF:
            raise  # weights alone: only their folder could have made a model of them
        found = None  # several models lie there; one of them was chosen
    if found is not None and found.path.name == path.name:
        return msgspec.structs.replace(found, path=path)
    if path.suffix.lower() not in FORMAT_OF:
        raise not_a_model(path)
    return Found(format=FORMAT_OF[path.suffix.lower()], path=path)


def _checked(
    found: Found, name: str, version: str, folder: Path, config: ModelConfig
) -> ModelSource:
    """The source, once its header has been read."""
    if found.format == "onnx":
        check_onnx(found.path, folder)
    elif found.format == "openvino" and not found.path.with_suffix(".bin").is_file():
        weights = found.path.with_suffix(".bin").name
        raise ModelLoadError(
            f"{found.path} has no weights: {weights} is missing",
            hint="an OpenVINO model is two files, .xml and .bin, of one name",
            path=str(found.path),
        )
    task = found.task if config.task == "auto" else config.task
    # What was found out for one task means nothing to another; labels and columns do.
    fits = found.task in (task, "tensor")
    return ModelSource(
        name=name,
        version=version,
        format=found.format,
        path=found.path,
        folder=folder,
        task=task,
        task_options=found.task_options if fits else {},
        config=config,
    )


def _missing(path: Path) -> ModelLoadError:
    if path.is_symlink():
        return ModelLoadError(f"{path} is a symbolic link to nothing", path=str(path))
    try:
        there = some_names(list_folder(path.parent))
        hint = f"in {path.parent.resolve()} there is: {there}"
    except ModelLoadError:
        hint = f"{path.parent} does not exist either, or cannot be read"
    return ModelLoadError(f"{path} does not exist", hint=hint, path=str(path))


def _unreadable(path: Path, error: OSError) -> ModelLoadError:
    return ModelLoadError(f"cannot read {error.filename or path}: {error.strerror}", path=str(path))
