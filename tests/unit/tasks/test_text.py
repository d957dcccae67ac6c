"""The two text tasks: from a text to the model's rows, and from its outputs to an answer."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from headrace.errors import ConfigError, InferenceFailed, ModelLoadError
from headrace.repository.base import ModelSource
from headrace.repository.huggingface import inspect
from headrace.repository.prepare import prepare
from headrace.tasks.text import TextClassification, TextEmbedding
from headrace.tasks.text_pooling import normalized, probabilities
from headrace.types import TensorSpec
from tests.unit.repository.bert_models import TinyBert
from tests.unit.tasks.text_models import (
    IDS,
    LOGITS,
    MASK,
    POOLED,
    STATES,
    request,
    vocabulary,
)

INPUTS = (IDS, MASK)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return {"tokenizer": vocabulary(tmp_path_factory.mktemp("vocabulary"))}


def finish(task, texts, results):
    asked = request(*texts)
    return task.finish(asked, task.prepare(asked).items, results)


def test_the_public_signature_of_an_embedding(options):
    task = TextEmbedding.create(INPUTS, (POOLED,), options)
    assert task.kind == "text-embedding"
    assert task.inputs == (TensorSpec("text", "BYTES", (-1,)),)
    assert task.outputs == (TensorSpec("embedding", "FP32", (-1, 3)),)


def test_pooled_rows_are_answered_in_the_order_of_the_texts(options):
    task = TextEmbedding.create(INPUTS, (POOLED,), options)
    results = [[np.float32([[n, 2, 3]])] for n in range(3)]
    (output,) = finish(task, ["a", "the cat", ""], results)
    assert (output.name, output.datatype, output.shape) == ("embedding", "FP32", (3, 3))
    assert output.data.tolist() == [[0, 2, 3], [1, 2, 3], [2, 2, 3]]


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", [2, 3, 4]), ("cls", [1, 2, 6]), ("last", [3, 4, 5]), ("max", [3, 4, 6])],
)
def test_states_of_tokens_are_pooled_without_their_padding(options, pooling, expected):
    task = TextEmbedding.create(INPUTS, (STATES,), {**options, "pooling": pooling})
    states = np.float32([[[1, 2, 6], [2, 3, 1], [3, 4, 5], [900, -900, np.nan]]])
    (output,) = finish(task, ["a"], [[states]])  # "a" is three tokens, the fourth is padding
    assert output.data.tolist() == [expected]


def test_normalised_embeddings_have_length_one_and_zeros_stay(options):
    task = TextEmbedding.create(INPUTS, (POOLED,), {**options, "normalize": True})
    (output,) = finish(task, ["a", "a"], [[np.float32([[3, 0, 4]])], [np.float32([[0, 0, 0]])]])
    np.testing.assert_allclose(output.data, [[0.6, 0, 0.8], [0, 0, 0]], rtol=1e-6)
    assert output.data.dtype == np.float32


def test_half_precision_is_answered_as_fp32(options):
    spec = TensorSpec("last_hidden_state", "FP16", (-1, -1, 3))
    task = TextEmbedding.create(INPUTS, (spec,), options)
    (output,) = finish(task, ["a"], [[np.ones((1, 3, 3), np.float16)]])
    assert output.data.dtype == np.float32


@pytest.mark.parametrize(
    ("outputs", "chosen"),
    [
        ((STATES, POOLED), 1),
        ((STATES, TensorSpec("pooler_output", "FP32", (-1, 3))), 0),
        ((TensorSpec("labels", "INT64", (-1, 3)), POOLED), 1),
        ((TensorSpec("anything", "FP32", (-1, 3)),), 0),
    ],
)
def test_the_output_is_found_by_name_and_rank(options, outputs, chosen):
    task = TextEmbedding.create(INPUTS, outputs, options)
    results = [np.full((1, 3, 3)[: len(spec.shape)], n) for n, spec in enumerate(outputs)]
    (output,) = finish(task, ["a"], [results])
    assert output.data.tolist() == [[chosen] * 3]


def test_the_output_can_be_named(options):
    other = TensorSpec("pooler_output", "FP32", (-1, 2))
    task = TextEmbedding.create(INPUTS, (STATES, other), {**options, "output": "pooler_output"})
    assert task.outputs[0].shape == (-1, 2)
    with pytest.raises(ModelLoadError, match="'nothing'"):
        TextEmbedding.create(INPUTS, (STATES,), {**options, "output": "nothing"})


@pytest.mark.parametrize("task", [TextEmbedding, TextClassification])
def test_a_model_without_a_fitting_output_is_refused(options, task):
    with pytest.raises(ModelLoadError, match=r"boxes FP32 \[-1, 4, 2, 2\]") as raised:
        task.create(INPUTS, (TensorSpec("boxes", "FP32", (-1, 4, 2, 2)),), options)
    assert raised.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"poling": "cls"},
        {"pooling": "median"},
        {"max_tokens": 0},
        {"max_tokens": 10**9},
        {"truncate": "no"},
        {"function": "relu"},
        {"labels": "one"},
    ],
)
def test_an_option_that_does_not_exist_is_named(options, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))) as raised:
        TextEmbedding.create(INPUTS, (POOLED,), {**options, **wrong})
    assert "max_tokens" in raised.value.hint


LABELS = ["low", "middle", "high"]


def test_labels_scores_and_probabilities(options):
    task = TextClassification.create(INPUTS, (LOGITS,), {**options, "labels": LABELS})
    assert task.kind == "text-classification"
    assert [(s.name, s.datatype, s.shape) for s in task.outputs] == [
        ("label", "BYTES", (-1,)),
        ("score", "FP32", (-1,)),
        ("probabilities", "FP32", (-1, 3)),
    ]
    logits = [[np.log(np.float32([[1, 2, 7]]))], [np.log(np.float32([[6, 3, 1]]))]]
    label, score, probabilities = finish(task, ["a", "the"], logits)
    assert label.data.tolist() == [b"high", b"low"]
    np.testing.assert_allclose(score.data, [0.7, 0.6], rtol=1e-6)
    np.testing.assert_allclose(probabilities.data, [[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]], rtol=1e-6)
    assert [t.data.dtype for t in (score, probabilities)] == [np.float32, np.float32]
    assert [t.shape for t in (label, score, probabilities)] == [(2,), (2,), (2, 3)]


def test_several_labels_may_be_true(options):
    given = {**options, "labels": LABELS, "function": "sigmoid"}
    task = TextClassification.create(INPUTS, (LOGITS,), given)
    label, score, probabilities = finish(task, ["a"], [[np.float32([[0, 100, -100]])]])
    assert (label.data.tolist(), score.data.tolist()) == ([b"middle"], [1.0])
    np.testing.assert_allclose(probabilities.data, [[0.5, 1, 0]], atol=1e-7)


def test_what_are_probabilities_already_stays(options):
    task = TextClassification.create(INPUTS, (LOGITS,), {**options, "function": "none"})
    label, score, _ = finish(task, ["a"], [[np.float32([[0.25, 0.5, 0.25]])]])
    assert (label.data.tolist(), score.data.tolist()) == ([b"LABEL_1"], [0.5])


def test_labels_that_do_not_match_the_classes(options):
    with pytest.raises(ModelLoadError, match="3 classes, but 2 labels"):
        TextClassification.create(INPUTS, (LOGITS,), {**options, "labels": LABELS[:2]})
    free = TensorSpec("logits", "FP32", (-1, -1))
    with pytest.raises(ModelLoadError, match="how many classes"):
        TextClassification.create(INPUTS, (free,), options)
    task = TextClassification.create(INPUTS, (free,), {**options, "labels": LABELS})
    with pytest.raises(InferenceFailed, match="2 classes"):
        finish(task, ["a"], [[np.float32([[1, 2]])]])


FINITE = st.floats(min_value=-(2.0**99), max_value=2.0**99, width=32)
MATRICES = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=FINITE
)


@given(MATRICES)
def test_probabilities_are_probabilities_however_large_the_logits(logits):
    for function in ("softmax", "sigmoid"):
        scores = probabilities(logits, function)
        assert scores.dtype == np.float32
        assert ((scores >= 0) & (scores <= 1)).all()
        top = np.take_along_axis(scores, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
        assert (top == scores.max(axis=1)).all()
    np.testing.assert_allclose(probabilities(logits, "softmax").sum(axis=1), 1, rtol=1e-5)
    opposite = 1 - probabilities(-logits, "sigmoid")
    np.testing.assert_allclose(probabilities(logits, "sigmoid"), opposite, atol=1e-6)


@given(arrays.arrays(np.float32, (2, 4), elements=st.floats(-1e6, 1e6, width=32)))
def test_lengths_are_one_or_zero(rows):
    norms = np.linalg.norm(normalized(rows), axis=1)
    large = np.abs(rows).max(axis=1) > 1e-6
    np.testing.assert_allclose(norms[large], 1, rtol=1e-5)
    assert (norms <= 1 + 1e-5).all()


def served(folder, cache, task):
    """A folder as a user has it -> the task and a way to run its model."""
    found = inspect(folder)
    source = ModelSource("m", "1", found.format, found.path, folder, found.task, found.task_options)
    built = prepare(source, cache)
    loaded = onnxruntime.InferenceSession(built.path, providers=["CPUExecutionProvider"])
    specs = (
        tuple(
            TensorSpec(v.name, kind, tuple(d if isinstance(d, int) else -1 for d in v.shape))
            for v in values
        )
        for values, kind in ((loaded.get_inputs(), "INT64"), (loaded.get_outputs(), "FP32"))
    )
    made = task.create(*specs, built.task_options)

    def answer(*texts: str):
        asked = request(*texts)
        items = made.prepare(asked).items
        names = [value.name for value in loaded.get_inputs()]
        results = [loaded.run(None, dict(zip(names, item.arrays, strict=True))) for item in items]
        return made.finish(asked, items, results)

    return answer


def test_a_folder_of_weights_answers_texts_with_embeddings(tmp_path):
    model = TinyBert("roberta")
    answer = served(model.save(tmp_path / "model"), tmp_path / "cache", TextEmbedding)
    (output,) = answer("w7 w30 w5", "")
    expected = [model.embedding_of([2, 7, 30, 5, 3]), model.embedding_of([2, 3])]
    np.testing.assert_allclose(output.data, expected, atol=1e-5)


def test_a_folder_of_weights_answers_texts_with_labels(tmp_path):
    model = TinyBert("electra", labels=4)
    answer = served(model.save(tmp_path / "model"), tmp_path / "cache", TextClassification)
    label, _, scores = answer("w7 w30 w5", "w9")
    logits = np.array([model.logits([2, 7, 30, 5, 3]), model.logits([2, 9, 3])])
    np.testing.assert_allclose(scores.data, probabilities(logits, "softmax"), atol=1e-5)
    assert label.data.tolist() == [f"class {n}".encode() for n in logits.argmax(axis=1)]
