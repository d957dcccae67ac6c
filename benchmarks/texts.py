"""Seeded texts whose lengths in tokens are as uneven as those that people send.

Lengths are log-normal: ``round(exp(N(2.85, 0.85)))``, clipped to 4..128 tokens, the two
special tokens included. Median 17, mean 23, one in ten above 48, one in a hundred above
110: a batch that is padded to its longest is mostly padding.
"""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from headrace.client.text import make_text

MEAN_LOG, SIGMA_LOG = 2.85, 0.85
MIN_TOKENS, MAX_TOKENS = 4, 128
_SPECIAL_TOKENS = 2
"""[CLS] and [SEP]."""


def draw_lengths(rng: np.random.Generator, count: int, most: int = MAX_TOKENS) -> list[int]:
    """``count`` lengths in tokens."""
    drawn = np.rint(rng.lognormal(MEAN_LOG, SIGMA_LOG, count))
    return [int(length) for length in np.clip(drawn, MIN_TOKENS, min(most, MAX_TOKENS))]


def make_texts(tokenizer: Tokenizer, count: int, seed: int, most: int = MAX_TOKENS) -> list[str]:
    """``count`` English-looking texts, each cut where its tokens are as many as was drawn."""
    rng = np.random.default_rng(seed)
    texts = []
    for wanted in draw_lengths(rng, count, most):
        text = make_text(rng, wanted)  # a word is a token or more
        encoding = tokenizer.encode(text, add_special_tokens=False)
        texts.append(text[: encoding.offsets[wanted - _SPECIAL_TOKENS - 1][1]])
    return texts
