"""The options of the text tasks, detected from a model's folder or given by its owner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from headrace.errors import ConfigError
from headrace.limits import MIB, NotNegative, Positive

Tokens = Annotated[int, Meta(ge=1, le=1_000_000)]
Pooling = Literal["mean", "cls", "max", "last"]
Function = Literal["softmax", "sigmoid", "none"]


class TextOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``task_options`` of text-embedding and text-classification."""

    tokenizer: str
    """Path of a tokenizer.json, or of a WordPiece vocab.txt."""

    lower_case: bool | None = None
    """True: texts are lower-cased. None: tokenizer.json decides; a vocab.txt is taken for
    uncased, as most are."""

    strip_accents: bool | None = None
    """For a vocab.txt: None strips accents where it lower-cases, as BERT did."""

    max_tokens: Tokens = 512
    """Longer texts are cut to this many tokens, the special ones included. 512: BERT's."""

    position_limit: Tokens | None = None
    """Tokens the model has positions for, as its folder says; ``max_tokens`` ends there."""

    truncate: bool = True
    """False refuses a longer text instead."""

    pad_id: NotNegative | None = None
    """Token that fills a row up to the longest of its batch; None asks the tokeniser."""

    position_offset: NotNegative = 0
    """Position of the first token, for a model with ``position_ids``; RoBERTa's is 2."""

    prefix: str = ""
    """Put before every text, as some models were trained to expect (E5: ``"query: "``)."""

    max_texts: Positive = 2048
    """Texts in one request; OpenAI's limit for embeddings."""

    max_text_bytes: Positive = MIB
    """One text. Tokenising 1 MiB takes over half a second, whatever is cut off afterwards."""

    output: str = ""
    """The model's output to read; "" finds it by its name and rank."""

    pooling: Pooling = "mean"
    """How states of tokens become one embedding, where the model itself does not pool."""

    normalize: bool = False
    """Embeddings are scaled to length 1."""

    labels: tuple[str, ...] = ()
    """Names of the classes in the model's order; without them LABEL_0, LABEL_1 ..."""

    function: Function = "softmax"
    """How logits become probabilities; ``none`` for a model that outputs them."""


def read_options(options: Mapping[str, Any]) -> TextOptions:
    """Checks names and values.

    Raises:
        ConfigError: an option is unknown, or its value is not one it takes.
    """
    try:
        read = msgspec.convert(options, TextOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"task_options of a text model: {error}",
            hint=f"known options: {', '.join(TextOptions.__struct_fields__)}",
        ) from None
    limit = read.position_limit
    if limit is not None and limit < read.max_tokens:
        read = msgspec.structs.replace(read, max_tokens=limit)
    return read
