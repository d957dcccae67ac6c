"""What sentence-transformers wrote beside a model: pooling, normalisation, length, prompt.

``modules.json`` lists the stages of an embedding model, each with a folder for its own
configuration (https://sbert.net/docs/sentence_transformer/usage/custom_models.html). Stages
that are not served raise: leaving one out would change every embedding.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from headrace.errors import ModelLoadError
from headrace.repository.json_files import read_json, read_object

_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}
"""Their name -> ours (headrace.repository.bert_tensors.Pooling)."""

_SERVED = ("Transformer", "Pooling", "Normalize")
_POOLING_FOLDER = "1_Pooling"


def transformer_folder(folder: Path) -> Path:
    """Where config.json and tokeniser are: ``folder``, or what modules.json says.

    Raises:
        ModelLoadError: modules.json is broken.
    """
    return _stages(folder).get("Transformer", folder)


def read_sentence_options(folder: Path) -> dict[str, Any]:
    """``pooling``, ``normalize`` and ``prefix`` of an embedding model.

    Without modules.json a pooling configuration in its usual place still counts, and the
    rest is the default: mean, normalised.

    Raises:
        ModelLoadError: a stage or a pooling that is not served, or a broken file.
    """
    stages = _stages(folder)
    unknown = [name for name in stages if name not in _SERVED]
    if unknown:
        raise ModelLoadError(
            f"{folder / 'modules.json'} has a stage {unknown[0]!r}; served are "
            f"{', '.join(_SERVED)}",
            hint="export the whole model to ONNX with all its stages",
            stage=unknown[0],
        )
    config = read_object(stages.get("Pooling", folder / _POOLING_FOLDER) / "config.json")
    prefix = _default_prompt(folder)
    if prefix and config.get("include_prompt") is False:
        raise ModelLoadError(
            f"{folder} leaves its prompt {prefix!r} out of the pooling, which is not served",
            hint="export the whole model to ONNX with all its stages",
        )
    return {
        "pooling": _pooling(folder, config),
        "normalize": "Normalize" in stages if stages else True,
        "prefix": prefix or None,
    }


def read_text_limits(folder: Path) -> tuple[int | None, bool]:
    """``max_seq_length`` (None: not said) and ``do_lower_case`` of the Transformer stage."""
    for path in sorted(folder.glob("sentence_*_config.json")):
        config = read_object(path)
        limit = config.get("max_seq_length")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ModelLoadError(f"max_seq_length in {path} is {limit!r}; expected 1 or more")
        return limit, config.get("do_lower_case") is True
    return None, False


def _stages(folder: Path) -> dict[str, Path]:
    """Last part of each stage's type -> its folder; {} where there is no modules.json."""
    path = folder / "modules.json"
    modules = read_json(path)
    if modules is None:
        return {}
    stages: dict[str, Path] = {}
    for module in modules if isinstance(modules, list) else [modules]:
        kind, where = (
            (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        )
        if not isinstance(kind, str) or not isinstance(where, str):
            raise ModelLoadError(f"{path} is not a list of stages with a type and a path")
        parts = PurePosixPath(where)
        if parts.is_absolute() or ".." in parts.parts or "\x00" in where:
            raise ModelLoadError(f"{path} points to {where!r}, which is outside the folder")
        stages[kind.rpartition(".")[2]] = folder / where
    return stages


def _pooling(folder: Path, config: dict[str, Any]) -> str:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [name for key, name in _LEGACY_POOLING.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in _POOLING:
        raise ModelLoadError(
            f"{folder} pools by {modes!r}; served is one of {', '.join(_POOLING)}",
            hint="export the whole model to ONNX with all its stages",
        )
    return _POOLING[modes[0]]


def _default_prompt(folder: Path) -> str:
    config = read_object(folder / "config_sentence_transformers.json")
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise ModelLoadError(
            f"default_prompt_name in {folder / 'config_sentence_transformers.json'} is {name!r}, "
            "which is not one of its prompts"
        )
    return prompt
