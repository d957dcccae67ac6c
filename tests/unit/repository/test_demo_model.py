from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from headrace.repository.demo_corpus import load_corpus
from headrace.repository.demo_model import DIMENSIONS, DemoModel, train_fallback_text_model
from tests.unit.repository.onnx_trial import execute


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DemoModel:
    out = tmp_path_factory.mktemp("models") / "sentences"
    return train_fallback_text_model(out, execute=execute)


def embed(model: DemoModel, *texts: str) -> np.ndarray:
    data = np.array([text.encode() for text in texts], dtype=object)
    return execute(model.path / "1" / "model.onnx", {"text": data})[0]


def test_the_corpus_is_what_it_says_of_itself() -> None:
    corpus = load_corpus()
    assert Counter(s.topic for s in corpus.sentences) == dict.fromkeys(corpus.topics, 25)
    assert len(corpus.topics) == 12
    assert len({s.text for s in corpus.sentences}) == len(corpus.sentences)
    lengths = [len(s.text.split()) for s in corpus.sentences]
    assert (min(lengths), max(lengths)) == (4, 40)
    assert len(corpus.queries) == 10
    assert {query.topic for query in corpus.queries} <= set(corpus.topics)
    assert not {q.text for q in corpus.queries} & {s.text for s in corpus.sentences}


def test_queries_find_sentences_of_their_topic(trained: DemoModel) -> None:
    assert trained.queries == 10
    assert trained.queries_right >= 9


def test_a_query_in_other_words_finds_its_topic(trained: DemoModel) -> None:
    corpus = load_corpus()
    sentences = embed(trained, *[s.text for s in corpus.sentences])
    for query, topic in [
        ("planetary orbits", "astronomy"),
        ("THE GUITARIST AND HIS BAND", "music"),
        ("whisk butter, flour & sugar", "cooking"),
        ("the goalkeepers' training", "sport"),
    ]:
        best = int((embed(trained, query) @ sentences.T).argmax())
        assert corpus.sentences[best].topic == topic, query


def test_embeddings_have_unit_length_and_unknown_words_none(trained: DemoModel) -> None:
    known, unknown, empty = embed(trained, "The moon orbits the Earth.", "zxqv wvvk", "")
    assert known.shape == (DIMENSIONS,)
    assert np.linalg.norm(known) == pytest.approx(1, abs=1e-5)
    assert not unknown.any()
    assert not empty.any()


def test_a_row_does_not_depend_on_the_company_it_keeps(trained: DemoModel) -> None:
    long = " ".join(s.text for s in load_corpus().sentences[:30])
    together = embed(trained, "Heavy rain tonight", long, "")
    np.testing.assert_allclose(embed(trained, "Heavy rain tonight"), together[:1], atol=1e-6)
    np.testing.assert_allclose(embed(trained, long), together[1:2], atol=1e-6)


def test_it_needs_numpy_and_a_runtime_and_nothing_else(tmp_path: Path) -> None:
    """The base install has no onnx, no tokenizers and no scikit-learn."""
    script = (
        "import sys\n"
        "for name in ('onnx', 'tokenizers', 'sklearn', 'scipy', 'PIL'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from headrace.cli.graph_trial import execute\n"
        "from headrace.repository.demo_model import train_fallback_text_model\n"
        f"made = train_fallback_text_model(Path({str(tmp_path / 'm')!r}), execute=execute)\n"
        "print(made.queries_right)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ran.stdout) >= 9
