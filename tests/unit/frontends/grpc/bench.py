"""gRPC calls without a transport, on a real engine with models that the test decides over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from headrace import protos
from headrace.clock import MonotonicClock
from headrace.config import ModelConfig
from headrace.engine.engine import Engine
from headrace.engine.served import Profile, ServedModel
from headrace.errors import Overloaded
from headrace.frontends import status
from headrace.frontends.byte_account import ByteAccount, Share
from headrace.frontends.codecs.v2_proto import RequestDecoder, ResponseEncoder
from headrace.frontends.grpc.call import Incoming, LongCalls, Metadata
from headrace.frontends.grpc.infer import InferMethods
from headrace.frontends.peer import Address, Peer
from headrace.runtimes.base import Emit, ModelRequest
from headrace.testing.fakes import FakeModel
from headrace.types import ModelMetadata, TensorSpec

WAIT_S = 30

Request = protos.message("inference.ModelInferRequest")
Response = protos.message("inference.ModelInferResponse")
StreamResponse = protos.message("inference.ModelStreamInferResponse")


class FakeCall:
    """A :class:`headrace.frontends.grpc.call.Call` that writes down what it is told."""

    authority = "localhost:8001"

    def __init__(self, metadata: Metadata = (), timeout_ns: int = 0) -> None:
        self.metadata = metadata
        self.arrived_ns = MonotonicClock.now_ns()
        self.timeout_ns = timeout_ns
        self.closed = False
        self.pending_bytes = 0
        self.cancel: Callable[[], object] | None = None
        self.share = Share(ByteAccount(1 << 30), lambda: Peer())
        self.sent: list[bytes] = []
        self.status: tuple[int, str, Metadata] | None = None
        self.reading = True
        self.over = asyncio.Event()
        self.read = asyncio.Event()
        self._changed = asyncio.Event()

    def peer(self) -> Peer:
        return Peer(Address("127.0.0.1", 5000), Address("127.0.0.1", 8001))

    def send(self, message: bytes) -> None:
        if not self.closed:
            self.sent.append(message)
            self._changed.set()

    def finish(self, message: bytes) -> None:
        self.send(message)
        self.end()

    def end(self, code: int = 0, text: str = "", trailers: Metadata = ()) -> None:
        if not self.closed:
            self.closed = True
            self.cancel = None
            self.status = code, text, trailers
            self.over.set()
            self._changed.set()

    def fail(self, error: BaseException) -> None:
        self.end(*status.grpc_answer(error))

    def hold(self, size: int) -> bool:
        return self.share.take(size)

    def give(self, size: int) -> None:
        self.share.give(size)

    def full(self) -> Overloaded:
        return self.share.full()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    async def writable(self) -> None:
        await self.read.wait()

    def leave(self) -> None:
        """The client does."""
        self.closed = True
        cancel, self.cancel = self.cancel, None
        assert cancel is not None
        cancel()

    async def until_over(self) -> FakeCall:
        await asyncio.wait_for(self.over.wait(), WAIT_S)
        return self

    async def until_sent(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.sent) < count:
                self._changed.clear()
                await self._changed.wait()

    @property
    def code(self) -> int:
        assert self.status is not None
        return self.status[0]

    @property
    def text(self) -> str:
        assert self.status is not None
        return self.status[1]


class Counter:
    """Decoupled: answers ``x`` with 0, 1, ... up to x - 1; kept from its end by ``hold``."""

    takes_requests = True
    decoupled = True
    inputs = (TensorSpec("x", "FP32", (1,)),)
    outputs = (TensorSpec("y", "FP32", (1,)),)
    concurrency = 1

    def __init__(self) -> None:
        self.hold = False
        self.held: list[tuple[Emit, int]] = []
        self.cancelled: list[int] = []

    def execute_requests(self, requests: Sequence[ModelRequest], emit: Emit) -> None:
        for request in requests:
            array = request.arrays[0]
            assert array is not None
            for number in range(int(array[0])):
                emit(request.key, [np.full(1, number, np.float32)], False)
            if self.hold:
                self.held.append((emit, request.key))
            else:
                emit(request.key, None, True)

    def cancel(self, key: int) -> None:
        self.cancelled.append(key)

    def unload(self) -> None:
        pass


class Bench:
    """``double`` doubles FP32 [-1,4]; ``count`` is a :class:`Counter`."""

    def __init__(self) -> None:
        self.engine = Engine(instances=2, preprocess_threads=1)
        self.double = FakeModel()
        self.count = Counter()
        self.long_calls = LongCalls()
        self._serve("double", self.double, Profile(max_rows=8, batchable=True))
        self._serve("count", self.count, Profile(max_rows=1, batchable=False))
        self.methods = InferMethods(
            self.engine,
            RequestDecoder(),
            ResponseEncoder(),
            self.long_calls,
        )

    def _serve(self, name: str, model: Any, profile: Profile) -> None:
        served = ServedModel(
            metadata=ModelMetadata(name, ("1",), "fake", model.inputs, model.outputs),
            version="1",
            loaded=model,
            task=None,
            runtime="fake",
            config=ModelConfig(decoupled=name == "count"),
        )
        self.engine.add_model(served, profile)

    async def infer(self, message: Any, call: FakeCall | None = None) -> FakeCall:
        """A unary call to its end."""
        call = call or FakeCall()
        self.methods.infer(call, message.SerializeToString())
        return await call.until_over()

    def stream(self, *metadata: tuple[bytes, bytes], **fields: Any) -> tuple[FakeCall, Incoming]:
        call = FakeCall(metadata, **fields)
        return call, self.methods.stream(call)


def double(*values: float, **fields: Any) -> Any:
    """A request to ``double``, for any multiple of four values."""
    message = Request(model_name="double", **fields)
    message.inputs.add(name="x", datatype="FP32", shape=[len(values) // 4, 4])
    message.raw_input_contents.append(np.array(values, np.float32).tobytes())
    return message


def count(number: int, **fields: Any) -> Any:
    """A request to ``count``."""
    message = Request(model_name="count", **fields)
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    message.raw_input_contents.append(np.float32(number).tobytes())
    return message


def values_of(message: bytes | Any) -> list[float]:
    """Of the only output of a ModelInferResponse."""
    told = Response.FromString(message) if isinstance(message, bytes) else message
    (blob,) = told.raw_output_contents
    return [float(value) for value in np.frombuffer(blob, np.float32)]


def parts_of(call: FakeCall) -> list[Any]:
    """What a stream was answered, parsed."""
    return [StreamResponse.FromString(message) for message in call.sent]


def is_final(part: Any) -> bool:
    return bool(part.infer_response.parameters["triton_final_response"].bool_param)
