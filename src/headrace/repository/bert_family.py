"""The BERT family as numbers and names: what ``config.json`` says, what each tensor is called.

BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA and DistilBERT are one graph: embeddings, then
layers of self-attention and a feed-forward network, each followed by addition and layer
normalisation. They differ in what they call their tensors and in four details, which are the
fields of :class:`Encoder`. The names are those of the ``transformers`` library's classes
(``src/transformers/models/{bert,roberta,electra,distilbert}/modeling_*.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from headrace.errors import ModelLoadError

Activation = Literal["gelu", "gelu_tanh", "relu", "tanh"]


class LayerNames(msgspec.Struct, frozen=True):
    """What one encoder layer calls its parts; ``at`` has a ``{}`` for the layer's number."""

    at: str
    query: str
    key: str
    value: str
    attention_out: str
    attention_norm: str
    up: str
    down: str
    output_norm: str


class ClassifierNames(msgspec.Struct, frozen=True):
    """The head of ``...ForSequenceClassification``: ``out(activation(dense(first token)))``.

    ``in_encoder`` says that ``dense`` stands below the encoder's prefix (BERT's pooler).
    """

    dense: str
    activation: Activation
    out: str
    in_encoder: bool = False


class Member(msgspec.Struct, frozen=True):
    """One ``model_type``. ``prefix`` stands before the encoder's tensors where a head is saved
    beside them. ``counts_positions``: padding has a position of its own and the first token
    comes after it (RoBERTa); otherwise positions are 0, 1, 2 ... ``projects``: the embeddings
    may be narrower than the layers (ELECTRA)."""

    prefix: str
    layer: LayerNames
    classifier: ClassifierNames
    keys: Mapping[str, str] = {}
    token_types: bool = True
    counts_positions: bool = False
    projects: bool = False


_BERT_LAYER = LayerNames(
    at="encoder.layer.{}.",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    output_norm="output.LayerNorm",
)
_DISTILBERT_LAYER = LayerNames(
    at="transformer.layer.{}.",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    output_norm="output_layer_norm",
)
_ROBERTA = Member(
    prefix="roberta.",
    layer=_BERT_LAYER,
    classifier=ClassifierNames("classifier.dense", "tanh", "classifier.out_proj"),
    counts_positions=True,
)

MEMBERS: Mapping[str, Member] = {
    "bert": Member(
        prefix="bert.",
        layer=_BERT_LAYER,
        classifier=ClassifierNames("pooler.dense", "tanh", "classifier", in_encoder=True),
    ),
    "camembert": _ROBERTA,
    "distilbert": Member(
        prefix="distilbert.",
        layer=_DISTILBERT_LAYER,
        classifier=ClassifierNames("pre_classifier", "relu", "classifier"),
        keys={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        token_types=False,
    ),
    "electra": Member(
        prefix="electra.",
        layer=_BERT_LAYER,
        classifier=ClassifierNames("classifier.dense", "gelu", "classifier.out_proj"),
        projects=True,
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
"""``model_type`` of config.json -> how that member differs."""

_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class Encoder(msgspec.Struct, frozen=True):
    """The numbers of one encoder. Sizes are counts of elements.

    ``embedding_size`` is the width of the embedding tables; ``padding_id`` the token whose
    position RoBERTa does not count; ``token_types`` rows of the type table (0: none).
    """

    model_type: str
    vocabulary: int
    positions: int
    token_types: int
    embedding_size: int
    hidden_size: int
    heads: int
    layers: int
    intermediate_size: int
    activation: Activation
    epsilon: float
    padding_id: int

    @property
    def member(self) -> Member:
        """The names that go with these numbers."""
        return MEMBERS[self.model_type]

    @property
    def max_tokens(self) -> int:
        """Longest text that has a position for every token."""
        reserved = self.padding_id + 1 if self.member.counts_positions else 0
        return self.positions - reserved


def read_encoder(config: Mapping[str, Any]) -> Encoder:
    """Checks a parsed ``config.json`` and takes from it what the graph needs.

    Raises:
        ModelLoadError: another ``model_type``, a number that is missing or impossible, or a
            variant (decoder, relative positions, activation) that this graph is not.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MEMBERS:
        raise unsupported(model_type)
    member = MEMBERS[model_type]
    _refuse_variants(config)
    hidden = _count(config, member, "hidden_size")
    heads = _count(config, member, "num_attention_heads")
    if hidden % heads:
        raise _wrong("num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
    activation = config.get(member.keys.get("hidden_act", "hidden_act"), "gelu")
    if activation not in _ACTIVATIONS:
        raise _wrong("hidden_act", activation, f"one of {', '.join(sorted(_ACTIVATIONS))}")
    epsilon = config.get("layer_norm_eps", 1e-12)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise _wrong("layer_norm_eps", epsilon, "a small positive number")
    encoder = Encoder(
        model_type=model_type,
        vocabulary=_count(config, member, "vocab_size"),
        positions=_count(config, member, "max_position_embeddings"),
        token_types=_count(config, member, "type_vocab_size") if member.token_types else 0,
        embedding_size=_count(config, member, "embedding_size") if member.projects else hidden,
        hidden_size=hidden,
        heads=heads,
        layers=_count(config, member, "num_hidden_layers"),
        intermediate_size=_count(config, member, "intermediate_size"),
        activation=_ACTIVATIONS[activation],
        epsilon=epsilon,
        padding_id=read_padding_id(config),
    )
    if encoder.max_tokens < 1:
        raise _wrong("max_position_embeddings", encoder.positions, "room for at least one token")
    return encoder


def read_padding_id(config: Mapping[str, Any]) -> int:
    """``pad_token_id``, or the family's own default: 1 for RoBERTa's, else 0."""
    member = MEMBERS.get(str(config.get("model_type")))
    default = 1 if member is not None and member.counts_positions else 0
    value = config.get("pad_token_id")
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _wrong("pad_token_id", value, "a token's number")
    return value


def unsupported(model_type: object) -> ModelLoadError:
    """The error for a ``model_type`` whose graph is not built here."""
    return ModelLoadError(
        f"config.json says model_type {model_type!r}; from safetensors headrace builds "
        f"{', '.join(sorted(MEMBERS))}",
        hint="export the model to ONNX (optimum-cli export onnx) and put model.onnx in its folder",
        model_type=model_type if isinstance(model_type, str) else None,
        supported=sorted(MEMBERS),
    )


def _refuse_variants(config: Mapping[str, Any]) -> None:
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise _wrong("position_embedding_type", positions, "absolute")
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise _wrong(key, config[key], "false: this is served as an encoder")


def _count(config: Mapping[str, Any], member: Member, key: str) -> int:
    key = member.keys.get(key, key)
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**31 - 1:
        raise _wrong(key, value, "a positive number")
    return value


def _wrong(key: str, got: object, expected: str) -> ModelLoadError:
    shown = "is missing" if got is None else f"is {str(got)[:80]!r}"
    return ModelLoadError(
        f"{key} in config.json {shown}; expected {expected}",
        hint="restore the config.json that was saved with the model, or export it to ONNX",
        key=key,
    )
