"""The demo's own sentences: three hundred of them about twelve topics, and ten queries.

They were written for headrace and carry its licence. Real enough to search in, varied in
length (4 to 40 words), so that batching by length has something to do.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec


class Sentence(msgspec.Struct, frozen=True):
    """One sentence and the topic it is about. For a query: the topic to be found."""

    topic: str
    text: str


class Corpus(msgspec.Struct, frozen=True):
    """All of ``demo_sentences.txt``. ``words``: topic -> words that belong to it."""

    sentences: tuple[Sentence, ...]
    queries: tuple[Sentence, ...]
    words: dict[str, tuple[str, ...]]

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics, in the order of the file."""
        return tuple(self.words)


@cache
def load_corpus() -> Corpus:
    """Reads the file that is part of the package; the same object every time."""
    sentences: list[Sentence] = []
    queries: list[Sentence] = []
    words: dict[str, tuple[str, ...]] = {}
    file = resources.files("headrace.repository") / "demo_sentences.txt"
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        topic, text = line.removeprefix("? ").removeprefix("= ").split(" | ", 1)
        if line.startswith("? "):
            queries.append(Sentence(topic, text))
        elif line.startswith("= "):
            words[topic] = tuple(dict.fromkeys(text.split()))
        else:
            sentences.append(Sentence(topic, text))
    return Corpus(tuple(sentences), tuple(queries), words)
