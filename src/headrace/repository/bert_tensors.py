"""Which tensors a model of the BERT family must have, and what is wrong where it has others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

from headrace.errors import ModelLoadError
from headrace.repository.bert_family import Encoder

Pooling = Literal["mean", "cls", "max", "last"]
POOLINGS: tuple[str, ...] = get_args(Pooling)

_SHOWN = 5
_NOT_READ = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Buffers that old checkpoints carry; their values are 0, 1, 2 ... and 0, 0, 0 ..."""
_OTHER_HEADS = (
    "cls.", "lm_head.", "pooler.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector.",
    "discriminator_predictions.", "generator_predictions.", "generator_lm_head.",
    "pre_classifier.", "classifier.", "qa_outputs.",
)  # fmt: skip
"""Heads that may be saved beside the encoder; where one is not asked for, it is not read."""


class Head(msgspec.Struct, frozen=True):
    """What stands on the encoder: a sentence embedding, or a classifier of ``labels`` classes.

    ``pooling`` and ``normalize`` (L2) belong to the embedding.
    """

    kind: Literal["embedding", "classification"]
    pooling: Pooling = "mean"
    normalize: bool = True
    labels: int = 0

    @property
    def reads_first_token(self) -> bool:
        """True where nothing but the first token's last hidden state is used."""
        return self.kind == "classification" or self.pooling == "cls"


class TensorNames:
    """The names of one model's tensors, with or without the prefix of its encoder."""

    def __init__(self, stored: Mapping[str, object], encoder: Encoder, head: Head) -> None:
        prefix = encoder.member.prefix
        prefixed = any(name.startswith(prefix) for name in stored)
        self.prefix = prefix if prefixed else ""
        self._encoder = encoder
        self._head = head

    @property
    def word_table(self) -> str:
        """``[vocabulary, embedding]``."""
        return f"{self.prefix}embeddings.word_embeddings.weight"

    @property
    def position_table(self) -> str:
        """``[positions, embedding]``."""
        return f"{self.prefix}embeddings.position_embeddings.weight"

    @property
    def type_table(self) -> str:
        """``[token types, embedding]``; not in DistilBERT."""
        return f"{self.prefix}embeddings.token_type_embeddings.weight"

    @property
    def embedding_norm(self) -> str:
        """Layer normalisation of the sum of the tables."""
        return f"{self.prefix}embeddings.LayerNorm"

    @property
    def projection(self) -> str:
        """From the width of the tables to that of the layers, where they differ."""
        return f"{self.prefix}embeddings_project"

    def layer(self, number: int, part: str) -> str:
        """``part`` (a value of LayerNames) of one layer."""
        return f"{self.prefix}{self._encoder.member.layer.at.format(number)}{part}"

    @property
    def classifier_dense(self) -> str:
        """First of the classifier's two linear layers."""
        classifier = self._encoder.member.classifier
        return f"{self.prefix if classifier.in_encoder else ''}{classifier.dense}"

    @property
    def classifier_out(self) -> str:
        """Second of the classifier's two linear layers."""
        return self._encoder.member.classifier.out

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that is read, and its shape."""
        encoder = self._encoder
        hidden, narrow = encoder.hidden_size, encoder.embedding_size
        shapes: dict[str, tuple[int, ...]] = {
            self.word_table: (encoder.vocabulary, narrow),
            self.position_table: (encoder.positions, narrow),
            **_norm(self.embedding_norm, narrow),
        }
        if encoder.token_types:
            shapes[self.type_table] = (encoder.token_types, narrow)
        if narrow != hidden:
            shapes |= _linear(self.projection, narrow, hidden)
        for number in range(encoder.layers):
            shapes |= self._expected_layer(number)
        if self._head.kind == "classification":
            shapes |= _linear(self.classifier_dense, hidden, hidden)
            shapes |= _linear(self.classifier_out, hidden, self._head.labels)
        return shapes

    def check(self, stored: Mapping[str, tuple[int, ...]]) -> None:
        """Compares with what the files hold.

        Raises:
            ModelLoadError: names the tensors that are missing, unknown or of another shape.
        """
        expected = self.expected()
        missing = sorted(expected.keys() - stored.keys())
        if missing:
            raise ModelLoadError(
                f"{_listed(missing)} missing from the weights",
                hint="config.json and weights must belong together, and no shard be left out",
                missing=missing[:_SHOWN],
            )
        for name, shape in expected.items():
            if stored[name] != shape:
                raise ModelLoadError(
                    f"tensor {name!r} has shape {list(stored[name])}; config.json says "
                    f"{list(shape)}",
                    hint="config.json and weights must belong together",
                    tensor=name,
                )
        unknown = sorted(name for name in stored.keys() - expected.keys() if self._matters(name))
        if unknown:
            raise ModelLoadError(
                f"{_listed(unknown)} in the weights but not part of a "
                f"{self._encoder.model_type} {self._head.kind} model of "
                f"{self._encoder.layers} layers: leaving them out would change the answers",
                hint="export the model to ONNX instead; adapters (LoRA) must be merged first",
                unknown=unknown[:_SHOWN],
            )

    def _expected_layer(self, number: int) -> dict[str, tuple[int, ...]]:
        hidden, inner = self._encoder.hidden_size, self._encoder.intermediate_size
        parts = self._encoder.member.layer
        shapes: dict[str, tuple[int, ...]] = {}
        for part in (parts.query, parts.key, parts.value, parts.attention_out):
            shapes |= _linear(self.layer(number, part), hidden, hidden)
        shapes |= _linear(self.layer(number, parts.up), hidden, inner)
        shapes |= _linear(self.layer(number, parts.down), inner, hidden)
        for part in (parts.attention_norm, parts.output_norm):
            shapes |= _norm(self.layer(number, part), hidden)
        return shapes

    def _matters(self, name: str) -> bool:
        name = name.removeprefix(self.prefix)
        return name not in _NOT_READ and not name.startswith(_OTHER_HEADS)


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    verb = "is" if len(names) == 1 else "are"
    return f"{shown}{more} {verb}"
