"""From the weights somebody trained to a model a runtime can load."""

from __future__ import annotations

import errno
import hashlib
import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from headrace.artifacts import ArtifactCache
from headrace.digests import DigestMemory
from headrace.errors import ConfigError, ModelLoadError
from headrace.repository.base import ModelSource
from headrace.repository.bert_family import Encoder, read_encoder
from headrace.repository.bert_graph import build_graph
from headrace.repository.bert_tensors import POOLINGS, Head
from headrace.repository.json_files import read_object
from headrace.repository.weights import Weights, open_weights, weight_files

BUILDER_VERSION = 1
"""Part of every key: raise it when the same weights give another graph."""

_ROOM_BYTES = 16 * 1024 * 1024
"""For the graph itself and the alignment of its weights: far more than either takes."""


class _Key(msgspec.Struct):
    builder: int
    encoder: Encoder
    head: Head
    weights: list[tuple[str, str]]


def prepare(source: ModelSource, cache_dir: Path) -> ModelSource:
    """The source itself, or for format ``safetensors`` the ONNX model built from it.

    The model stands in ``cache_dir`` under the SHA-256 of what it was made of (the numbers of
    config.json, the weights, the head, :data:`BUILDER_VERSION`): it is built once, by one
    process at a time, and a changed source is another model. Pooling and normalisation
    become part of the graph, so ``task_options`` no longer ask for them. Blocks: about a
    second for 90 MB the first time, milliseconds after that.

    Raises:
        ModelLoadError: the weights are broken or another model's, or the cache cannot be
            written (disk full, no permission).
        ConfigError: ``pooling`` or ``normalize`` in the options is not one there is.
        MissingExtra: onnx or safetensors is not installed.
    """
    if source.format != "safetensors":
        return source
    config = read_object(source.path.parent / "config.json")
    encoder, head = read_encoder(config), _head(source)
    key = _key(source.path, encoder, head, DigestMemory(cache_dir / "digests"))

    def build(folder: Path) -> None:
        with open_weights(source.path) as weights:
            _check_space(weights, folder)
            build_graph(weights, encoder, head, folder)

    try:
        entry = ArtifactCache(cache_dir / "graphs").entry(key, build)
    except OSError as error:
        raise _unwritable(source, cache_dir, error) from error
    return msgspec.structs.replace(
        source,
        format="onnx",
        path=entry / "model.onnx",
        folder=entry,
        task_options={**source.task_options, "normalize": False},
        digest=f"sha256:{key}",
    )


def _head(source: ModelSource) -> Head:
    options: dict[str, Any] = {**source.task_options, **source.config.task_options}
    if source.task == "text-classification":
        # The model's own number of labels: the configuration may name them otherwise.
        labels = source.task_options.get("labels") or options.get("labels", ())
        return Head("classification", labels=len(labels))
    pooling, normalize = options.get("pooling", "mean"), options.get("normalize", True)
    if pooling not in POOLINGS:
        raise ConfigError(
            f"pooling of model {source.name!r} is {pooling!r}; expected {', '.join(POOLINGS)}",
            option="pooling",
        )
    if not isinstance(normalize, bool):
        raise ConfigError(
            f"normalize of model {source.name!r} is {normalize!r}; expected true or false",
            option="normalize",
        )
    return Head("embedding", pooling=pooling, normalize=normalize)


def _key(path: Path, encoder: Encoder, head: Head, digests: DigestMemory) -> str:
    try:
        weights = [(file.name, digests.sha256(file)) for file in weight_files(path)]
    except OSError as error:
        raise ModelLoadError(f"{error.filename} cannot be read: {error.strerror}") from error
    made_of = msgspec.json.encode(_Key(BUILDER_VERSION, encoder, head, weights))
    return hashlib.sha256(made_of).hexdigest()


def _check_space(weights: Weights, folder: Path) -> None:
    """Says so before a disk is filled to the brim, which hurts more than this server."""
    elements = sum(math.prod(shape) for shape in weights.shapes.values())
    needed = elements * np.dtype(np.float32).itemsize + _ROOM_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed, {free:,} are free")


def _unwritable(source: ModelSource, cache_dir: Path, error: OSError) -> ModelLoadError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ModelLoadError(
        f"the graph of model {source.name!r} cannot be written to {cache_dir}: {error.strerror}",
        hint=f"{'make room, or ' if full else ''}set cache_dir to a folder that can be written",
        model=source.name,
        cache_dir=str(cache_dir),
    )
