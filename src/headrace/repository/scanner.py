"""Walks the paths that a person points at, and collects the models in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.config import Config, ModelConfig
from headrace.errors import ConfigError, ModelLoadError, OperatorError
from headrace.repository.base import ModelSource, Problem, ScanResult
from headrace.repository.folders import (
    check_name,
    is_mirrored,
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
from headrace.repository.triton import CONFIG_PBTXT
from headrace.repository.untrusted import UNTRUSTED_VERSIONS, check_untrusted
from headrace.repository.versions import (
    MAX_VERSIONS,
    VERSION_FOLDER,
    VersionPolicy,
    is_version_folder,
)

if TYPE_CHECKING:
    from headrace.repository.triton.described import Described

NOT_THERE = "model_not_found"
"""Code of the problem of a model that was asked for and that no repository has."""


class Scanner:
    """Collects what is found in one path after another.

    Args:
        config: as :func:`scan`.
        name: what to call the model; "" where its file or folder says.
        only: the names of the models to look at; None: all.
        override: JSON that takes the place of every ``config.pbtxt``; from a load request.
        uploaded: the models' files came with a load request.
    """

    def __init__(
        self,
        config: Config,
        name: str = "",
        *,
        only: frozenset[str] | None = None,
        override: str | None = None,
        uploaded: bool = False,
    ) -> None:
        self._config = config
        self._uploaded = uploaded
        self._name = name
        self._only = only
        self._override = override
        self._may_be_empty = config.server.model_control != "none" or only is not None
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
        """Everything so far."""
        found = {source.name for source in self._models} | {p.name for p in self._problems}
        missing = sorted((self._only or frozenset()) - found)
        problems = [Problem(name, "", Path(name), _not_there(name)) for name in missing]
        unused = set(self._config.models) - found if self._only is None else ()
        return ScanResult(
            models=tuple(sorted(self._models, key=lambda m: (m.name, -int(m.version)))),
            problems=(*self._problems, *problems),
            unused=tuple(sorted(unused)),
        )

    def _is_trusted(self, file: Path) -> bool:
        """Whether the operator put the file there: it came with no request, and from no store."""
        if self._config.server.code_from == "anywhere":
            return True
        return not (self._uploaded or is_mirrored(file))

    def _may_run_code(self, file: Path) -> bool:
        return self._config.server.code_from != "nowhere" and self._is_trusted(file)

    def _wants(self, name: str) -> bool:
        return self._only is None or name in self._only

    def _add_file(self, path: Path) -> None:
        if path.suffix.lower() not in (*FORMAT_OF, ".safetensors"):
            raise not_a_model(path)
        folder = path.parent
        named = path.stem == "model"  # says nothing about which: its folder's name does
        place = folder.resolve()
        version = "1"
        if named and VERSION_FOLDER.fullmatch(place.name):
            version, place = place.name, place.parent
        name = self._name or (place.name if named else path.stem)
        if not self._wants(name):
            return
        self._claim(name, path)
        config = self._configure(name, [folder], folder)
        found = _among(path, folder, config)
        self._models.append(self._checked(found, name, version, folder, config))

    def _add_folder(self, folder: Path) -> None:
        entries = list_folder(folder)
        name = self._name or folder.resolve().name
        direct = None
        is_model = any(is_version_folder(entry) or entry.name == CONFIG_PBTXT for entry in entries)
        if not is_model:  # Triton's names first: a folder with one of those is no repository
            runtime = self._configure(name, [folder], folder).runtime
            direct = find_model(folder, entries, runtime=runtime, root=folder)
        if direct is not None or is_model:
            _refuse_models_beside(direct, folder, entries)
            if self._wants(name):
                self._add_model(folder, folder, name)
            return
        folders = [entry for entry in entries if entry.is_dir() or entry.is_symlink()]
        if not any(map(looks_like_model, folders)):
            if self._may_be_empty and not any(map(refusal, entries)):
                return
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
            if not self._wants(name):
                continue
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
        versions = {int(entry.name): entry for entry in entries if is_version_folder(entry)}
        described = self._described(folder, entries, versions, root)
        if described is not None and described.is_ensemble:
            self._add_ensemble(name, described, versions, root)
            return
        config = self._configure(name, [folder], root, described)
        direct = None
        if described is None or not versions:  # Triton's models never lie beside their versions
            direct = _found(described, folder, entries, config, root)
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
            self._models.append(
                self._checked(direct, name, "1", folder, config, described=described)
            )
            return
        self._add_versions(name, versions, root, config, described)

    def _described(
        self, folder: Path, entries: Sequence[Path], versions: dict[int, Path], root: Path
    ) -> Described | None:
        """What ``config.pbtxt``, or what takes its place, says of the model in ``folder``."""
        newest = list_folder(versions[max(versions)]) if versions else entries
        files = {entry.name for entry in newest}
        path, called = folder / CONFIG_PBTXT, folder.resolve().name
        if self._override is None and not (path.exists() or path.is_symlink()):
            return None
        # Imported here: most models have no such file, and start sooner without its readers.
        from headrace.repository.triton.described import describe_file, describe_json

        if self._override is not None:
            return describe_json(self._override, path, called, files=files)
        return describe_file(path, called, root=root, files=files)

    def _add_ensemble(
        self, name: str, described: Described, versions: dict[int, Path], root: Path
    ) -> None:
        """One version for each of the empty folders that Triton wants, or version 1."""
        folder = described.path.parent
        config = self._configure(name, [folder], root, described)
        policy = VersionPolicy(config.versions, model=name)
        self._check_count(policy, versions)
        for served, version in enumerate(policy.candidates(versions or [1])):
            if policy.enough(served):
                break
            self._models.append(
                ModelSource(
                    name=name,
                    version=str(version),
                    format="ensemble",
                    path=described.path,
                    folder=folder,
                    config=config,
                    notes=described.notes,
                )
            )

    def _check_count(self, policy: VersionPolicy, versions: Mapping[int, Path]) -> None:
        trusted = all(map(self._is_trusted, versions.values()))
        policy.check(versions, MAX_VERSIONS if trusted else UNTRUSTED_VERSIONS)

    def _add_versions(
        self,
        name: str,
        versions: dict[int, Path],
        root: Path,
        config: ModelConfig,
        described: Described | None,
    ) -> None:
        """As many as the policy wants; a broken newer one does not take an older one down."""
        policy = VersionPolicy(config.versions, model=name, also=config.aliases.values())
        self._check_count(policy, versions)
        problems: list[Problem] = []
        for missing in sorted((policy.named | policy.also) - set(versions)):
            there = ", ".join(map(str, sorted(versions)))
            error = ModelLoadError(
                f"version {missing} of model {name!r} is asked for, but only {there} is there"
            )
            place = next(iter(versions.values())).parent / str(missing)
            problems.append(Problem(name=name, version=str(missing), path=place, error=error))
        served = 0
        for version in policy.candidates(versions):
            if policy.enough(served) and version not in policy.also:
                continue
            try:
                self._models.append(self._version(name, versions[version], root, described))
                served += version not in policy.also
            except OperatorError as error:
                problems.append(
                    Problem(name=name, version=str(version), path=versions[version], error=error)
                )
        if not any(source.name == name for source in self._models):
            raise problems[0].error
        self._problems += problems

    def _version(
        self, name: str, folder: Path, root: Path, described: Described | None
    ) -> ModelSource:
        require_inside(folder, root)
        entries = list_folder(folder)
        refuse_links_out(entries, root)
        config = self._configure(name, [folder.parent, folder], root, described)
        found = _found(described, folder, entries, config, root)
        if found is None:
            raise nothing_here(folder, entries)
        require_inside(found.path, root)
        return self._checked(found, name, folder.name, folder, config, described=described)

    def _configure(
        self,
        name: str,
        folders: Sequence[Path],
        root: Path,
        described: Described | None = None,
    ) -> ModelConfig:
        config = self._config.defaults
        if described is not None:
            given = described.over(config)
            if self._override is None:
                trusted, where = self._is_trusted(described.path), _place(described.path, root)
            else:  # a caller's, wherever the model's files are from
                trusted = self._config.server.code_from == "anywhere"
                where = f"the configuration given for {name!r}"
            if not trusted:
                check_untrusted(config, given, where=where, may_set_runtime=True)
            config = given
        for folder in folders:
            given = overlay_folder(config, folder, root=root)
            # Compared first: most folders have no such file, and trust costs a look at each parent.
            if given is not config and not self._is_trusted(folder / MODEL_TOML):
                check_untrusted(config, given, where=_place(folder / MODEL_TOML, root))
            config = given
        return merge(config, self._config.models.get(name, ModelConfig()))

    def _checked(
        self,
        found: Found,
        name: str,
        version: str,
        folder: Path,
        config: ModelConfig,
        *,
        described: Described | None = None,
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
            notes=() if described is None else described.notes,
            may_run_code=self._may_run_code(found.path),
            try_first=not self._is_trusted(found.path),
        )

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


def _place(path: Path, root: Path) -> str:
    """How a caller knows the file: by its path in the repository."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def looks_like_model(folder: Path) -> bool:
    """Whether somebody meant it as a model, however broken it is now."""
    try:
        entries = list_folder(folder)
    except ModelLoadError:
        return True  # it may be one: the reason why not belongs in the report
    return any(
        entry.name in (MODEL_TOML, CONFIG_PBTXT)
        or entry.stem == "model"
        or entry.suffix.lower() == ".onnx"
        or refusal(entry) is not None
        or is_version_folder(entry)
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
        if entry.is_dir() and not is_version_folder(entry) and looks_like_model(entry)
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


def _found(
    described: Described | None,
    folder: Path,
    entries: Sequence[Path],
    config: ModelConfig,
    root: Path,
) -> Found | None:
    """The model among ``entries``: the one that is described, else the only one there."""
    if config.runtime != "null" and described is not None:
        found = described.find(folder, entries, root)
        if found is not None:
            return found
    return find_model(folder, entries, runtime=config.runtime, root=root)


def _not_there(name: str) -> ModelLoadError:
    return ModelLoadError(
        f"failed to load '{name}', failed to poll from model repository: there is no such model",
        code=NOT_THERE,
        hint="its name is that of its folder",
        model=name,
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
