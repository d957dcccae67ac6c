"""The cold methods: messages to what is asked of the server, and its answers to messages."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import protos
from headrace.errors import InvalidRequest, ModelNotFound
from headrace.frontends.grpc.call import LateMethods, Method, Methods
from headrace.frontends.grpc.service import SERVICE, InferenceService
from headrace.frontends.peer import Peer
from headrace.testing.control import FakeControl
from headrace.testing.engine_view import FakeEngineView
from headrace.types import ModelMetadata, TensorSpec
from tests.unit.frontends.grpc.bench import Bench, FakeCall

METADATA = ModelMetadata(
    "m",
    ("1", "3"),
    "fake_platform",
    (TensorSpec("x", "FP32", (-1, 4)),),
    (TensorSpec("y", "BYTES", ()), TensorSpec("z", "INT8", (2,))),
)


class Answering(FakeControl):
    """A control whose answers a test can set."""

    def __init__(self) -> None:
        super().__init__()
        self.stats: dict[str, Any] = {"model_stats": []}
        self.settings: dict[str, Any] = {}
        self.regions: list[dict[str, Any]] = []

    async def statistics(self, model: str = "", version: str = "") -> dict[str, Any]:
        await super().statistics(model, version)
        return self.stats

    async def trace_setting(self, model: str = "", update: Any = None) -> dict[str, Any]:
        await super().trace_setting(model, update)
        return self.settings

    async def log_settings(self, update: Any = None) -> dict[str, Any]:
        await super().log_settings(update)
        return self.settings

    def shared_memory(self, peer: Peer, region: str = "") -> list[dict[str, Any]]:
        super().shared_memory(peer, region)
        return self.regions


@pytest.fixture
def control() -> Answering:
    return Answering()


@pytest.fixture
async def methods(control: Answering) -> Methods:
    bench = Bench()
    bench.engine.close()
    return InferenceService(
        bench.methods,
        FakeEngineView({"m": METADATA}),
        lambda: control,
        version="1.2",
        extensions=("a", "b"),
        is_ready=lambda: True,
    ).methods()


async def called(methods: Methods, method_name: str, /, **fields: Any) -> FakeCall:
    request = protos.message(f"inference.{method_name}Request")(**fields)
    call = FakeCall()
    method = methods[f"/{SERVICE}/{method_name}".encode()]
    assert method.unary is not None
    method.unary(call, request.SerializeToString())
    return await call.until_over()


async def ask(methods: Methods, method_name: str, /, **fields: Any) -> Any:
    call = await called(methods, method_name, **fields)
    assert call.code == 0, call.text
    (message,) = call.sent
    return protos.message(f"inference.{method_name}Response").FromString(message)


async def test_every_method_of_the_service_is_answered(methods: Methods) -> None:
    service = protos.pool().FindServiceByName(SERVICE)
    assert set(methods) == {f"/{SERVICE}/{method.name}".encode() for method in service.methods}


async def test_health_and_metadata(methods: Methods) -> None:
    assert (await ask(methods, "ServerLive")).live is True
    assert (await ask(methods, "ServerReady")).ready is True
    assert (await ask(methods, "ModelReady", name="m", version="3")).ready is True
    assert (await ask(methods, "ModelReady", name="m", version="2")).ready is False
    assert (await ask(methods, "ModelReady", name="n")).ready is False
    server = await ask(methods, "ServerMetadata")
    assert (server.name, server.version) == ("headrace", "1.2")
    assert list(server.extensions) == ["a", "b"]


async def test_model_metadata(methods: Methods) -> None:
    told = await ask(methods, "ModelMetadata", name="m")
    assert (told.name, list(told.versions), told.platform) == ("m", ["1", "3"], "fake_platform")
    assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [("x", "FP32", [-1, 4])]
    assert [(t.name, t.datatype, list(t.shape)) for t in told.outputs] == [
        ("y", "BYTES", []),
        ("z", "INT8", [2]),
    ]


async def test_model_configuration(methods: Methods) -> None:
    config = (await ask(methods, "ModelConfig", name="m")).config
    assert (config.name, config.platform, config.max_batch_size) == ("m", "fake_platform", 8)


@pytest.mark.parametrize("name", ["ModelReady", "ModelMetadata", "ModelConfig"])
async def test_a_request_must_name_its_model(methods: Methods, name: str) -> None:
    call = await called(methods, name)
    assert (call.code, call.text) == (3, "the request names no model")


@pytest.mark.parametrize("name", ["ModelMetadata", "ModelConfig"])
async def test_unknown_models(methods: Methods, name: str) -> None:
    call = await called(methods, name, name="n")
    assert (call.code, call.text) == (5, "Request for unknown model: 'n' is not found")


async def test_statistics(methods: Methods, control: Answering) -> None:
    duration = {"count": 3, "ns": 2**40}
    control.stats = {
        "model_stats": [
            {
                "name": "m",
                "version": "1",
                "inference_count": 5,
                "inference_stats": {"success": duration},
                "batch_stats": [{"batch_size": 2, "compute_infer": duration}],
                "of_the_future": 1,
            }
        ]
    }
    (told,) = (await ask(methods, "ModelStatistics", name="m", version="1")).model_stats
    assert (told.name, told.inference_count) == ("m", 5)
    assert (told.inference_stats.success.count, told.inference_stats.success.ns) == (3, 2**40)
    assert told.batch_stats[0].compute_infer.ns == 2**40
    assert control.asked == [("statistics", "m", "1")]


async def test_the_index(methods: Methods, control: Answering) -> None:
    models = (await ask(methods, "RepositoryIndex", ready=True)).models
    assert [(m.name, m.version, m.state) for m in models] == [
        ("m", "1", "READY"),
        ("n", "", "UNAVAILABLE"),
    ]
    assert control.asked == [("index", True)]


@pytest.mark.parametrize(
    "fields",
    [{"model_name": "m"}, {"repository_name": "m"}, {"repository_name": "r", "model_name": "m"}],
)
async def test_load_and_unload_in_the_dialects_of_triton_and_kserve(
    methods: Methods, control: Answering, fields: dict[str, str]
) -> None:
    loaded = await ask(methods, "RepositoryModelLoad", **fields)
    assert (loaded.model_name, loaded.isLoaded) == ("m", True)
    unloaded = await ask(methods, "RepositoryModelUnload", **fields)
    assert (unloaded.model_name, unloaded.isUnloaded) == ("m", True)
    assert control.asked == [("load", "m", {}), ("unload", "m", False)]


async def test_load_and_unload_with_parameters(methods: Methods, control: Answering) -> None:
    parameters = {
        "config": {"string_param": "{}"},
        "file:1/model.onnx": {"bytes_param": b"\0\xff"},
    }
    await ask(methods, "RepositoryModelLoad", model_name="m", parameters=parameters)
    parameters = {"unload_dependents": {"bool_param": True}}
    await ask(methods, "RepositoryModelUnload", model_name="m", parameters=parameters)
    assert control.asked == [
        ("load", "m", {"config": "{}", "file:1/model.onnx": b"\0\xff"}),
        ("unload", "m", True),
    ]


async def test_trace_settings(methods: Methods, control: Answering) -> None:
    control.settings = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "7"}
    settings = {
        "trace_level": {"value": ["TIMESTAMPS"]},
        "trace_rate": {"value": ["7"]},
        "trace_count": {},
    }
    told = await ask(methods, "TraceSetting", model_name="m", settings=settings)
    assert list(told.settings["trace_level"].value) == ["TIMESTAMPS", "TENSORS"]
    assert list(told.settings["trace_rate"].value) == ["7"]
    await ask(methods, "TraceSetting")
    update = {"trace_level": ["TIMESTAMPS"], "trace_rate": "7", "trace_count": None}
    assert control.asked == [("trace", "m", update), ("trace", "", None)]


async def test_log_settings(methods: Methods, control: Answering) -> None:
    control.settings = {"log_info": True, "log_verbose_level": 2, "log_format": "default"}
    settings = {
        "log_info": {"bool_param": False},
        "log_verbose_level": {"uint32_param": 1},
        "log_format": {"string_param": "ISO8601"},
    }
    told = await ask(methods, "LogSettings", settings=settings)
    assert told.settings["log_info"].bool_param is True
    assert told.settings["log_verbose_level"].uint32_param == 2
    assert told.settings["log_format"].string_param == "default"
    await ask(methods, "LogSettings")
    update = {"log_info": False, "log_verbose_level": 1, "log_format": "ISO8601"}
    assert control.asked == [("log", update), ("log", None)]


async def test_system_shared_memory(methods: Methods, control: Answering) -> None:
    control.regions = [{"name": "r", "key": "/k", "offset": 4, "byte_size": 64}]
    region = (await ask(methods, "SystemSharedMemoryStatus", name="r")).regions["r"]
    assert (region.name, region.key, region.offset, region.byte_size) == ("r", "/k", 4, 64)
    fields = {"name": "r", "key": "/k", "offset": 4, "byte_size": 64}
    await ask(methods, "SystemSharedMemoryRegister", **fields)
    await ask(methods, "SystemSharedMemoryUnregister", name="r")
    assert control.asked == [
        ("shared_memory", "r"),
        ("register", "r", "/k", 4, 64),
        ("unregister", "r"),
    ]


async def test_there_is_no_cuda(methods: Methods) -> None:
    assert not (await ask(methods, "CudaSharedMemoryStatus")).regions
    await ask(methods, "CudaSharedMemoryUnregister")
    call = await called(methods, "CudaSharedMemoryRegister", name="r")
    assert call.code == 12
    assert "failed to register CUDA shared memory region: 'r'" in call.text


async def test_errors_of_the_control(
    methods: Methods, control: Answering, caplog: pytest.LogCaptureFixture
) -> None:
    control.error = ModelNotFound("failed to load 'm'")
    call = await called(methods, "RepositoryModelLoad", model_name="m")
    assert (call.code, call.text) == (5, "failed to load 'm'")
    control.error = KeyError("inside")
    call = await called(methods, "RepositoryModelLoad", model_name="m")
    assert call.code == 13
    assert "inside" not in call.text
    assert "inside" in caplog.text


async def test_a_message_that_is_none(methods: Methods) -> None:
    method = methods[f"/{SERVICE}/ModelReady".encode()]
    assert method.unary is not None
    with pytest.raises(InvalidRequest, match=r"no inference\.ModelReadyRequest"):
        method.unary(FakeCall(), b"\xff")


async def test_what_a_client_started_goes_on_without_it(
    methods: Methods, control: Answering
) -> None:
    call = FakeCall()
    method = methods[f"/{SERVICE}/RepositoryModelLoad".encode()]
    assert method.unary is not None
    method.unary(
        call,
        protos.message("inference.RepositoryModelLoadRequest")(model_name="m").SerializeToString(),
    )
    assert call.cancel is None
    call.closed = True
    await ask(methods, "ServerLive")
    assert control.asked == [("load", "m", {})]
    assert not call.sent


def test_late_methods_are_made_once_when_they_are_needed() -> None:
    made: list[int] = []

    def build() -> Methods:
        made.append(1)
        return {b"/a": Method()}

    late = LateMethods(build)
    assert not made
    assert late.get(b"/b") is None
    assert late[b"/a"] == Method()
    assert (list(late), len(late), made) == ([b"/a"], 1, [1])
