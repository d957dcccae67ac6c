"""Recognises a folder as the Hugging Face hub keeps it, and reads how it is meant to be used.

What is found, and where it is said:

============  =============================================================================
task          ``architectures`` in config.json: ``...ForSequenceClassification`` is
              text-classification; a bare or pre-trained encoder (``...Model``,
              ``...ForMaskedLM``, ``...ForPreTraining``) is text-embedding
pooling       sentence-transformers' ``modules.json`` and the files it names; a bare encoder
              without them gets the mean over its tokens and L2 normalisation, which is what
              most such encoders were tuned for; ``task_options`` can say otherwise
labels        ``id2label``; how scores are made from logits: ``problem_type``
max_tokens    the model's positions, or less where sentence-transformers' ``max_seq_length``
              or (without that) the tokeniser's ``model_max_length`` is less
tokenizer     ``tokenizer.json``, else ``vocab.txt`` (WordPiece)
============  =============================================================================

Weights: a ``model.onnx`` in the folder itself wins, because somebody put it there; then
safetensors of the BERT family; then ``onnx/model.onnx``, where the hub keeps exports.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from headrace.errors import ModelLoadError
from headrace.repository.bert_family import MEMBERS, read_encoder, read_padding_id, unsupported
from headrace.repository.json_files import read_object
from headrace.repository.sentence_transformers import (
    read_sentence_options,
    read_text_limits,
    transformer_folder,
)

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ENCODERS = ("Model", "ForMaskedLM", "ForPreTraining")
_CLASSIFIER = "ForSequenceClassification"
_DEFAULT_MAX_TOKENS = 512  # BERT's own, for an ONNX model that says nothing

TaskName = Literal["text-embedding", "text-classification"]


class HuggingFaceFolder(msgspec.Struct, frozen=True):
    """What a folder decides about its ModelSource.

    ``path`` is the weights (their index where they are sharded), ``task_options`` those of
    ``headrace.tasks.text_options``, paths as absolute texts.
    """

    task: TaskName
    task_options: dict[str, Any]
    format: Literal["safetensors", "onnx"]
    path: Path


def inspect(folder: Path) -> HuggingFaceFolder | None:
    """Looks at the names of files and reads the small ones; weights are not opened.

    Returns:
        None where this is not a text model's folder: nothing it could be served from, or an
        ONNX model without a tokeniser or with the head of another task.

    Raises:
        ModelLoadError: it is one, but of a ``model_type`` or head that is not served, with
            pickled weights only, without a tokeniser, or with a broken file.
    """
    folder = folder.resolve()
    encoder_folder = transformer_folder(folder)
    config = read_object(encoder_folder / "config.json")
    found = _find_weights(folder, encoder_folder, config)
    if found is None:
        return None
    path, form = found
    tokenizer = _find_tokenizer(encoder_folder)
    task = _task(config)
    if form == "onnx" and (task is None or tokenizer is None):
        return None
    if task is None:
        raise ModelLoadError(
            f"{folder} holds {_architecture(config)}; served are encoders and {_CLASSIFIER}",
            hint="export it to ONNX (optimum-cli export onnx) to serve its tensors",
            architecture=_architecture(config),
        )
    if tokenizer is None:
        raise ModelLoadError(
            f"{folder} has neither tokenizer.json nor vocab.txt",
            hint="AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes them",
        )
    options = _token_options(encoder_folder, config, tokenizer)
    if form == "onnx":
        options["position_offset"] = _position_offset(config)
    if task == "text-classification":
        options |= _classifier_options(config)
    else:
        options |= read_sentence_options(folder)
    said = {key: value for key, value in options.items() if value is not None}
    return HuggingFaceFolder(task, said, form, path)


def _find_weights(
    folder: Path, encoder_folder: Path, config: Mapping[str, Any]
) -> tuple[Path, Literal["safetensors", "onnx"]] | None:
    if (folder / "model.onnx").is_file():
        return folder / "model.onnx", "onnx"
    model_type = config.get("model_type")
    tensors = _first_file(encoder_folder, _SAFETENSORS)
    if tensors is not None and model_type in MEMBERS:
        return tensors, "safetensors"
    if (folder / "onnx" / "model.onnx").is_file():
        return folder / "onnx" / "model.onnx", "onnx"
    if model_type is None:
        return None
    if tensors is not None:
        raise unsupported(model_type)
    pickled = _first_file(encoder_folder, _PICKLES)
    if pickled is not None:
        raise ModelLoadError(
            f"{pickled} is a pickle, which can run code; headrace reads safetensors",
            hint="AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER) writes safetensors",
        )
    return None


def _find_tokenizer(folder: Path) -> Path | None:
    return _first_file(folder, ("tokenizer.json", "vocab.txt"))


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _architecture(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _task(config: Mapping[str, Any]) -> TaskName | None:
    name = _architecture(config)
    if name.endswith(_CLASSIFIER):
        return "text-classification"
    if not name or (name.endswith(_ENCODERS) and not name.endswith("LMHeadModel")):
        return "text-embedding"
    return None


def _token_options(folder: Path, config: Mapping[str, Any], tokenizer: Path) -> dict[str, Any]:
    tokenizer_config = read_object(folder / "tokenizer_config.json")
    limit, lower_case = read_text_limits(folder)
    if limit is None:
        limit = tokenizer_config.get("model_max_length")
    options: dict[str, Any] = {
        "tokenizer": str(tokenizer),
        **_token_limits(config, limit),
        "lower_case": lower_case or None,
    }
    if config.get("model_type") in MEMBERS or config.get("pad_token_id") is not None:
        options["pad_id"] = read_padding_id(config)
    if tokenizer.name == "vocab.txt":  # tokenizer.json says these itself
        options["lower_case"] = lower_case or tokenizer_config.get("do_lower_case", True) is True
        options["strip_accents"] = tokenizer_config.get("strip_accents")
    return options


def _token_limits(config: Mapping[str, Any], limit: object) -> dict[str, int]:
    """``max_tokens`` can be raised as far as ``position_limit``, and no further."""
    positions = _DEFAULT_MAX_TOKENS
    limits: dict[str, int] = {}
    if config.get("model_type") in MEMBERS:
        limits["position_limit"] = positions = read_encoder(config).max_tokens
    # transformers writes 1e30 for a tokeniser without a limit.
    if isinstance(limit, int | float) and limit >= 1:
        positions = min(positions, int(limit))
    return limits | {"max_tokens": positions}


def _position_offset(config: Mapping[str, Any]) -> int | None:
    member = MEMBERS.get(str(config.get("model_type")))
    counted = member is not None and member.counts_positions
    return read_padding_id(config) + 1 if counted else None


def _classifier_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Labels and function as transformers' TextClassificationPipeline chooses them."""
    labels = _labels(config)
    problem = config.get("problem_type")
    function = "softmax"
    if problem == "regression":
        function = "none"
    elif problem == "multi_label_classification" or len(labels) == 1:
        function = "sigmoid"
    return {"labels": labels, "function": function}


def _labels(config: Mapping[str, Any]) -> list[str]:
    named = config.get("id2label")
    if named is None:
        count = config.get("num_labels", 2)  # transformers' default
        if not isinstance(count, int) or not 1 <= count <= 1_000_000:
            raise ModelLoadError(f"num_labels in config.json is {count!r}; expected 1 or more")
        return [f"LABEL_{number}" for number in range(count)]
    numbers = [str(number) for number in range(len(named))] if isinstance(named, dict) else []
    if not numbers or set(named) != set(numbers):
        raise ModelLoadError(
            "id2label in config.json does not number its labels 0, 1, 2 ...",
            hint="restore the config.json that was saved with the model",
        )
    return [str(named[number]) for number in numbers]
