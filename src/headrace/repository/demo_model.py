"""A real text model, trained on the spot in about a second, with numpy and nothing else.

For ``headrace demo`` where no registry can be reached. What it is: latent semantic
indexing (Deerwester et al. 1990, https://doi.org/10.1002/(SICI)1097-4571(199009)41:6)
beside a ridge regression onto the topics of the demo's own sentences and word lists. What
it is not: a language model. It knows the words of twelve topics; a text without one of
them is the zero vector.

The tokeniser is part of the graph, so the served model takes texts::

    text [-1] BYTES -> lower case -> words and word beginnings -> idf weights
                    -> two projections, each of unit length -> embedding [-1, 256] FP32

Training runs the very operators that will be served, so both see the same features.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import numpy as np

from headrace.repository.demo_corpus import Corpus, load_corpus
from headrace.repository.onnx_writer import Node, write_model
from headrace.repository.trial import Execute
from headrace.types import TensorSpec

DIMENSIONS = 256
"""Of the embedding: one for each topic, the rest for the words themselves."""

_WORD, _STEM = "[a-z0-9]+", r"\b[a-z]{4,5}"
"""A word, and its first five letters: a stemmer that fits in one line (garden, gardening)."""

_RIDGE = 0.3
"""Penalty of the regression; features have unit length, so 1 would halve a lone word."""

_FLOOR = {"tiny": np.array([1e-6], np.float32)}
"""Of every norm: a text without a known word becomes the zero vector instead of NaN."""

_TEXT = TensorSpec("text", "BYTES", (-1,))
_PADDING = "#"  # the tokeniser's own filler; never a token, so it is in no vocabulary
_OPSETS = {"": 17, "com.microsoft": 1}


class DemoModel(msgspec.Struct, frozen=True):
    """What was trained.

    ``path`` is the model's folder; ``queries_right`` of ``queries`` demo queries find a
    sentence of the expected topic first, as measured with the file that was written. That
    shows that it works, not how well it would do elsewhere: word lists and size were chosen
    with these sentences and queries in view.
    """

    path: Path
    dimensions: int
    features: int
    queries_right: int
    queries: int


def train_fallback_text_model(out: Path, *, execute: Execute) -> DemoModel:
    """Trains on the demo's own sentences and writes ``out/1/model.onnx``.

    The model takes ``text`` (BYTES [-1]) and gives ``embedding`` (FP32 [-1, 256], rows of
    unit length), so the cosine of two texts is a dot product.

    Args:
        out: the model's folder; made where it is not there.
        execute: runs a graph, in the runtime that will serve it.
    """
    corpus = load_corpus()
    texts, topics = _training_set(corpus)
    with tempfile.TemporaryDirectory() as scratch:
        trial = _Trial(execute, Path(scratch) / "features.onnx")
        branches = [_Branch("word", _WORD, texts, trial), _Branch("stem", _STEM, texts, trial)]
        width = sum(len(branch.vocabulary) for branch in branches)
        features = TensorSpec("features", "FP32", (-1, width))
        values = trial(_feature_nodes(branches), features, texts, _FLOOR)
    weights = _FLOOR | _train(values, topics, len(corpus.sentences))
    file = out / "1" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_model(
        file,
        [*_feature_nodes(branches), *_projection_nodes()],
        inputs=[_TEXT],
        outputs=[TensorSpec("embedding", "FP32", (-1, DIMENSIONS))],
        initializers=weights,
        opset=_OPSETS,
    )
    right = _queries_right(corpus, execute, file)
    return DemoModel(out, DIMENSIONS, width, right, len(corpus.queries))


class _Trial:
    """Runs some nodes on texts and gives their one output."""

    def __init__(self, execute: Execute, file: Path) -> None:
        self._execute = execute
        self._file = file

    def __call__(
        self,
        nodes: list[Node],
        output: TensorSpec,
        texts: list[str],
        weights: dict[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        write_model(
            self._file,
            nodes,
            inputs=[_TEXT],
            outputs=[output],
            initializers=weights,
            opset=_OPSETS,
        )
        return self._execute(self._file, {"text": _encoded(texts)})[0]


class _Branch:
    """One way to cut a text into tokens, and the tokens that occur in the training set."""

    def __init__(self, name: str, expression: str, texts: list[str], trial: _Trial) -> None:
        self.name = name
        self.expression = expression
        tokens = trial(self.tokenizer(), TensorSpec(name, "BYTES", (-1, -1)), texts)
        found, rows = np.unique(_distinct_per_row(tokens), return_counts=True)
        self.vocabulary = [str(token) for token in found]
        # Smoothed inverse document frequency: rare tokens say more.
        self.idf = np.log((1 + len(texts)) / (1 + rows)) + 1

    def tokenizer(self) -> list[Node]:
        """Lower case, then every match of the expression; rows are filled with padding."""
        return [
            # Locale "C": any other must be installed, and slim containers have none.
            Node(
                "StringNormalizer",
                ["text"],
                [f"{self.name}_lower"],
                {"case_change_action": "LOWER", "is_case_sensitive": 1, "locale": "C"},
            ),
            Node(
                "Tokenizer",
                [f"{self.name}_lower"],
                [self.name],
                {"mark": 0, "mincharnum": 1, "pad_value": _PADDING, "tokenexp": self.expression},
                domain="com.microsoft",
            ),
        ]

    def vectorizer(self) -> Node:
        """Tokens -> one column for each known token: its idf where it occurs, else 0."""
        return Node(
            "TfIdfVectorizer",
            [self.name],
            [f"{self.name}_idf"],
            {
                "mode": "IDF",
                "min_gram_length": 1,
                "max_gram_length": 1,
                "max_skip_count": 0,
                "ngram_counts": [0],
                "ngram_indexes": list(range(len(self.vocabulary))),
                "pool_strings": self.vocabulary,
                "weights": [float(weight) for weight in self.idf],
            },
        )


def _training_set(corpus: Corpus) -> tuple[list[str], np.ndarray]:
    """The sentences, then every word of the lists as a text of its own; topics as numbers."""
    pairs = [(s.text, s.topic) for s in corpus.sentences]
    pairs += [(word, topic) for topic, words in corpus.words.items() for word in words]
    topics = np.array([corpus.topics.index(topic) for _, topic in pairs])
    return [text for text, _ in pairs], topics


def _distinct_per_row(tokens: np.ndarray) -> list[str]:
    """Every token once for each text it occurs in."""
    return [token.decode() for row in tokens for token in set(row) - {_PADDING.encode(), b""}]


def _feature_nodes(branches: list[_Branch]) -> list[Node]:
    nodes = [node for b in branches for node in [*b.tokenizer(), b.vectorizer()]]
    return [
        *nodes,
        Node("Concat", [f"{b.name}_idf" for b in branches], ["raw"], {"axis": 1}),
        *_unit_length("raw", "features"),
    ]


def _projection_nodes() -> list[Node]:
    return [
        Node("MatMul", ["features", "topic_weights"], ["topic_raw"]),
        *_unit_length("topic_raw", "topic_part"),
        Node("MatMul", ["features", "word_weights"], ["word_raw"]),
        *_unit_length("word_raw", "word_part"),
        Node("Concat", ["topic_part", "word_part"], ["both"], {"axis": 1}),
        *_unit_length("both", "embedding"),
    ]


def _unit_length(source: str, target: str) -> list[Node]:
    return [
        Node("ReduceL2", [source], [f"{target}_norm"], {"axes": [1], "keepdims": 1}),
        Node("Max", [f"{target}_norm", "tiny"], [f"{target}_floor"]),
        Node("Div", [source, f"{target}_floor"], [target]),
    ]


def _train(features: np.ndarray, topics: np.ndarray, sentences: int) -> dict[str, np.ndarray]:
    """Both projections by linear algebra of the size of the training set, not the vocabulary.

    Ridge regression in its dual form: W = Xᵀ (X Xᵀ + λ I)⁻¹ T. Latent semantic indexing
    through the eigenvectors U of the sentences' own X Xᵀ = U S Uᵀ: V = Xᵀ U S^(-1/2).
    """
    x = features.astype(np.float64)
    classes = int(topics.max()) + 1
    targets = np.eye(classes)[topics] - 1 / classes
    gram = x @ x.T
    topic_weights = x.T @ np.linalg.solve(gram + _RIDGE * np.eye(len(x)), targets)
    values, vectors = np.linalg.eigh(gram[:sentences, :sentences])
    keep = slice(-(DIMENSIONS - classes), None)
    word_weights = x[:sentences].T @ (vectors[:, keep] / np.sqrt(values[keep]))
    return {
        "topic_weights": topic_weights.astype(np.float32),
        "word_weights": word_weights.astype(np.float32),
    }


def _queries_right(corpus: Corpus, execute: Execute, file: Path) -> int:
    every = [s.text for s in (*corpus.sentences, *corpus.queries)]
    vectors = execute(file, {"text": _encoded(every)})[0]
    split = len(corpus.sentences)
    nearest = (vectors[split:] @ vectors[:split].T).argmax(axis=1)
    found = [corpus.sentences[index].topic for index in nearest]
    return sum(query.topic == topic for query, topic in zip(corpus.queries, found, strict=True))


def _encoded(texts: list[str]) -> np.ndarray:
    array = np.empty(len(texts), dtype=object)
    array[:] = [text.encode() for text in texts]
    return array
