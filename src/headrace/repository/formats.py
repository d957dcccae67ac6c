"""Which files are models, which never will be, and what to do about those."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.errors import ModelLoadError
from headrace.repository import huggingface
from headrace.repository.folders import require_inside, some_names
from headrace.repository.model_toml import FILE_NAME as MODEL_TOML
from headrace.repository.sniff import describe_file

FORMAT_OF = {".onnx": "onnx", ".xml": "openvino", ".py": "python"}
"""Suffix of a model file -> ``ModelSource.format``."""

FORMATS_OF_RUNTIME: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnx", "safetensors"),
    "openvino": ("openvino", "onnx", "safetensors"),
    "python": ("python",),
}
"""Named runtimes choose between the files of a folder, in this order."""

_NEVER_UNPICKLED = (
    "is a Python pickle, which can run any code when it is opened; the server never opens one"
)
_CONVERT = "where you trust it: headrace convert {path} --sample ROWS.csv --out FOLDER --trust"
_FROM_TORCH = "export it to ONNX where it was trained: torch.onnx.export(model, args, 'model.onnx')"
_FROM_KERAS = "export it to ONNX where it was trained: model.export('model.onnx', format='onnx')"

REFUSED: dict[str, tuple[str, str]] = {
    ".joblib": (_NEVER_UNPICKLED, _CONVERT),
    ".pkl": (_NEVER_UNPICKLED, _CONVERT),
    ".pickle": (_NEVER_UNPICKLED, _CONVERT),
    ".pt": (_NEVER_UNPICKLED, _FROM_TORCH),
    ".pth": (_NEVER_UNPICKLED, _FROM_TORCH),
    ".ckpt": (_NEVER_UNPICKLED, _FROM_TORCH),
    ".h5": ("is a Keras model, which no runtime here can run", _FROM_KERAS),
    ".keras": ("is a Keras model, which no runtime here can run", _FROM_KERAS),
    ".pb": (
        "is a TensorFlow graph, which no runtime here can run",
        "convert it: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx",
    ),
    ".tflite": (
        "is a TensorFlow Lite model, which no runtime here can run",
        "convert it: python -m tf2onnx.convert --tflite {path} --output model.onnx",
    ),
    ".gguf": ("is a GGUF language model, which no runtime here can run", "export it to ONNX"),
    ".ort": ("is in ONNX Runtime's own format", "serve the .onnx file it was made from"),
}
"""Suffix -> what it is, what to do. ``{path}`` stands for the file."""

_MAX_SIDE_FILE_BYTES = 16 * 1024 * 1024


class Found(msgspec.Struct, frozen=True):
    """A model file, and what lies beside it: the detected task and its options.

    ``is_hub_folder``: it is laid out as the Hugging Face hub does.
    """

    format: str
    path: Path
    task: str = "tensor"
    task_options: dict[str, Any] = {}
    is_hub_folder: bool = False


def refusal(path: Path) -> ModelLoadError | None:
    """The error for a file of a kind that is never served, None for any other kind."""
    suffix = path.suffix.lower()
    if path.name.startswith("pytorch_model"):
        suffix = ".pt"
    if suffix not in REFUSED:
        return None
    what, hint = REFUSED[suffix]
    return ModelLoadError(f"{path} {what}", hint=hint.format(path=path), path=str(path))


def not_a_model(path: Path) -> ModelLoadError:
    """The error for a file that is no model, with what it looks like."""
    refused = refusal(path)
    if refused is not None:
        return refused
    looks_like = describe_file(path)
    return ModelLoadError(
        f"{path} is not a model" + (f": it looks like {looks_like}" if looks_like else ""),
        hint="a model is an .onnx, .xml (OpenVINO) or .py file, or a folder with one",
        path=str(path),
    )


def find_model(folder: Path, entries: Sequence[Path], *, runtime: str, root: Path) -> Found | None:
    """The one model whose files lie directly in ``folder``, None where there is none.

    Args:
        folder: a model's or a version's folder.
        entries: what is in it (``list_folder``).
        runtime: as configured; a named one decides between files of several formats.
        root: what the files beside the model may not leave.

    Raises:
        ModelLoadError: several models, or only files that are never served.
    """
    candidates = _candidates(folder, entries)
    if runtime == "null":
        path = candidates[0].path if candidates else folder / MODEL_TOML
        return Found(format="null", path=path) if candidates or path in entries else None
    wanted = FORMATS_OF_RUNTIME.get(runtime, ())
    for format_ in wanted:
        chosen = [found for found in candidates if found.format == format_]
        if chosen:
            candidates = chosen
            break
    if len(candidates) > 1:
        raise _ambiguous(folder, candidates)
    return _with_side_files(candidates[0], folder, root) if candidates else None


def _candidates(folder: Path, entries: Sequence[Path]) -> list[Found]:
    candidates = [*_files(entries, ".onnx"), *_files(entries, ".xml")]
    candidates += [
        Found(format="python", path=entry) for entry in entries if entry.name == "model.py"
    ]
    hub = huggingface.inspect(folder)
    if hub is None:
        return candidates
    detected = Found(
        format=hub.format,
        path=hub.path,
        task=hub.task,
        task_options=hub.task_options,
        is_hub_folder=True,
    )
    return [detected, *(found for found in candidates if found.format == "python")]


def _files(entries: Sequence[Path], suffix: str) -> list[Found]:
    """``model.SUFFIX`` where it is there, else every file with that suffix."""
    files = [entry for entry in entries if entry.suffix.lower() == suffix and entry.is_file()]
    if suffix == ".xml":  # plenty of XML is no model; OpenVINO's has its weights beside it
        files = [f for f in files if f.stem == "model" or f.with_suffix(".bin").exists()]
    named = [file for file in files if file.stem == "model"]
    return [Found(format=FORMAT_OF[suffix], path=file) for file in named or files]


def _ambiguous(folder: Path, candidates: Sequence[Found]) -> ModelLoadError:
    names = ", ".join(sorted(found.path.name for found in candidates))
    formats = {found.format for found in candidates}
    hint = (
        f'say in {folder / MODEL_TOML} which runtime to use, such as runtime = "python"'
        if len(formats) > 1
        else "name the one to serve `model.onnx`, or give the files one by one"
    )
    return ModelLoadError(f"{folder} holds several models: {names}", hint=hint, path=str(folder))


def nothing_here(folder: Path, entries: Sequence[Path]) -> ModelLoadError:
    """The error for a folder without a model, with what is in it instead."""
    for entry in entries:
        refused = refusal(entry)
        if refused is not None:
            return refused
    found = "is empty" if not entries else f"holds no model, only {some_names(entries)}"
    return ModelLoadError(
        f"{folder} {found}",
        hint="expected model.onnx, model.xml, model.py, a Hugging Face folder, or "
        "MODEL/VERSION/model.onnx",
        path=str(folder),
    )


def _with_side_files(found: Found, folder: Path, root: Path) -> Found:
    """Adds what ``labels.txt`` (a label a line) and ``columns.json`` (a list) say."""
    options = dict(found.task_options)
    task = found.task
    labels = _read_side_file(folder / "labels.txt", root)
    if labels is not None and "labels" not in options:
        options["labels"] = labels.rstrip("\r\n").splitlines()
    columns = _read_side_file(folder / "columns.json", root)
    if columns is not None and task == "tensor":
        task = "tabular"
        options["columns"] = _columns(columns, folder / "columns.json")
    return msgspec.structs.replace(found, task=task, task_options=options)


def _columns(text: str, path: Path) -> list[str | dict[str, Any]]:
    """Names, or objects as the tabular task takes them; what is in those is for it to check."""
    try:
        return msgspec.convert(json.loads(text), list[str | dict[str, Any]])
    except (ValueError, RecursionError):
        raise ModelLoadError(
            f"{path} is not a JSON list of columns", hint='for example: ["age", "income"]'
        ) from None


def _read_side_file(path: Path, root: Path) -> str | None:
    if path.is_symlink():
        require_inside(path, root)
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_SIDE_FILE_BYTES + 1)
        if len(content) > _MAX_SIDE_FILE_BYTES:
            raise ModelLoadError(f"{path} is larger than {_MAX_SIDE_FILE_BYTES:,} bytes")
        return content.decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelLoadError(f"{path} is not UTF-8 text") from None
