"""The built graph against a forward pass written from the papers, one text at a time."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ModelLoadError
from headrace.repository.bert_family import read_encoder
from headrace.repository.bert_graph import build_graph
from headrace.repository.bert_tensors import POOLINGS, Head
from headrace.repository.weights import open_weights
from tests.unit.repository.bert_models import (
    HIDDEN,
    MODEL_TYPES,
    POSITIONS,
    ROBERTA_LIKE,
    VOCABULARY,
    TinyBert,
)

TEXTS = [[2, 17, 33, 8, 60, 71, 3], [2, 5, 3], [2, 3], [2, *range(4, 34), 3]]
BUILT = ("model.onnx", "model.onnx.data")
EMBEDDING = Head("embedding")


def session(model: TinyBert, folder: Path, head: Head = EMBEDDING) -> onnxruntime.InferenceSession:
    """Builds the graph of a saved model and loads it."""
    built = folder / "built"
    built.mkdir()
    weights_path = folder / "model.safetensors"
    if not weights_path.exists():
        weights_path = folder / "model.safetensors.index.json"
    with open_weights(weights_path) as weights:
        build_graph(weights, read_encoder(model.config()), head, built)
    return onnxruntime.InferenceSession(built / "model.onnx", providers=["CPUExecutionProvider"])


def run(
    loaded: onnxruntime.InferenceSession, texts: list[list[int]], padding_id: int, tokens: int = 0
) -> np.ndarray:
    """One batch, padded on the right to its longest text or to ``tokens``."""
    tokens = max(tokens, *(len(text) for text in texts))
    ids = np.full((len(texts), tokens), padding_id, np.int64)
    mask = np.zeros((len(texts), tokens), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    (output,) = loaded.run(None, {"input_ids": ids, "attention_mask": mask})
    return output


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_embeddings_are_the_formulas(tmp_path, model_type):
    model = TinyBert(model_type)
    got = run(session(model, model.save(tmp_path)), TEXTS, model.padding_id)
    np.testing.assert_allclose(got, [model.embedding_of(text) for text in TEXTS], atol=1e-5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits_are_the_formulas(tmp_path, model_type):
    model = TinyBert(model_type, labels=3)
    loaded = session(model, model.save(tmp_path), Head("classification", labels=3))
    assert [output.name for output in loaded.get_outputs()] == ["logits"]
    got = run(loaded, TEXTS, model.padding_id)
    np.testing.assert_allclose(got, [model.logits(text) for text in TEXTS], atol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling(tmp_path, pooling, normalize):
    model = TinyBert()
    head = Head("embedding", pooling=pooling, normalize=normalize)
    got = run(session(model, model.save(tmp_path), head), TEXTS, model.padding_id)
    expected = [model.embedding_of(text, pooling, normalize=normalize) for text in TEXTS]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_every_activation(tmp_path, activation):
    model = TinyBert(activation=activation)
    got = run(session(model, model.save(tmp_path)), TEXTS, model.padding_id)
    np.testing.assert_allclose(got, [model.embedding_of(text) for text in TEXTS], atol=1e-5)


def test_embeddings_narrower_than_the_layers_are_projected(tmp_path):
    model = TinyBert("electra", embedding=10)
    got = run(session(model, model.save(tmp_path)), TEXTS, model.padding_id)
    np.testing.assert_allclose(got, [model.embedding_of(text) for text in TEXTS], atol=1e-5)


def test_the_epsilon_of_layer_normalisation_is_the_configured_one(tmp_path):
    model = TinyBert(extra={"layer_norm_eps": 0.5})
    got = run(session(model, model.save(tmp_path)), TEXTS, model.padding_id)
    np.testing.assert_allclose(got, [model.embedding_of(text) for text in TEXTS], atol=1e-5)


def test_the_padding_token_inside_a_roberta_text_has_no_position_of_its_own(tmp_path):
    model = TinyBert("roberta")
    texts = [[2, 1, 9, 1, 30, 3], [2, 9, 3]]
    got = run(session(model, model.save(tmp_path)), texts, model.padding_id)
    np.testing.assert_allclose(got, [model.embedding_of(text) for text in texts], atol=1e-5)


@pytest.fixture(scope="module", params=["bert", "roberta", "classifier", "last"])
def padded(request, tmp_path_factory):
    kind = request.param
    model = TinyBert(
        "roberta" if kind == "roberta" else "bert", labels=2 if kind == "classifier" else 0
    )
    head = EMBEDDING
    if kind == "classifier":
        head = Head("classification", labels=2)
    elif kind == "last":
        head = Head("embedding", pooling="last", normalize=False)
    folder = model.save(tmp_path_factory.mktemp("padded"))
    return session(model, folder, head), model.padding_id


LONGEST = POSITIONS - 2  # RoBERTa keeps two positions for padding
TOKEN = st.integers(min_value=2, max_value=VOCABULARY - 1)


@given(
    texts=st.lists(st.lists(TOKEN, min_size=1, max_size=LONGEST), min_size=1, max_size=5),
    tokens=st.integers(min_value=1, max_value=LONGEST),
)
def test_alone_in_a_batch_or_padded_the_answer_is_the_same(padded, texts, tokens):
    loaded, padding_id = padded
    together = run(loaded, texts, padding_id, tokens)
    alone = np.concatenate([run(loaded, [text], padding_id) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_row_of_nothing_but_padding_is_not_nan(tmp_path):
    model = TinyBert()
    loaded = session(model, model.save(tmp_path))
    ids, mask = np.zeros((2, 4), np.int64), np.int64([[1, 1, 0, 0], [0, 0, 0, 0]])
    (got,) = loaded.run(None, {"input_ids": ids, "attention_mask": mask})
    assert np.isfinite(got).all()


def rounded_to_bfloat16(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) & 0xFFFF0000).view(np.float32)


def write_bfloat16(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """By hand, from the format's description: numpy has no such type."""
    header, body = {}, b""
    for name, array in tensors.items():
        raw = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        span = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": span}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _rounded(model: TinyBert, change) -> TinyBert:
    for name in ("words", "positions", "types"):
        setattr(model, name, change(getattr(model, name)))
    model.norm = tuple(map(change, model.norm))
    for layer in model.layers:
        for part, pair in layer.items():
            layer[part] = tuple(map(change, pair))
    return model


@pytest.mark.parametrize("datatype", ["float16", "float64", "bfloat16"])
def test_other_precisions_are_widened_not_reinterpreted(tmp_path, datatype):
    if datatype == "bfloat16":
        model = _rounded(TinyBert(), rounded_to_bfloat16)
        model.save(tmp_path)
        write_bfloat16(tmp_path / "model.safetensors", model.tensors())
    else:
        model = _rounded(TinyBert(), lambda a: a.astype(np.float16).astype(np.float32))
        model.save(tmp_path, {k: v.astype(datatype) for k, v in model.tensors().items()})
    got = run(session(model, tmp_path), TEXTS, model.padding_id)
    np.testing.assert_allclose(got, [model.embedding_of(text) for text in TEXTS], atol=1e-5)


def test_shards_are_one_model(tmp_path):
    from safetensors.numpy import save_file

    model = TinyBert("xlm-roberta")
    model.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(model.tensors())
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: model.tensors()[name] for name in held}, tmp_path / file)
    where = {name: file for file, held in shards.items() for name in held}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    got = run(session(model, tmp_path), TEXTS, model.padding_id)
    np.testing.assert_allclose(got, [model.embedding_of(text) for text in TEXTS], atol=1e-5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("prefixed", [True, False])
def test_names_with_and_without_the_prefix(tmp_path, model_type, prefixed):
    model = TinyBert(model_type)
    model.save(tmp_path, model.tensors(prefixed=prefixed))
    got = run(session(model, tmp_path), TEXTS, model.padding_id)
    np.testing.assert_allclose(got, [model.embedding_of(text) for text in TEXTS], atol=1e-5)


def test_what_pre_training_left_beside_the_encoder_is_not_read(tmp_path):
    model = TinyBert()
    tensors = model.tensors(prefixed=True) | {
        "bert.embeddings.position_ids": np.arange(POSITIONS)[None],
        "bert.pooler.dense.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
        "cls.predictions.bias": np.zeros(VOCABULARY, np.float32),
    }
    model.save(tmp_path, tensors)
    got = run(session(model, tmp_path), TEXTS, model.padding_id)
    np.testing.assert_allclose(got, [model.embedding_of(text) for text in TEXTS], atol=1e-5)


def test_old_names_of_layer_normalisation(tmp_path):
    model = TinyBert()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in model.tensors().items()
    }
    model.save(tmp_path, old)
    got = run(session(model, tmp_path), TEXTS, model.padding_id)
    np.testing.assert_allclose(got, [model.embedding_of(text) for text in TEXTS], atol=1e-5)


def test_openvino_runs_the_same_graph(tmp_path):
    openvino = pytest.importorskip("openvino")
    model = TinyBert("roberta", labels=3)
    loaded = session(model, model.save(tmp_path), Head("classification", labels=3))
    compiled = openvino.Core().compile_model(
        tmp_path / "built" / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    text = np.int64([TEXTS[0]])
    feed = {"input_ids": text, "attention_mask": np.ones_like(text)}
    np.testing.assert_allclose(compiled(feed)[0], loaded.run(None, feed)[0], atol=1e-4)


def test_the_model_is_valid_and_keeps_each_weight_once_beside_the_graph(tmp_path):
    model = TinyBert(seed=3)
    model.words = np.tile(model.words, (40, 1))
    model.extra = {"vocab_size": len(model.words)}
    session(model, model.save(tmp_path))
    onnx.checker.check_model(tmp_path / "built" / "model.onnx", full_check=True)
    written = sum((tmp_path / "built" / name).stat().st_size for name in BUILT)
    parameters = sum(array.nbytes for array in model.tensors().values())
    assert parameters < written < 1.15 * parameters
    assert (tmp_path / "built" / "model.onnx.data").stat().st_size >= model.words.nbytes


NORM = "encoder.layer.1.output.LayerNorm.weight"


def _without(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: _without(t, NORM), NORM),
        (lambda t: t | {"encoder.layer.2.output.dense.bias": t[NORM]}, "encoder.layer.2.output"),
        (lambda t: t | {"base_model.lora_A.weight": t[NORM]}, "lora_A"),
        (lambda t: t | {NORM: np.zeros(HIDDEN + 1, np.float32)}, NORM),
        (lambda t: t | {NORM: np.zeros(HIDDEN, np.int32)}, NORM),
    ],
    ids=["missing", "a layer too many", "adapter", "shape", "integers"],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, named):
    model = TinyBert()
    model.save(tmp_path, change(model.tensors()))
    with pytest.raises(ModelLoadError, match=named) as raised:
        session(model, tmp_path)
    assert raised.value.hint


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", struct.pack("<Q", 2**40)]
)
def test_a_file_that_is_not_safetensors(tmp_path, content):
    model = TinyBert()
    model.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is not a safetensors file"):
        session(model, tmp_path)


def test_a_file_that_was_cut_off(tmp_path):
    path = TinyBert().save(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="cut off"):
        session(TinyBert(), tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "missing.safetensors"}}, "missing.safetensors is not there"),
        ({"weight_map": {"a": "../outside.safetensors"}}, "expected files beside it"),
        ({"weight_map": {}}, "names no file"),
        ([], "cannot be read as an index"),
    ],
)
def test_an_index_that_names_the_wrong_files(tmp_path, index, message):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=message), open_weights(path):
        pass


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "deberta-v2"}, "deberta-v2"),
        ({"model_type": None}, "model_type"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "24"}, "hidden_size"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"hidden_act": "swiglu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"pad_token_id": "x"}, "pad_token_id"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ],
)
def test_a_configuration_that_is_another_model_is_refused_by_key(change, named):
    config = {key: v for key, v in (TinyBert().config() | change).items() if v is not None}
    with pytest.raises(ModelLoadError, match=named) as raised:
        read_encoder(config)
    assert raised.value.hint


def test_an_unsupported_model_type_lists_those_that_are():
    with pytest.raises(ModelLoadError) as raised:
        read_encoder({"model_type": "t5"})
    assert raised.value.details["supported"] == sorted(MODEL_TYPES)
    assert "ONNX" in raised.value.hint


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_longest_text_has_a_position_for_every_token(tmp_path, model_type):
    model = TinyBert(model_type)
    longest = read_encoder(model.config()).max_tokens
    assert longest == POSITIONS - (2 if model_type in ROBERTA_LIKE else 0)
    text = [4 + number % (VOCABULARY - 4) for number in range(longest)]
    got = run(session(model, model.save(tmp_path)), [text], model.padding_id)
    np.testing.assert_allclose(got, [model.embedding_of(text)], atol=1e-5)
