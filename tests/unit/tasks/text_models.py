"""A vocabulary, requests and signatures for the tests of the text tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headrace.types import DYNAMIC, InferenceRequest, Tensor, TensorSpec

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "A", "a", ","]
CLS, SEP, UNK = 2, 3, 1

IDS = TensorSpec("input_ids", "INT64", (DYNAMIC, DYNAMIC))
MASK = TensorSpec("attention_mask", "INT64", (DYNAMIC, DYNAMIC))
TYPES = TensorSpec("token_type_ids", "INT64", (DYNAMIC, DYNAMIC))
POSITIONS = TensorSpec("position_ids", "INT64", (DYNAMIC, DYNAMIC))
POOLED = TensorSpec("embedding", "FP32", (DYNAMIC, 3))
STATES = TensorSpec("last_hidden_state", "FP32", (DYNAMIC, DYNAMIC, 3))
LOGITS = TensorSpec("logits", "FP32", (DYNAMIC, 3))


def vocabulary(folder: Path) -> str:
    """Path of a vocab.txt whose line numbers are the tokens' numbers."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(WORDS), encoding="utf-8")
    return str(path)


def tokenizer_json(folder: Path, **options: Any) -> str:
    """The same as a tokenizer.json, with padding and truncation of its own."""
    from headrace.tasks.text_options import TextOptions
    from headrace.tasks.text_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(TextOptions(tokenizer=vocabulary(folder), **options))
    tokenizer.enable_padding(length=9, pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def request(*texts: str | bytes) -> InferenceRequest:
    data = np.empty(len(texts), dtype=object)
    data[:] = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return InferenceRequest("m", [Tensor("text", "BYTES", data.shape, data)])
