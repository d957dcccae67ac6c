"""Small random models of the BERT family, and a forward pass that shares nothing with ours.

A model is numpy arrays in a plain structure. ``save`` writes them as transformers would, with
each member's own names; ``hidden`` and ``logits`` compute one text at a time, without batch,
mask or padding, from the papers' formulas.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

VOCABULARY, POSITIONS, HIDDEN, HEADS, LAYERS, INNER = 90, 40, 24, 3, 2, 40
ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert")
MODEL_TYPES = ("bert", "distilbert", "electra", *ROBERTA_LIKE)

_BERT_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mix": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}
_DISTIL_PARTS = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "mix": "attention.out_lin",
    "norm1": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm2": "output_layer_norm",
}
Linear = tuple[np.ndarray, np.ndarray]


@dataclass
class TinyBert:
    model_type: str = "bert"
    labels: int = 0
    """0: a bare encoder."""

    activation: str = "gelu"
    embedding: int = HIDDEN
    seed: int = 7
    extra: dict[str, Any] = field(default_factory=dict)
    """Laid over config.json."""

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self.words = self._array(VOCABULARY, self.embedding)
        self.positions = self._array(POSITIONS, self.embedding)
        self.types = self._array(2, self.embedding)
        self.norm = self._linear(self.embedding)
        self.project = self._linear(HIDDEN, self.embedding)
        shapes = {"up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
        norms = dict.fromkeys(("norm1", "norm2"), (HIDDEN,))
        self.layers = [
            {
                part: self._linear(*(shapes | norms).get(part, (HIDDEN, HIDDEN)))
                for part in _BERT_PARTS
            }
            for _ in range(LAYERS)
        ]
        self.dense = self._linear(HIDDEN, HIDDEN)
        self.out = self._linear(max(self.labels, 1), HIDDEN)

    @property
    def padding_id(self) -> int:
        return 1 if self.model_type in ROBERTA_LIKE else 0

    def config(self) -> dict[str, Any]:
        distil = self.model_type == "distilbert"
        head = "ForSequenceClassification" if self.labels else "Model"
        config: dict[str, Any] = {
            "model_type": self.model_type,
            "architectures": [f"Tiny{head}"],
            "vocab_size": VOCABULARY,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": self.padding_id,
            "dim" if distil else "hidden_size": HIDDEN,
            "n_layers" if distil else "num_hidden_layers": LAYERS,
            "n_heads" if distil else "num_attention_heads": HEADS,
            "hidden_dim" if distil else "intermediate_size": INNER,
            "activation" if distil else "hidden_act": self.activation,
        }
        if not distil:
            config |= {"type_vocab_size": 2, "layer_norm_eps": 1e-12}
        if self.model_type == "electra":
            config["embedding_size"] = self.embedding
        if self.labels:
            config["id2label"] = {str(n): f"class {n}" for n in range(self.labels)}
        return config | self.extra

    def tensors(self, *, prefixed: bool | None = None) -> dict[str, np.ndarray]:
        """As transformers names them; the prefix is there where a head is, unless told."""
        prefixed = bool(self.labels) if prefixed is None else prefixed
        prefix = "roberta" if self.model_type in ROBERTA_LIKE else self.model_type
        prefix = f"{prefix}." if prefixed else ""
        distil = self.model_type == "distilbert"
        named = {
            f"{prefix}embeddings.word_embeddings.weight": self.words,
            f"{prefix}embeddings.position_embeddings.weight": self.positions,
            **_pair(f"{prefix}embeddings.LayerNorm", self.norm),
        }
        if not distil:
            named[f"{prefix}embeddings.token_type_embeddings.weight"] = self.types
        if self.embedding != HIDDEN:
            named |= _pair(f"{prefix}embeddings_project", self.project)
        for number, layer in enumerate(self.layers):
            at = f"{prefix}{'transformer' if distil else 'encoder'}.layer.{number}"
            parts = _DISTIL_PARTS if distil else _BERT_PARTS
            for part, values in layer.items():
                named |= _pair(f"{at}.{parts[part]}", values)
        if self.labels:
            names = {
                "bert": ("bert.pooler.dense", "classifier"),
                "distilbert": ("pre_classifier", "classifier"),
            }
            default = ("classifier.dense", "classifier.out_proj")
            dense, out = names.get(self.model_type, default)
            named |= _pair(dense, self.dense) | _pair(out, self.out)
        return named

    def save(self, folder: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
        """config.json, model.safetensors and a vocabulary ``[PAD] [UNK] [CLS] [SEP] w4 w5 ...``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config()))
        save_file(tensors or self.tensors(), folder / "model.safetensors")
        words = [f"w{number}" for number in range(4, VOCABULARY)]
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]))
        return folder

    def hidden(self, ids: list[int]) -> np.ndarray:
        """Last hidden states ``[tokens, hidden]`` of one text."""
        positions = np.arange(len(ids))
        if self.model_type in ROBERTA_LIKE:
            real = np.array([token != self.padding_id for token in ids])
            positions = np.where(real, np.cumsum(real), 0) + self.padding_id
        state = self.words[ids].astype(np.float64) + self.positions[positions]
        if self.model_type != "distilbert":
            state = state + self.types[0]
        state = self._normalize(state, self.norm)
        if self.embedding != HIDDEN:
            state = _apply(state, self.project)
        for layer in self.layers:
            state = self._normalize(state + self._attention(state, layer), layer["norm1"])
            inner = _activate(_apply(state, layer["up"]), self.activation)
            state = self._normalize(state + _apply(inner, layer["down"]), layer["norm2"])
        return state

    def embedding_of(self, ids: list[int], pooling: str = "mean", *, normalize: bool = True) -> Any:
        states = self.hidden(ids)
        pooled = {
            "mean": states.mean(axis=0),
            "cls": states[0],
            "last": states[-1],
            "max": states.max(axis=0),
        }[pooling]
        return pooled / np.linalg.norm(pooled) if normalize else pooled

    def logits(self, ids: list[int]) -> np.ndarray:
        first = _apply(self.hidden(ids)[0], self.dense)
        kind = {"distilbert": "relu", "electra": "gelu"}.get(self.model_type, "tanh")
        return _apply(_activate(first, kind), self.out)

    def _attention(self, state: np.ndarray, layer: dict[str, Linear]) -> np.ndarray:
        query, key, value = (_apply(state, layer[part]) for part in ("query", "key", "value"))
        width = HIDDEN // HEADS
        mixed = []
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, part] @ key[:, part].T / math.sqrt(width)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, part])
        return _apply(np.concatenate(mixed, axis=1), layer["mix"])

    def _normalize(self, state: np.ndarray, norm: Linear) -> np.ndarray:
        centred = state - state.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        epsilon = self.extra.get("layer_norm_eps", 1e-12)
        return centred / np.sqrt(variance + epsilon) * norm[0] + norm[1]

    def _array(self, *shape: int) -> np.ndarray:
        return self._random.normal(0, 0.5, shape).astype(np.float32)

    def _linear(self, *shape: int) -> Linear:
        """Weight and bias; for one size the scale and shift of a layer normalisation."""
        return self._array(*shape), self._array(shape[0])


def _pair(name: str, values: Linear) -> dict[str, np.ndarray]:
    return {f"{name}.weight": values[0], f"{name}.bias": values[1]}


def _apply(state: np.ndarray, linear: Linear) -> np.ndarray:
    return state @ linear[0].T.astype(np.float64) + linear[1]


def _activate(state: np.ndarray, kind: str) -> np.ndarray:
    if kind == "relu":
        return np.maximum(state, 0)
    if kind == "tanh":
        return np.tanh(state)
    if kind == "gelu":
        return state * 0.5 * (1 + np.vectorize(math.erf)(state / math.sqrt(2)))
    assert kind == "gelu_new"
    cubic = math.sqrt(2 / math.pi) * (state + 0.044715 * state**3)
    return state * 0.5 * (1 + np.tanh(cubic))
