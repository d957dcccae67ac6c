"""Which files of an archive make the model, and where in its folder they go."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from headrace.errors import PullError

DATA_SUFFIXES = frozenset(
    {
        ".onnx", ".onnx_data", ".data", ".safetensors", ".xml", ".bin", ".gguf",  # weights
        ".json", ".toml", ".yaml", ".yml", ".txt", ".vocab", ".model", ".jinja",  # what they need
    }
)  # fmt: skip
"""What is taken where nobody says which files: model data, never code."""

_WEIGHTS = frozenset({".onnx", ".safetensors", ".gguf", ".xml"})
_HUB_MARKERS = frozenset({"config.json", "tokenizer.json"})

# Data by their suffix, but of the package rather than of the model.
_PACKAGING = frozenset(
    {"package.json", "package-lock.json", "tsconfig.json", "pyproject.toml", "top_level.txt",
     "entry_points.txt", "requirements.txt"}
)  # fmt: skip
_PACKAGING_FOLDERS = (".dist-info", ".egg-info")
_SETTINGS = "model.toml"
"""How a model is served is for who serves it to say, so an archive's own is not taken unasked."""

# Pickles, whatever their suffix says.
_PICKLES = ("pytorch_model*.bin", "training_args.bin", "optimizer*.bin", "scheduler*.bin")
_SHOWN = 20


def select(
    members: Mapping[str, int], odd: Mapping[str, str], globs: Sequence[str]
) -> dict[str, str]:
    """Chooses files and gives each its path in the model's folder.

    With ``globs``: every member that matches one of them, by its whole path or by its name
    alone. Without: the data files of the folder that holds the weights. Either way the
    folders that all chosen files share are left out, so that what was a Hugging Face folder
    inside a package is one again.

    Args:
        members: regular files, name -> size.
        odd: links and the like, name -> what it is.
        globs: as a person wrote them.

    Returns:
        Name in the archive -> relative path.

    Raises:
        PullError: a pattern matches nothing, or only a link; nothing looks like model data.
    """
    if globs:
        chosen = _matching(members, odd, globs)
    else:
        chosen = _model_data(members)
        if not chosen:
            raise PullError(
                "nothing in the archive looks like a model",
                hint=f"choose with --file; it holds: {_listing(members)}",
            )
    root = _common_folder(chosen)
    return {name: posixpath.relpath(name, root or ".") for name in chosen}


def _matching(
    members: Mapping[str, int], odd: Mapping[str, str], globs: Sequence[str]
) -> list[str]:
    chosen: set[str] = set()
    for glob in globs:
        for name, what in odd.items():
            if _fits(name, glob):
                raise PullError(f"{name} in the archive is {what}, which is not unpacked")
        fits = [name for name in members if _fits(name, glob)]
        if not fits:
            raise PullError(
                f"no file in the archive matches {glob!r}", hint=f"it holds: {_listing(members)}"
            )
        chosen.update(fits)
    return [name for name in members if name in chosen]


def _fits(name: str, glob: str) -> bool:
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(posixpath.basename(name), glob)


def _model_data(members: Iterable[str]) -> list[str]:
    data = [name for name in members if _is_data(name)]
    weights = [name for name in data if PurePosixPath(name).suffix.lower() in _WEIGHTS]
    if not weights:
        return data
    root = _common_folder(weights)
    above = posixpath.dirname(root)
    # The hub keeps exports in a folder below (onnx/model.onnx); what describes them is above.
    if root and any(posixpath.join(above, marker) in data for marker in _HUB_MARKERS):
        root = above
    return [name for name in data if not root or name.startswith(root + "/")]


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        path.suffix.lower() in DATA_SUFFIXES
        and path.name not in (*_PACKAGING, _SETTINGS)
        and not any(part.startswith(".") for part in path.parts)
        and not any(part.endswith(_PACKAGING_FOLDERS) for part in path.parts)
        and not any(fnmatch.fnmatchcase(path.name, pickle) for pickle in _PICKLES)
    )


def _common_folder(names: Sequence[str]) -> str:
    return posixpath.commonpath([posixpath.dirname(name) for name in names]) if names else ""


def _listing(members: Mapping[str, int]) -> str:
    largest = sorted(members, key=lambda name: -members[name])
    more = f" and {len(largest) - _SHOWN} smaller ones" if len(largest) > _SHOWN else ""
    shown = ", ".join(f"{name} ({members[name]:,} bytes)" for name in largest[:_SHOWN])
    return shown + more if shown else "nothing"
