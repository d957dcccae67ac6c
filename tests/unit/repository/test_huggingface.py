"""What a folder from the hub says of itself is what it is served as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ModelLoadError
from headrace.repository.huggingface import HuggingFaceFolder, inspect
from tests.unit.repository.bert_models import MODEL_TYPES, POSITIONS, ROBERTA_LIKE, TinyBert


def write(folder: Path, **files: Any) -> None:
    """``name__json={...}`` writes name.json."""
    for name, content in files.items():
        path = folder / name.replace("__", ".").replace("_in_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def found(folder: Path) -> HuggingFaceFolder:
    result = inspect(folder)
    assert result is not None
    return result


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_bare_encoder_is_an_embedding_by_the_mean(tmp_path, model_type):
    seen = found(TinyBert(model_type).save(tmp_path))
    assert (seen.task, seen.format) == ("text-embedding", "safetensors")
    assert seen.path == tmp_path / "model.safetensors"
    reserved = 2 if model_type in ROBERTA_LIKE else 0
    assert seen.task_options == {
        "tokenizer": str(tmp_path / "vocab.txt"),
        "lower_case": True,
        "max_tokens": POSITIONS - reserved,
        "position_limit": POSITIONS - reserved,
        "pad_id": 1 if reserved else 0,
        "pooling": "mean",
        "normalize": True,
    }


@pytest.mark.parametrize(
    ("config", "function"),
    [
        ({}, "softmax"),
        ({"problem_type": "single_label_classification"}, "softmax"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"problem_type": "regression"}, "none"),
        ({"id2label": {"0": "toxic"}}, "sigmoid"),
    ],
)
def test_a_classifier_and_how_its_scores_are_made(tmp_path, config, function):
    seen = found(TinyBert(labels=3, extra=config).save(tmp_path))
    assert seen.task == "text-classification"
    assert seen.task_options["function"] == function
    assert "pooling" not in seen.task_options


def test_labels_stand_in_the_order_of_their_numbers(tmp_path):
    numbered = {str(number): f"l{number}" for number in reversed(range(12))}
    seen = found(TinyBert(labels=12, extra={"id2label": numbered}).save(tmp_path))
    assert seen.task_options["labels"] == [f"l{number}" for number in range(12)]


@pytest.mark.parametrize("said", [{"num_labels": 3}, {}])
def test_labels_without_names_are_numbered(tmp_path, said):
    TinyBert(labels=3, extra=said).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["id2label"]
    write(tmp_path, config__json=config)
    expected = ["LABEL_0", "LABEL_1", "LABEL_2"][: said.get("num_labels", 2)]
    assert found(tmp_path).task_options["labels"] == expected


@pytest.mark.parametrize("wrong", [{"1": "a", "2": "b"}, {}, [], 5, {"a": "b"}])
def test_labels_that_leave_out_a_number_are_refused(tmp_path, wrong):
    TinyBert(labels=2, extra={"id2label": wrong}).save(tmp_path)
    with pytest.raises(ModelLoadError, match="id2label"):
        inspect(tmp_path)


MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
NORMALIZE = {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


def sentence_model(folder: Path, modules: Any = MODULES, pooling: Any = None) -> Path:
    TinyBert().save(folder)
    write(folder, modules__json=modules)
    if pooling is not None:
        write(folder, **{"1_Pooling_in_config__json": pooling})
    return folder


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({}, "mean"),
    ],
)
def test_sentence_transformers_say_how_to_pool(tmp_path, pooling, expected):
    options = found(sentence_model(tmp_path, pooling=pooling)).task_options
    assert options["pooling"] == expected
    assert options["normalize"] is False


def test_a_stage_that_normalises_is_honoured(tmp_path):
    options = found(sentence_model(tmp_path, [*MODULES, NORMALIZE], {})).task_options
    assert options["normalize"] is True


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode": "attention"},
        {"pooling_mode": 3},
    ],
)
def test_a_pooling_that_is_not_served_is_refused(tmp_path, pooling):
    with pytest.raises(ModelLoadError, match="pools by"):
        inspect(sentence_model(tmp_path, pooling=pooling))


def test_a_stage_that_is_not_served_is_refused_not_left_out(tmp_path):
    dense = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    with pytest.raises(ModelLoadError, match="'Dense'") as raised:
        inspect(sentence_model(tmp_path, [*MODULES, dense]))
    assert "ONNX" in raised.value.hint


@pytest.mark.parametrize("where", ["../elsewhere", "/elsewhere", "a/../../b"])
def test_a_stage_outside_the_folder_is_refused(tmp_path, where):
    modules = [{"path": where, "type": "sentence_transformers.models.Transformer"}]
    with pytest.raises(ModelLoadError, match="outside the folder"):
        inspect(sentence_model(tmp_path, modules))


@pytest.mark.parametrize("modules", ["{", "[1]", '[{"path": 1, "type": "x"}]', "7"])
def test_broken_modules_are_refused(tmp_path, modules):
    with pytest.raises(ModelLoadError, match=r"modules\.json"):
        inspect(sentence_model(tmp_path, modules))


def test_the_encoder_may_stand_in_a_folder_of_its_own(tmp_path):
    TinyBert().save(tmp_path / "0_Transformer")
    write(tmp_path, modules__json=[MODULES[0] | {"path": "0_Transformer"}, MODULES[1]])
    seen = found(tmp_path)
    assert seen.path == tmp_path / "0_Transformer" / "model.safetensors"
    assert seen.task_options["tokenizer"] == str(tmp_path / "0_Transformer" / "vocab.txt")


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"sentence_bert_config__json": {"max_seq_length": 16}}, 16),
        ({"sentence_bert_config__json": {"max_seq_length": 900}}, POSITIONS),
        ({"sentence_roberta_config__json": {"max_seq_length": 16}}, 16),
        ({"tokenizer_config__json": {"model_max_length": 20}}, 20),
        ({"tokenizer_config__json": '{"model_max_length": 1000000000000000019884624838656}'}, 40),
        ({"tokenizer_config__json": {"model_max_length": 1e30}}, POSITIONS),
        (
            {
                "sentence_bert_config__json": {"max_seq_length": 30},
                "tokenizer_config__json": {"model_max_length": 20},
            },
            30,
        ),
    ],
)
def test_texts_are_cut_where_the_model_was_meant_to(tmp_path, files, limit):
    write(TinyBert().save(tmp_path), **files)
    options = found(tmp_path).task_options
    assert (options["max_tokens"], options["position_limit"]) == (limit, POSITIONS)


def test_the_default_prompt_is_put_before_every_text(tmp_path):
    said = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    write(sentence_model(tmp_path), config_sentence_transformers__json=said)
    assert found(tmp_path).task_options["prefix"] == "query: "


def test_a_prompt_that_must_not_be_pooled_is_refused(tmp_path):
    said = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    sentence_model(tmp_path, pooling={"include_prompt": False})
    write(tmp_path, config_sentence_transformers__json=said)
    with pytest.raises(ModelLoadError, match="prompt"):
        inspect(tmp_path)


@pytest.mark.parametrize(("said", "lower_case"), [({}, True), ({"do_lower_case": False}, False)])
def test_a_vocabulary_is_cased_where_the_tokeniser_says_so(tmp_path, said, lower_case):
    write(TinyBert().save(tmp_path), tokenizer_config__json=said)
    assert found(tmp_path).task_options["lower_case"] is lower_case


def test_tokenizer_json_goes_before_vocab_txt_and_decides_its_case_itself(tmp_path):
    write(TinyBert().save(tmp_path), tokenizer__json={}, tokenizer_config__json={})
    options = found(tmp_path).task_options
    assert options["tokenizer"] == str(tmp_path / "tokenizer.json")
    assert "lower_case" not in options


def test_an_index_of_shards_is_the_path(tmp_path):
    TinyBert().save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    write(tmp_path, **{"model.safetensors.index__json": {"weight_map": {}}})
    assert found(tmp_path).path.name == "model.safetensors.index.json"


def test_an_onnx_model_in_the_folder_goes_before_its_weights(tmp_path):
    write(TinyBert().save(tmp_path), model__onnx="")
    seen = found(tmp_path)
    assert (seen.format, seen.path) == ("onnx", tmp_path / "model.onnx")
    assert seen.task_options["pooling"] == "mean"


def test_the_hubs_own_export_goes_behind_weights_we_can_build(tmp_path):
    write(TinyBert().save(tmp_path), onnx_in_model__onnx="")
    assert found(tmp_path).format == "safetensors"
    write(tmp_path, config__json=TinyBert(extra={"model_type": "mpnet"}).config())
    assert found(tmp_path).path == tmp_path / "onnx" / "model.onnx"


def test_an_onnx_model_beside_a_tokeniser_needs_no_configuration(tmp_path):
    write(tmp_path, model__onnx="", tokenizer__json={})
    seen = found(tmp_path)
    assert (seen.task, seen.format) == ("text-embedding", "onnx")
    assert seen.task_options["max_tokens"] == 512
    assert "position_limit" not in seen.task_options


def test_an_onnx_model_with_positions_is_told_where_robertas_begin(tmp_path):
    write(TinyBert("roberta").save(tmp_path), model__onnx="")
    assert found(tmp_path).task_options["position_offset"] == 2


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"model__onnx": ""},
        {"config__json": {"anything": 1}},
        {"config__json": {"model_type": "bert"}},
        {"config__json": {"model_type": "vit"}, "model__onnx": ""},
        {
            "config__json": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
            "tokenizer__json": {},
            "model__onnx": "",
        },
    ],
)
def test_folders_that_are_something_else_are_left_alone(tmp_path, files):
    write(tmp_path, **files)
    assert inspect(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "deberta-v2"}, "deberta-v2.*bert, camembert, distilbert"),
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
        ({"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ],
)
def test_models_that_cannot_be_served_are_named(tmp_path, change, message):
    with pytest.raises(ModelLoadError, match=message) as raised:
        inspect(TinyBert(extra=change).save(tmp_path))
    assert raised.value.hint


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForPreTraining", "Model"])
def test_a_pre_trained_encoder_is_an_embedding_too(tmp_path, head):
    TinyBert(extra={"architectures": [f"Bert{head}"]}).save(tmp_path)
    assert found(tmp_path).task == "text-embedding"


def test_pickled_weights_are_refused(tmp_path):
    write(tmp_path, config__json={"model_type": "bert"}, **{"pytorch_model.bin": ""})
    with pytest.raises(ModelLoadError, match="pickle") as raised:
        inspect(tmp_path)
    assert "safetensors" in raised.value.hint


def test_weights_without_a_tokeniser_are_refused(tmp_path):
    (TinyBert().save(tmp_path) / "vocab.txt").unlink()
    with pytest.raises(ModelLoadError, match=r"neither tokenizer\.json nor vocab\.txt"):
        inspect(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "", "[" * 100_000])
def test_a_broken_configuration_is_named(tmp_path, content):
    write(TinyBert().save(tmp_path), config__json=content)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        inspect(tmp_path)
