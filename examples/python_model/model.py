"""How easy a text is to read: the Flesch reading ease of each text in a batch.

The formula is from R. Flesch, "A new readability yardstick", Journal of Applied Psychology
32 (1948): 206.835 - 1.015 * words per sentence - 84.6 * syllables per word. Syllables are
counted as groups of vowels, without a silent "e" at the end of a word.

The type hints are the whole interface: one input ``text`` (BYTES), three outputs named by
the fields of ``Reading``. Nothing of headrace is imported.
"""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

import numpy as np

LEVELS = {90: "very easy", 80: "easy", 70: "fairly easy", 60: "plain", 50: "fairly difficult",
          30: "difficult"}  # fmt: skip
"""Lowest score -> Flesch's name for it; below all of them a text is "very difficult"."""


class Reading(NamedTuple):
    """What is told about each text."""

    score: Annotated[np.ndarray, "FP32[N]"]
    words: Annotated[np.ndarray, "INT64[N]"]
    level: list[str]


class ReadingEase:
    """The model. ``load`` would be the place to read weights from beside this file."""

    def load(self) -> None:
        self.word = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
        self.sentence_end = re.compile(r"[.!?]+(?=\s|$)")
        self.vowels = re.compile(r"[aeiouy]+")

    def predict(self, text: list[str]) -> Reading:
        counts = np.array([self.count(one) for one in text]).reshape(-1, 3)
        words, sentences, syllables = counts.T
        some = np.maximum(words, 1)
        score = 206.835 - 1.015 * words / np.maximum(sentences, 1) - 84.6 * syllables / some
        return Reading(score.round(1), words, [level_of(one) for one in score])

    def count(self, text: str) -> tuple[int, int, int]:
        words = self.word.findall(text.lower())
        return len(words), len(self.sentence_end.findall(text)), sum(map(self.syllables, words))

    def syllables(self, word: str) -> int:
        groups = len(self.vowels.findall(word))
        silent = word.endswith("e") and not word.endswith("le") and groups > 1
        return max(1, groups - silent)


def level_of(score: float) -> str:
    return next((name for lowest, name in LEVELS.items() if score >= lowest), "very difficult")
