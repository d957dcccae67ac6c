"""Requests that are small on the wire and large in memory: refused before objects are made."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headrace import protos
from headrace.config import ModelConfig
from headrace.engine.engine import Engine
from headrace.engine.served import Profile, ServedModel
from headrace.errors import HeadraceError, PayloadTooLarge
from headrace.frontends import answer_size
from headrace.frontends.codecs import json_guard, proto_guard
from headrace.frontends.codecs.v2_proto import RequestDecoder, ResponseEncoder, varint
from headrace.frontends.decompress import decompress
from headrace.frontends.exchange import Exchange
from headrace.frontends.generate import GenerateRoute
from headrace.frontends.grpc.service import bounded
from headrace.frontends.refusals import COMPRESSED_TOO_MUCH
from headrace.frontends.router import Router
from headrace.frontends.slices import Slices, finished
from headrace.frontends.status import v2_error_body
from headrace.frontends.v1_predict import PredictRoute
from headrace.frontends.v2_infer import InferRoute
from headrace.limits import HttpLimits
from headrace.testing.fakes import FakeModel
from headrace.types import (
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    RequestedOutput,
    Tensor,
    TensorSpec,
)
from tests.unit.frontends.lane_bench import Bench, post

Request = protos.message("inference.ModelInferRequest")


def field(number: int, *values: bytes) -> bytes:
    return b"".join(varint(number << 3 | 2) + varint(len(value)) + value for value in values)


TENSOR = field(1, b"x") + field(2, b"BYTES")


# -- protobuf -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (field(5, TENSOR + field(3, b"\1" * 500_000)), "wrong_shape"),
        (field(5, TENSOR + b"\x18\1" * 250_000), "wrong_shape"),
        (field(5, TENSOR + field(3, *[b"\1"] * 100_000)), "wrong_shape"),
        (field(5, *[b""] * 100_000), "request_too_complex"),
        (field(6, *[b""] * 100_000), "request_too_complex"),
        (field(7, *[b""] * 100_000), "request_too_complex"),
        (field(4, *[b""] * 100_000), "request_too_complex"),
        (field(99, *[b""] * 300_000), "request_too_complex"),
        (field(5, TENSOR + field(4, *[b""] * 100_000)), "request_too_complex"),
        (field(6, field(1, b"y") + field(2, *[b""] * 100_000)), "request_too_complex"),
        (field(5, field(1, b"x" * 100_000)), "request_too_complex"),
        (field(5, TENSOR + field(5, field(8, *[b""] * 110_000))), "too_many_strings"),
        (field(5, TENSOR + field(5, field(3, b"\0" * 1_100_000))), "too_many_values"),
        (field(5, *[TENSOR + field(5, field(2, b"\0" * 9_000))] * 150), "too_many_values"),
        (b"\x0b" * 100_000, "malformed_protobuf"),
        (b"\xff" * 100_000, "malformed_protobuf"),
    ],
)
def test_a_message_is_held_against_the_limits_as_bytes(message: bytes, code: str) -> None:
    decoder = RequestDecoder()
    tracemalloc.start()
    try:
        with pytest.raises(HeadraceError) as caught:
            decoder.decode(message)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == code
    assert peak < 3_000_000
    assert len(v2_error_body(caught.value)) < 1000


def test_a_large_message_within_the_limits_is_read() -> None:
    message = Request(model_name="m")
    shape = [2, 50_000]
    message.inputs.add(name="x", datatype="INT64", shape=shape)
    message.inputs[0].contents.int64_contents.extend(range(100_000))
    message.inputs[0].parameters["a"].bool_param = True
    message.outputs.add(name="y")
    request = RequestDecoder().decode(message.SerializeToString())
    assert request.inputs[0].data.ravel().tolist() == list(range(100_000))


def test_a_message_that_is_small_has_the_same_limits() -> None:
    limits = HttpLimits(max_inputs=2, max_outputs=2, max_parameters=2)
    for fields in (5, 6, 4):
        entries = [field(1, name) for name in (b"a", b"b", b"c")]
        with pytest.raises(PayloadTooLarge):
            RequestDecoder(limits).decode(field(fields, *entries))


def test_control_messages_are_small_but_for_files() -> None:
    taken: list[int] = []
    call: Any = None
    with pytest.raises(PayloadTooLarge):
        bounded(lambda _, m: taken.append(len(m)), loads=False)(call, b"\x1a\0" * 50_000)
    with pytest.raises(PayloadTooLarge):
        bounded(lambda _, m: taken.append(len(m)), loads=True)(call, b"\x1a\0" * 50_000)
    bounded(lambda _, m: taken.append(len(m)), loads=True)(call, field(3, b"\0" * 100_000))
    assert taken == [100_004]


def test_a_group_is_no_way_around() -> None:
    with pytest.raises(HeadraceError):
        proto_guard.check_fields(b"\x0b\x0c" * 3, 10)


# -- JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b'{"a":"[,{\\"[,\\\\","b":[1,2]}', 4),
        (b"[[],[],[]]", 6),
        (b'["' + b"\\\\" * 40_000 + b'",1]', 2),
        (b'["' + b"a" * 65_533 + b'\\"[[[[",1]', 2),
        (b'["' + b"[" * 70_000 + b'",[]]', 3),
    ],
)
def test_values_are_counted_outside_texts(body: bytes, values: int) -> None:
    finished(json_guard.check_values(body, values))
    with pytest.raises(PayloadTooLarge):
        finished(json_guard.check_values(body, values - 1))


# -- compression --------------------------------------------------------------------------------


def test_the_ratio_of_a_compressed_body_is_bounded() -> None:
    bomb = gzip.compress(bytes(4_000_000))
    assert decompress(bomb, b"gzip", 10_000_000, 200) is COMPRESSED_TOO_MUCH
    assert decompress(bomb, b"gzip", 10_000_000, 2000) == bytes(4_000_000)
    small = gzip.compress(bytes(1_000_000))
    assert decompress(small, b"gzip", 10_000_000, 1) == bytes(1_000_000)
    numbers = np.random.default_rng(1).integers(0, 3, 2_000_000).astype(np.int8).tobytes()
    assert decompress(gzip.compress(numbers, 1), b"gzip", 10_000_000, 20) == numbers


# -- answers ------------------------------------------------------------------------------------


def served(outputs: tuple[TensorSpec, ...], *, batchable: bool = True) -> ServedModel:
    model = FakeModel(outputs=outputs)
    found = ServedModel(
        metadata=ModelMetadata("m", ("1",), "fake", model.inputs, model.outputs),
        version="1",
        loaded=model,
        task=None,
        runtime="fake",
        config=ModelConfig(),
    )
    found.batchable = batchable
    return found


WIDE = (TensorSpec("y", "FP32", (-1, 1000)), TensorSpec("z", "INT64", (-1, 500)))


@pytest.mark.parametrize(
    ("rows", "outputs", "parameters", "fits"),
    [
        (10, None, None, False),
        (4, None, None, True),
        (10, [RequestedOutput("z")], None, True),
        (10, [RequestedOutput("y")], None, False),
        (10, [RequestedOutput("y", True)], None, True),
        (10, [RequestedOutput("y", None, 5)], None, True),
        (11, None, {"binary_data_output": True}, True),
        (20, None, {"binary_data_output": True}, False),
    ],
)
def test_the_size_of_an_answer_is_predicted(
    rows: int, outputs: list[RequestedOutput] | None, parameters: Any, fits: bool
) -> None:
    sent = [Tensor("x", "FP32", (rows, 4), np.zeros((rows, 4), np.float32))]
    request = InferenceRequest("m", sent, outputs=outputs, parameters=parameters)
    limits = HttpLimits(max_answer_bytes=100_000, max_values=10_000)
    answer_size.check_bytes(request, served(WIDE, batchable=False), limits)
    if fits:
        answer_size.check_bytes(request, served(WIDE), limits)
    else:
        with pytest.raises(PayloadTooLarge):
            answer_size.check_bytes(request, served(WIDE), limits)
    if rows > 6:
        with pytest.raises(PayloadTooLarge):
            answer_size.check_values(request, served(WIDE), limits)


def test_a_grpc_answer_is_bounded() -> None:
    tensor = Tensor("y", "FP32", (1000,), np.zeros(1000, np.float32))
    encoder = ResponseEncoder(3999)
    with pytest.raises(PayloadTooLarge):
        encoder.encode(InferenceResponse("m", "1", "", [tensor]), InferenceRequest("m", []))


# -- one event loop for large and small -----------------------------------------------------------


async def test_slices_take_turns_and_can_be_cancelled() -> None:
    order: list[str] = []

    def steps(name: str, count: int) -> Iterator[None]:
        for _ in range(count):
            order.append(name)
            yield
        if name == "c":
            raise ValueError(name)

    slices = Slices()
    ended: list[object] = []
    for name in "abc":
        slices.run(steps(name, 2), ended.append, ended.append)  # type: ignore[arg-type]
    cancel = slices.run(steps("d", 9), ended.append, ended.append)  # type: ignore[arg-type]
    while len(ended) < 3:
        await asyncio.sleep(0)
        if order.count("d") == 1:
            cancel()
    assert "".join(order) == "abcdabc"
    assert [str(each) for each in ended] == ["None", "None", "c"]


def body(rows: int) -> bytes:
    row = b"[1.5,2.5,3.5,4.5]"
    data = b",".join([row] * rows)
    return b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [%d, 4], "data": [%b]}]}' % (
        rows,
        data,
    )


async def test_small_requests_are_answered_while_large_ones_are_parsed_and_encoded() -> None:
    engine = Engine(instances=1, preprocess_threads=1)
    engine.add_model(
        served((TensorSpec("y", "FP32", (-1, 4)),)),
        Profile(max_rows=100_000, inline_rows=100_000, batchable=True),
    )
    route = InferRoute(engine)
    lane = Bench(loop=asyncio.get_running_loop())
    lane.reply = lambda exchange: route.handle(exchange, "m", "")
    large, small = lane.connect(), lane.connect()
    large.send(post(body(20_000)))
    beside = 0
    while not lane.exchanges[0].finished:
        small.send(post(body(1)))
        for _ in range(3):
            await asyncio.sleep(0)
        beside += len(small.answers())
    lane.lane.abort()
    engine.close()
    answer = large.answer()
    data = json.loads(answer.body)["outputs"][0]["data"]
    assert (answer.status, data) == (200, [3.0, 5.0, 7.0, 9.0] * 20_000)
    assert beside > 20


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/embeddings",
        b"/v1/models/m:predict",
        b"/v2/models/m/generate",
        b"/v2/models/m/generate_stream",
        b"/v2/repository/models/m/load",
        b"/v2/logging",
    ],
)
async def test_every_route_has_its_values_counted(target: bytes) -> None:
    class Route:
        def handle(self, exchange: Exchange, *_: object) -> None:
            exchange.respond_json(b"{}")

    class Generate(Route):
        match = staticmethod(GenerateRoute.match)

    class Predict(Route):
        match = staticmethod(PredictRoute.match)

    infer = SimpleNamespace(match=InferRoute.match)
    route: Any = Route()
    router = Router(infer, route, Predict(), Generate(), route, max_values=70_000)  # type: ignore[arg-type]
    client = Bench({}, router.handle, asyncio.get_running_loop()).connect()
    found = []
    for sent in (b"[" + b"[]," * 70_000 + b"1]", b'["' + b"[" * 80_000 + b'"]'):
        client.send(post(sent, target=target))
        while not (answers := client.answers()):  # noqa: ASYNC110 - turns are counted
            await asyncio.sleep(0)
        found += answers
    assert [answer.status for answer in found] == [413, 200]
    assert b"too_many_values" in found[0].body
    client.bench.lane.abort()
