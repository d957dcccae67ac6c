"""The description is true: its paths are the routes, its examples are accepted."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import settings
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from headrace.errors import InvalidRequest
from headrace.frontends.codecs import openai, v2_json
from headrace.frontends.examples import infer_example, is_complete
from headrace.frontends.openapi import DescribedModel, build_openapi
from headrace.frontends.rest import create_app
from headrace.testing.control import FakeControl
from headrace.testing.engine_view import FakeEngineView
from headrace.types import DTYPE_OF, ModelMetadata, ModelVersionStatus, TensorSpec

ODD = "<b>&\"'</script>"


def a_model(name: str, *inputs: TensorSpec) -> ModelMetadata:
    return ModelMetadata(name, ("1",), "null", inputs, (TensorSpec("y", "FP32", (-1,)),))


MODELS = {
    "mlp": a_model("mlp", TensorSpec("x", "FP32", (-1, 4)), TensorSpec("o", "BOOL", (2,), True)),
    "picture": a_model("picture", TensorSpec("pixels", "FP32", (-1, 3, 224, 224))),
    "minilm": a_model("minilm", TensorSpec("text", "BYTES", (-1,))),
    ODD: a_model(ODD, TensorSpec(ODD, "INT64", (-1, -1))),
}


def an_app() -> Starlette:
    async def metrics() -> bytes:
        return b"x 1\n"

    return create_app(
        FakeEngineView(MODELS, kinds={"minilm": "text-embedding"}, loading={"slow": ODD}),
        version="1.2.3",
        metrics=metrics,
        is_live=lambda: True,
        is_ready=lambda: True,
        control=FakeControl(),
    )


def a_document() -> dict[str, Any]:
    described = [
        DescribedModel(model, "text-embedding" if name == "minilm" else "tensor")
        for name, model in MODELS.items()
    ]
    return build_openapi(described, version="1.2.3", control=True)


def test_the_paths_and_methods_are_the_routes() -> None:
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in an_app().routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD" and not route.path.startswith("/v2/cudasharedmemory/")
    }
    described = {
        (path, method)
        for path, item in a_document()["paths"].items()
        for method in ("get", "post", "put", "delete")
        if method in item
    }
    assert described == routes - {("/v2/", "get")}


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    text = json.dumps(a_document())
    schemas = a_document()["components"]["schemas"]
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) == set(schemas)
    for schema in schemas.values():
        jsonschema_rs.meta.validate(schema)


def test_operations_have_names_of_their_own() -> None:
    ids = re.findall(r'"operationId": "(\w+)"', json.dumps(a_document()))
    assert len(ids) == len(set(ids)) > 15


def matches(schema: str, value: object) -> bool:
    components = a_document()["components"]
    return jsonschema_rs.is_valid(
        {"$ref": f"#/components/schemas/{schema}", "components": components}, value
    )


@pytest.mark.parametrize("datatype", DTYPE_OF)
@pytest.mark.parametrize("shape", [(), (-1,), (-1, 3), (2, -1, 2)])
def test_examples_of_every_datatype_are_accepted(datatype: str, shape: tuple[int, ...]) -> None:
    example = infer_example(a_model("m", TensorSpec("x", datatype, shape)))
    assert is_complete(example)
    assert matches("InferRequest", example)
    request = v2_json.decode_request(json.dumps(example).encode(), model_name="m", model_version="")
    (tensor,) = request.inputs
    assert tensor.datatype == datatype
    assert tensor.shape == tuple(1 if size == -1 else size for size in shape)


def test_optional_inputs_are_left_out_of_examples() -> None:
    assert [tensor["name"] for tensor in infer_example(MODELS["mlp"])["inputs"]] == ["x"]


def test_the_example_of_an_image_model_is_a_picture() -> None:
    spec = TensorSpec("image", "BYTES", (-1,))
    example = infer_example(a_model("m", spec), "image-classification")
    picture = base64.b64decode(example["inputs"][0]["data"][0])
    with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
        image.load()
        assert image.size == (16, 16)
        assert image.getextrema() == (0, 255)


def test_a_large_example_is_only_for_the_form() -> None:
    assert not is_complete(infer_example(MODELS["picture"]))
    infer = a_document()["paths"]["/v2/models/{model}/infer"]["post"]
    examples = infer["requestBody"]["content"]["application/json"]["examples"]
    assert set(examples) == {"mlp", "minilm", ODD}


def test_the_embeddings_example_is_accepted() -> None:
    embeddings = a_document()["paths"]["/v1/embeddings"]["post"]
    examples = embeddings["requestBody"]["content"]["application/json"]["examples"]
    assert set(examples) == {"minilm"}
    value = examples["minilm"]["value"]
    assert matches("EmbeddingsRequest", value)
    assert openai.decode_embeddings(json.dumps(value).encode()).model == "minilm"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": "m"},
        {"model": "", "input": "a"},
        {"model": "m", "input": ""},
        {"model": "m", "input": []},
        {"model": "m", "input": ["a", ""]},
        {"model": "m", "input": [1, 2]},
        {"model": "m", "input": "a", "encoding_format": "hex"},
        {"model": "m", "input": "a", "dimensions": 0},
        {"model": "m", "input": "a", "unknown": 1},
        {"model": "m", "input": "a", "encoding_format": None, "dimensions": None, "user": None},
        {"model": "m", "input": ["a", "b"], "encoding_format": "base64"},
    ],
)
def test_schema_and_codec_agree_about_embeddings(body: dict[str, Any]) -> None:
    try:
        openai.decode_embeddings(json.dumps(body).encode())
    except InvalidRequest:
        accepted = False
    else:
        accepted = True
    assert matches("EmbeddingsRequest", body) is accepted


def an_embedder(dimensions: int) -> DescribedModel:
    inputs = (TensorSpec("text", "BYTES", (-1,)),)
    outputs = (TensorSpec("embedding", "FP32", (-1, dimensions)),)
    metadata = ModelMetadata(f"m{dimensions}", ("1",), "null", inputs, outputs)
    return DescribedModel(metadata, "text-embedding")


@pytest.mark.parametrize(
    ("sizes", "accepted", "refused"),
    [
        ((), [1, 384, None], [0]),
        ((384,), [384, None], [0, 1, 768]),
        ((384, 768), [384, 768, None], [0, 1]),
        ((384, -1), [1, 384, None], [0]),  # one model does not say
    ],
)
def test_the_dimensions_described_are_those_of_the_models(
    sizes: tuple[int, ...], accepted: list[int | None], refused: list[int]
) -> None:
    document = build_openapi([an_embedder(size) for size in sizes], version="1")
    request = document["components"]["schemas"]["EmbeddingsRequest"]

    def is_valid(dimensions: int | None) -> bool:
        body = {"model": "m", "input": "a", "dimensions": dimensions}
        return jsonschema_rs.is_valid(request, body)

    assert all(map(is_valid, accepted))
    assert not any(map(is_valid, refused))


class Page(HTMLParser):
    """Elements, texts and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "input"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "action"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(params=["/", "/docs"])
def page(request: pytest.FixtureRequest) -> Page:
    response = TestClient(an_app()).get(request.param)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return Page(response.text)


def test_pages_are_well_formed_and_fetch_nothing_from_elsewhere(page: Page) -> None:
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    for address in page.addresses:
        assert address.startswith(("/", "#", "data:"))
        assert not address.startswith("//")


def test_names_are_text_and_never_markup(page: Page) -> None:
    assert any(ODD in text for text in page.texts)
    assert "b" not in page.open


def test_the_policy_allows_our_script_and_no_other() -> None:
    response = TestClient(an_app()).get("/docs")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "script-src 'sha256-" in policy


def test_the_form_gets_an_example_for_every_model() -> None:
    text = TestClient(an_app()).get("/docs").text
    data = re.search(
        r'<script type="application/json" id="examples">(.*?)</script>', text, re.DOTALL
    )
    assert data is not None
    examples = json.loads(data[1])
    assert {example["path"] for example in examples} == {
        "/v1/embeddings",
        "/v2/models/mlp/infer",
        "/v2/models/minilm/infer",
        "/v2/models/picture/infer",
        "/v2/models/%3Cb%3E%26%22%27%3C%2Fscript%3E/infer",
    }


def test_a_server_without_models_has_pages_too() -> None:
    async def metrics() -> bytes:
        return b""

    app = create_app(
        FakeEngineView({}),
        version="1",
        metrics=metrics,
        is_live=lambda: True,
        is_ready=lambda: True,
    )
    client = TestClient(app)
    assert "no model here yet" in client.get("/").text
    assert "No model is ready" in client.get("/docs").text
    assert "examples" not in client.get("/openapi.json").json()["paths"]["/v1/embeddings"]["post"]


def test_states_of_models_are_shown_with_their_reason() -> None:
    view = FakeEngineView({})
    view.statuses = lambda: [  # type: ignore[method-assign]  # one state is enough here
        ModelVersionStatus("broken", "1", "UNAVAILABLE", "the file is empty")
    ]

    async def metrics() -> bytes:
        return b""

    app = create_app(
        view, version="1", metrics=metrics, is_live=lambda: True, is_ready=lambda: False
    )
    text = TestClient(app).get("/").text
    assert "UNAVAILABLE" in text
    assert "the file is empty" in text
    assert "not ready" in text


schema = schemathesis.openapi.from_asgi("/openapi.json", an_app()).exclude(
    # Answered by the fast lane, which this application is not.
    path_regex=r"/infer$|/generate$|/generate_stream$|/embeddings$|:predict$"
)


@schema.parametrize()
@settings(max_examples=25)
def test_answers_are_as_described(case: schemathesis.Case) -> None:
    case.call_and_validate()
