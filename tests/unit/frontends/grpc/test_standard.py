"""Health and reflection: every answer, whoever asks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from headrace import protos
from headrace.errors import InvalidRequest
from headrace.frontends.grpc import standard
from headrace.frontends.grpc.call import LongCalls, Methods
from headrace.frontends.grpc.standard import SERVICES, standard_methods
from tests.unit.frontends.grpc.bench import FakeCall

HealthRequest = protos.message("grpc.health.v1.HealthCheckRequest")
HealthResponse = protos.message("grpc.health.v1.HealthCheckResponse")

REFLECTIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


class Server:
    """Its readiness, and its methods."""

    def __init__(self) -> None:
        self.ready = True
        self.long_calls = LongCalls()
        self.methods: Methods = standard_methods(lambda: self.ready, self.long_calls)

    def start(self, name: str, service: str = "") -> FakeCall:
        call = FakeCall()
        method = self.methods[f"/grpc.health.v1.Health/{name}".encode()]
        assert method.unary is not None
        method.unary(call, HealthRequest(service=service).SerializeToString())
        return call


def statuses(call: FakeCall) -> list[int]:
    return [HealthResponse.FromString(message).status for message in call.sent]


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_check(service: str) -> None:
    server = Server()
    for ready, expected in ((True, SERVING), (False, NOT_SERVING)):
        server.ready = ready
        call = await server.start("Check", service).until_over()
        assert (call.code, statuses(call)) == (0, [expected])


async def test_check_of_an_unknown_service() -> None:
    call = await Server().start("Check", "nobody").until_over()
    assert call.code == 5
    assert "nobody" in call.text


async def test_watch_tells_every_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard, "_WATCH_S", 0.001)
    server = Server()
    call = server.start("Watch", SERVICES[0])
    assert statuses(call) == [SERVING]
    server.ready = False
    await call.until_sent(2)
    server.ready = True
    await call.until_sent(3)
    assert statuses(call) == [SERVING, NOT_SERVING, SERVING]
    call.leave()
    server.ready = False
    await asyncio.sleep(0.01)
    assert len(call.sent) == 3


async def test_watch_of_an_unknown_service_goes_on() -> None:
    server = Server()
    call = server.start("Watch", "nobody")
    assert statuses(call) == [SERVICE_UNKNOWN]
    assert not call.closed
    call.leave()


async def test_draining_tells_those_who_watch_and_ends_their_calls() -> None:
    server = Server()
    call = server.start("Watch")
    server.ready = False
    server.long_calls.drain()
    assert statuses(call) == [SERVING, NOT_SERVING]
    assert call.code == 14


async def test_health_requests_that_are_none() -> None:
    for name in ("Check", "Watch"):
        method = Server().methods[f"/grpc.health.v1.Health/{name}".encode()]
        assert method.unary is not None
        with pytest.raises(InvalidRequest, match="HealthCheckRequest"):
            method.unary(FakeCall(), b"\xff")


# -- reflection ---------------------------------------------------------------------------------


class Client:
    """Of server reflection, in one of its versions."""

    def __init__(self, package: str) -> None:
        self.server = Server()
        self.call = FakeCall()
        path = f"/{package}.ServerReflection/ServerReflectionInfo".encode()
        streaming = self.server.methods[path].streaming
        assert streaming is not None
        self.incoming = streaming(self.call)
        self.request = protos.message(f"{package}.ServerReflectionRequest")
        self.response = protos.message(f"{package}.ServerReflectionResponse")

    def ask(self, **what: Any) -> Any:
        self.incoming.message(self.request(host="h", **what).SerializeToString())
        answer = self.response.FromString(self.call.sent[-1])
        assert answer.valid_host == "h"
        assert answer.original_request == self.request(host="h", **what)
        return answer


@pytest.fixture(params=REFLECTIONS)
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param)


async def test_list_services(client: Client) -> None:
    told = client.ask(list_services="").list_services_response.service
    assert [service.name for service in told] == list(SERVICES)


@pytest.mark.parametrize(
    "symbol", [*SERVICES, "inference.ModelConfig", "inference.GRPCInferenceService.ModelInfer"]
)
async def test_a_client_can_build_what_it_was_told(client: Client, symbol: str) -> None:
    files = client.ask(file_containing_symbol=symbol).file_descriptor_response
    pool = DescriptorPool()
    for raw in reversed(files.file_descriptor_proto):
        pool.AddSerializedFile(raw)
    assert pool.FindFileContainingSymbol(symbol.removesuffix(".ModelInfer"))
    name = FileDescriptorProto.FromString(files.file_descriptor_proto[0]).name
    again = client.ask(file_by_filename=name).file_descriptor_response
    assert again == files


@pytest.mark.parametrize(
    "what",
    [
        {"file_by_filename": "nothing.proto"},
        {"file_containing_symbol": "no.thing"},
        {"file_containing_symbol": "inference.GRPCInferenceService.Nothing"},
        {"file_containing_symbol": ""},
        {"all_extension_numbers_of_type": "inference.ModelConfig"},
        {"file_containing_extension": {"containing_type": "a.B", "extension_number": 3}},
        {},
    ],
)
async def test_what_is_not_there_is_an_answer_and_the_stream_goes_on(
    client: Client, what: dict[str, Any]
) -> None:
    error = client.ask(**what).error_response
    assert error.error_code == 5
    assert error.error_message
    assert client.ask(list_services="").list_services_response.service


async def test_the_end_of_a_reflection_stream(client: Client) -> None:
    client.incoming.half_closed()
    assert client.call.code == 0


async def test_draining_ends_a_reflection_stream(client: Client) -> None:
    client.server.long_calls.drain()
    assert client.call.code == 14


async def test_a_reflection_request_that_is_none(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="ServerReflectionRequest"):
        client.incoming.message(b"\xff")
