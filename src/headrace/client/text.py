"""Sentences that look like sentences, in lengths that look like traffic.

A tokeniser is slow on long words and fast on common ones, and a model with a length is slow
on long texts, so ``"aaaa"`` would measure something else. The words are common English, put
into the order of parts of speech that English has; what they say is nonsense.
"""

from __future__ import annotations

import numpy as np

from headrace.client.spec import Lengths

_WORDS: dict[str, tuple[str, ...]] = {
    "determiner": ("the", "a", "this", "every", "another", "one", "some", "our"),
    "adjective": (
        "new", "small", "quiet", "early", "strong", "narrow", "warm", "public", "open", "slow",
        "northern", "simple", "heavy", "local", "bright", "old", "careful", "recent", "distant",
        "electrical", "unexpected", "reliable", "seasonal", "independent",
    ),
    "noun": (
        "river", "city", "engine", "teacher", "question", "market", "winter", "bridge", "letter",
        "company", "garden", "doctor", "road", "measurement", "station", "library", "harvest",
        "computer", "village", "answer", "mountain", "ship", "customer", "window", "newspaper",
        "temperature", "government", "machine", "morning", "storm", "translation", "turbine",
    ),
    "verb": (
        "carries", "finds", "opens", "follows", "changes", "reaches", "describes", "needs",
        "remembers", "leaves", "improves", "crosses", "repairs", "explains", "sells", "returns",
        "supports", "delivers", "considers", "replaces",
    ),
    "preposition": ("in", "near", "after", "with", "without", "behind", "for", "under", "during"),
    "conjunction": ("and", "while", "because", "but", "although"),
}  # fmt: skip

_ORDER = (
    "determiner", "adjective", "noun", "verb", "determiner", "noun", "preposition", "determiner",
    "noun", "conjunction",
)  # fmt: skip

_SENTENCE_WORDS = 20
"""A text with more words than this becomes several sentences."""


def draw_lengths(random: np.random.Generator, lengths: Lengths, count: int) -> list[int]:
    """``count`` lengths between 1 and ``lengths.maximum``."""
    drawn = random.lognormal(np.log(lengths.median), lengths.sigma, count)
    return [int(value) for value in np.clip(np.rint(drawn), 1, lengths.maximum)]


def make_text(random: np.random.Generator, words: int) -> str:
    """A text of exactly ``words`` words; words are rarer the later they stand in their list."""
    ranks = random.random(words)
    text: list[str] = []
    for position in range(words):
        place = position % _SENTENCE_WORDS
        choices = _WORDS[_ORDER[place % len(_ORDER)]]
        # A squared uniform number prefers the head of the list, as language does (Zipf).
        word = choices[int(ranks[position] ** 2 * len(choices))]
        last = place == _SENTENCE_WORDS - 1 or position == words - 1
        text.append((word.capitalize() if place == 0 else word) + ("." if last else ""))
    return " ".join(text)
