"""A model's folder as its ``config.pbtxt`` describes it; nothing but that file is read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.config import ModelConfig
from headrace.errors import ConfigError, ModelLoadError
from headrace.protos import model_config
from headrace.repository.folders import require_inside, some_names
from headrace.repository.formats import Found, refusal
from headrace.repository.model_toml import overlay
from headrace.repository.triton.backends import ENSEMBLE, PYTHON, Backend, backend_of
from headrace.repository.triton.completed import completed
from headrace.repository.triton.schema import Said, read
from headrace.repository.triton.text_format import MAX_CHARACTERS, parse
from headrace.repository.triton.translate import translate
from headrace.repository.triton.tree import from_json

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor


class Described(msgspec.Struct, frozen=True):
    """What a configuration says of a model.

    Attributes:
        path: the file, or where it would be if the configuration came by another way.
        table: the fields of :class:`headrace.config.ModelConfig` that it sets.
        backend: what runs it; None where it does not say.
        filename: what a version's folder holds; "" where it does not say.
        notes: what has no effect here, and unknown fields; with file and line.
    """

    path: Path
    table: dict[str, Any]
    backend: Backend | None
    filename: str
    notes: tuple[str, ...] = ()

    @property
    def is_ensemble(self) -> bool:
        """Whether it has steps instead of files."""
        return self.backend is ENSEMBLE

    def over(self, base: ModelConfig) -> ModelConfig:
        """``base`` with what the configuration says.

        Raises:
            ConfigError: a value that is out of bounds here.
        """
        return overlay(base, self.table, where=str(self.path))

    def find(self, folder: Path, entries: Sequence[Path], root: Path) -> Found | None:
        """The model's file among a version folder's entries; None: look at them all.

        Raises:
            ModelLoadError: the file that should be there is not, or is named outside of the folder.
        """
        self._check_filename()
        if self.backend is None:
            return None
        path = folder / (self.filename or self.backend.filename)
        if not self.filename and not path.exists():
            path = _only_one(entries, path)
        if self.backend.format == "onnx" and path.is_dir():
            path /= self.backend.filename  # a folder of that name holds it, with its weights
        if not path.exists():
            refused = next(filter(None, map(refusal, entries)), None)
            raise ModelLoadError(
                f"{folder} has no {path.name}: it holds {some_names(entries)}",
                hint=(refused.hint if refused else "")
                or f"name it {path.name}, or say default_model_filename in {self.path}",
                path=str(path),
            )
        require_inside(path, root)
        return Found(format=self.backend.format, path=path)

    def _check_filename(self) -> None:
        """A configuration may name a file of its own model, and as Python only a Python file."""
        name = PurePosixPath(self.filename)
        if name.is_absolute() or ".." in name.parts:
            raise ModelLoadError(
                f"default_model_filename {self.filename!r} leaves the version's folder",
                hint="name a file in the version's folder",
                path=str(self.path),
            )
        if self.backend is PYTHON and self.filename and name.suffix != ".py":
            raise ModelLoadError(
                f"default_model_filename {self.filename!r} of a Python model is no .py file",
                code="wrong_format",
                hint="name the file with the class TritonPythonModel, such as model.py",
                path=str(self.path),
            )


def describe_file(path: Path, name: str, *, root: Path, files: Collection[str]) -> Described | None:
    """What ``path`` says of the model ``name``; None where there is no such file.

    Args:
        path: a ``config.pbtxt``.
        name: of the model's folder; the file must agree with it.
        root: what the file may not leave.
        files: names in the newest version's folder.

    Raises:
        ConfigError: the file cannot be read, or is wrong; with line and field.
        ModelLoadError: it is a link out of ``root``, or the model is called otherwise.
    """
    if path.is_symlink():
        require_inside(path, root)
    try:
        with path.open("rb") as file:
            content = file.read(4 * MAX_CHARACTERS + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: it is not UTF-8 text") from None
    said = read(parse(text, where=str(path)), model_config_descriptor(), where=str(path))
    return described(said, path, name, files)


def describe_json(text: str, path: Path, name: str, *, files: Collection[str]) -> Described:
    """The same for a configuration as JSON, the form that Triton's load request takes.

    Args:
        path: where the ``config.pbtxt`` that it stands for would be.

    Raises:
        ConfigError, ModelLoadError: as :func:`describe_file`.
    """
    where = f"the configuration given for {name!r}"
    try:
        value = json.loads(text)
        if not isinstance(value, Mapping):
            raise TypeError("an object was expected")
        tree = from_json(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{where} is not a JSON object: {error}") from None
    return described(read(tree, model_config_descriptor(), where=where), path, name, files)


def model_config_descriptor() -> Descriptor:
    """Of the message ``inference.ModelConfig``; protobuf is imported when it is first needed."""
    descriptor: Descriptor = model_config().DESCRIPTOR
    return descriptor


def described(said: Said, path: Path, name: str, files: Collection[str]) -> Described:
    """What a configuration that was read says of the model ``name``.

    Raises:
        ConfigError, ModelLoadError: as :func:`describe_file`.
    """
    called = said.values.get("name")
    if called and called != name:
        raise ModelLoadError(
            f"{said.place('name')}: unexpected directory name '{name}' for model '{called}', "
            "directory name must equal model name",
            hint="rename the folder, or leave `name` out",
            path=str(path),
        )
    backend = backend_of(said, files)
    translation = translate(said, stateless=backend is None or backend.format != "python")
    table = translation.table
    if backend is not None and backend is not ENSEMBLE:
        table.setdefault("runtime", backend.runtime)
    table["triton_config"] = completed(
        said.values, model_config_descriptor(), name=name, backend=backend
    )
    return Described(
        path=path,
        table=table,
        backend=backend,
        filename=said.values.get("default_model_filename", ""),
        notes=(*said.unknown, *translation.notes),
    )


def _only_one(entries: Sequence[Path], expected: Path) -> Path:
    """The one file of the right kind, where it has another name than Triton's."""
    alike = [entry for entry in entries if entry.suffix.lower() == expected.suffix]
    return alike[0] if len(alike) == 1 and expected.suffix != ".py" else expected
