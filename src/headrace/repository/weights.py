"""Weights from safetensors files: one file, or shards with an index. Nothing is unpickled.

The format is a JSON header and raw bytes (https://github.com/huggingface/safetensors#format);
the library maps the file, so only the tensor asked for is ever in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from headrace.errors import MissingExtra, ModelLoadError

INDEX_SUFFIX = ".safetensors.index.json"
FLOATS = ("BF16", "F16", "F32", "F64")
_RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Checkpoints that came from TensorFlow have the old names; transformers renames them too."""


class Weights:
    """Tensor names and shapes at once, values one at a time as float32."""

    def __init__(self, files: Mapping[Path, Any]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._where: dict[str, tuple[Path, Any, str]] = {}
        for path, opened in files.items():
            for stored in opened.keys():  # noqa: SIM118 - safe_open is not a mapping
                name = _current_name(stored)
                if name in self.shapes:
                    raise ModelLoadError(f"{path} has a second tensor named {name!r}", tensor=name)
                self.shapes[name] = tuple(opened.get_slice(stored).get_shape())
                self._where[name] = (path, opened, stored)

    def read(self, name: str) -> np.ndarray:
        """One tensor, C-contiguous float32; BF16 and FP16 are widened, FP64 is rounded.

        Raises:
            ModelLoadError: its datatype is not a floating-point one.
        """
        path, opened, stored = self._where[name]
        datatype = opened.get_slice(stored).get_dtype()
        if datatype not in FLOATS:
            raise ModelLoadError(
                f"tensor {name!r} is {datatype}; expected one of {', '.join(FLOATS)}",
                hint="quantised checkpoints are not read; use the original weights",
                tensor=name,
            )
        if datatype == "BF16":
            return _read_bfloat16(path, stored)
        return np.ascontiguousarray(opened.get_tensor(stored), dtype=np.float32)


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights: ``path`` itself, or the shards its index names.

    Raises:
        ModelLoadError: a file is missing, or the index is broken or points elsewhere.
    """
    if not path.name.endswith(INDEX_SUFFIX):
        files = [path]
    else:
        try:
            index = msgspec.json.decode(path.read_bytes(), type=_Index)
        except (OSError, msgspec.DecodeError) as error:
            raise ModelLoadError(f"{path} cannot be read as an index: {error}") from error
        files = [path.parent / name for name in sorted(set(index.weight_map.values()))]
        outside = [file for file in files if file.parent != path.parent or file.name == ".."]
        if outside or not files:
            named = str(outside[0]) if outside else "no file"
            raise ModelLoadError(f"{path} names {named}; expected files beside it")
    for file in files:
        if not file.is_file():
            raise ModelLoadError(f"{file} is not there", hint="fetch the whole model again")
    return files


@contextmanager
def open_weights(path: Path) -> Iterator[Weights]:
    """Opens ``model.safetensors`` or ``model.safetensors.index.json``.

    Raises:
        ModelLoadError: a file is missing, cut off, or not safetensors.
        MissingExtra: the safetensors library is not installed.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise MissingExtra(str(path), extra="text", package="safetensors") from None
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for file in weight_files(path):
            try:
                opened[file] = stack.enter_context(safe_open(file, framework="numpy"))
            except (OSError, SafetensorError) as error:
                raise ModelLoadError(
                    f"{file} is not a safetensors file, or is cut off: {error}",
                    hint="fetch it again (a Git LFS pointer is a small text file)",
                ) from error
        yield Weights(opened)


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _Entry(msgspec.Struct):
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _read_bfloat16(path: Path, name: str) -> np.ndarray:
    """numpy has no such type, but the bits are the upper half of a float32.

    The library has checked the header (sizes, ranges, overlaps) when it opened the file.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = msgspec.json.decode(file.read(size), type=dict[str, msgspec.Raw])
    entry = msgspec.json.decode(header[name], type=_Entry)
    begin = 8 + size + entry.data_offsets[0]
    halves = np.memmap(path, dtype="<u2", mode="r", offset=begin, shape=entry.shape)
    widened: np.ndarray = (halves.astype(np.uint32) << 16).view(np.float32)
    return widened


def _current_name(name: str) -> str:
    for old, new in _RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
