"""Texts that mean the same: marked, scoped, measured, and never in the way."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.config import CacheConfig
from headrace.engine.engine import Engine
from headrace.engine.semantic_cache import Neighbours
from headrace.testing.fakes import FakeModel
from headrace.types import InferenceResponse, TensorSpec

from .assembled import ask, assemble, publish, tensor
from .conftest import Watcher

TEXT = TensorSpec("text", "BYTES", (-1, 1))


class Told(Watcher):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def semantic_cache_asked(self, model, how) -> None:
        assert model == "m"
        self.said.append(how)


def embed(texts):
    """As many axes as letters: what has the same letters means the same."""
    rows = []
    for (text,) in texts:
        counts = np.zeros(26, np.float32)
        for letter in text.decode().lower():
            if letter.isalpha():
                counts[ord(letter) - 97] += 1
        rows.append(counts)
    return [np.array(rows, np.float32)]


class Bench:
    def __init__(self, **cache) -> None:
        self.told = Told()
        self.engine = Engine(
            instances=1, preprocess_threads=1, response_cache_bytes=10**6, instrument=self.told
        )
        embedder = FakeModel(
            embed, inputs=(TEXT,), outputs=(TensorSpec("embedding", "FP32", (-1, 26)),)
        )
        self.embedder = publish(self.engine, assemble(embedder, name="embedder"))
        self.answer = b"positive"
        self.model = FakeModel(
            lambda texts: [np.array([[self.answer]] * len(texts), dtype=object)],
            inputs=(TEXT,),
            outputs=(TensorSpec("label", "BYTES", (-1, 1)),),
        )
        settings = {"semantic_model": "embedder", "semantic_threshold": 0.95, "semantic_verify": 0}
        config = CacheConfig(**settings | cache)
        publish(self.engine, assemble(self.model, response_cache=True, cache=config))

    async def infer(self, text: str, **fields) -> InferenceResponse:
        return await self.engine.infer(ask(tensor("text", [[text.encode()]], "BYTES"), **fields))


@pytest.fixture
def make():
    made: list[Bench] = []

    def one(**cache):
        made.append(Bench(**cache))
        return made[-1]

    yield one
    for bench in made:
        bench.engine.close()


async def test_what_means_the_same_has_the_same_answer_and_says_why(make):
    bench = make()
    first = await bench.infer("good film")
    second = await bench.infer("Film, good!")

    assert first.parameters is None
    assert second.parameters == {"headrace_cache": "semantic", "headrace_similarity": 1.0}
    assert second.outputs[0].data.tolist() == [[b"positive"]]
    assert len(bench.model.calls) == 1
    assert bench.told.said == ["miss", "hit"]


async def test_what_means_something_else_is_asked(make):
    bench = make()
    await bench.infer("good film")
    await bench.infer("xyz")

    assert len(bench.model.calls) == 2
    assert bench.told.said == ["miss", "miss"]


@pytest.mark.parametrize(
    "other", [{"tenant": "b"}, {"parameters": {"style": "short"}}, {"outputs": ["label"]}]
)
async def test_tenants_parameters_and_outputs_are_apart(make, other):
    bench = make()
    await bench.infer("good film", tenant=other.get("tenant", "") and "a")
    await bench.infer("film good", **other)

    assert bench.told.said == ["miss", "miss"]


async def test_a_part_of_the_hits_is_run_and_the_false_ones_are_counted(make):
    bench = make(semantic_verify=0.5)
    await bench.infer("good film")
    for text in ("film good", "mlif doog", "ogod ilfm"):
        await bench.infer(text)
    bench.answer = b"negative"
    answer = await bench.infer("odog fmil")

    assert bench.told.said == ["miss", "hit", "hit", "verified", "hit", "hit", "false"]
    assert answer.outputs[0].data.tolist() == [[b"negative"]], "who is verified gets the truth"


async def test_without_the_embedder_the_model_is_asked(make, caplog):
    bench = make()
    bench.engine.remove_model(bench.embedder)
    for text in ("good film", "film good"):
        assert (await bench.infer(text)).outputs[0].data.tolist() == [[b"positive"]]

    assert len(bench.model.calls) == 2
    assert caplog.text.count("no semantic cache while 'embedder'") == 1


async def test_several_texts_in_one_request_are_not_looked_up(make):
    bench = make()
    await bench.engine.infer(ask(tensor("text", [[b"a"], [b"b"]], "BYTES")))

    assert bench.told.said == []


async def test_with_many_kept_the_search_leaves_the_loop_alone(make):
    bench = make(semantic_threshold=1.0)
    rng = np.random.default_rng(0)
    texts = ["".join(chr(97 + n) for n in rng.integers(0, 26, 12)) for _ in range(400)]
    for text in texts:
        await bench.infer(text)
    found = await bench.infer(texts[7][::-1])

    assert found.parameters is not None
    assert found.parameters["headrace_cache"] == "semantic"
    assert await bench.engine.drain(10)


def test_the_oldest_neighbour_goes_first():
    neighbours = Neighbours(3)
    for axis in range(5):
        vector = np.zeros(8, np.float32)
        vector[axis] = 1.0
        neighbours.add(vector, "s", InferenceResponse("m", "1", str(axis), []))

    assert len(neighbours) == 3
    for axis in range(5):
        vector = np.zeros(8, np.float32)
        vector[axis] = 1.0
        cosine, response = neighbours.nearest(vector, "s")
        assert (cosine == 1.0) == (axis >= 2)
        if axis >= 2:
            assert response is not None
            assert response.id == str(axis)
    assert neighbours.nearest(vector, "other") == (0.0, None)
