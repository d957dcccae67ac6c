"""openai-python, unchanged, against a real server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import numpy as np
import openai
import pytest

from tests.conformance.frontends.serving_everything import serving_everything
from tests.integration.server_process import ServerProcess

TEXTS = ["w5 w6 w7", "w8", "w9 w10"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving_everything(tmp_path_factory.mktemp("openai")) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
        yield client


def test_models_that_embed_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["bert"]
    assert client.models.retrieve("bert").object == "model"


def test_embeddings_in_the_order_of_their_texts(client: openai.OpenAI) -> None:
    """The client asks for base64 by itself."""
    answer = client.embeddings.create(model="bert", input=TEXTS)
    assert answer.model == "bert"
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    alone = [client.embeddings.create(model="bert", input=text).data[0] for text in TEXTS]
    for one, other in zip(answer.data, alone, strict=True):
        np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 3 + 1 + 2 + 3 * 2


def test_floats_and_base64_are_the_same_numbers(client: openai.OpenAI) -> None:
    numbers = client.embeddings.create(model="bert", input="w5", encoding_format="float")
    packed = client.embeddings.create(model="bert", input="w5", encoding_format="base64")
    words = np.frombuffer(base64.b64decode(packed.data[0].embedding), dtype="<f4")
    assert words.tolist() == numbers.data[0].embedding


async def test_the_asyncio_client(server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any") as client:
        answers = await asyncio.gather(
            *(client.embeddings.create(model="bert", input=text) for text in TEXTS * 5)
        )
    assert all(len(answer.data[0].embedding) == 24 for answer in answers)


def test_mistakes_become_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="nobody", input="w5")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="does not embed"):
        client.embeddings.create(model="mlp", input="w5")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("mlp")
    with pytest.raises(openai.BadRequestError) as empty:
        client.embeddings.create(model="bert", input=[])
    assert empty.value.param == "input"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.embeddings.create(model="bert", input="w5", dimensions=7)
    assert wrong.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError, match="token"):
        client.embeddings.create(model="bert", input=[[1, 2, 3]])
