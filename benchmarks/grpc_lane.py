"""gRPC beside what people have: our lane, our HTTP/1.1, grpcio's server, Triton itself.

One tiny MLP, one C client (``h2load``) for all, so the client favours nobody. The servers are
up at the same time and loaded in turn, forwards and then backwards. Where ``tritonserver`` can
be installed (``conformance.environments``) it runs the same function through its Python
backend, the one backend that its wheel carries.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from benchmarks import mlp
from benchmarks.h2load import Target, available, load
from benchmarks.load import Load
from benchmarks.overhead import WrongAnswer, bare_call_us
from benchmarks.results import Goal, Result, Spread
from benchmarks.servers import Server, free_port, headrace_server, triton_server
from benchmarks.settings import Settings
from conformance import environments

PATH = "/inference.GRPCInferenceService/ModelInfer"
REQUESTS_PER_S = 4000
"""Of load for each second asked for; a count, because h2load's timed mode warms up apart."""

MAX_OVER_HTTP1 = 1.8
MIN_UNDER_GRPCIO = 5.0
MIN_OVER_TRITON = 3.0
MAX_ADDED_US = 150.0

_TRITON_MODEL = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.weights = np.load(os.path.join(folder, "weights.npz"))

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            for layer in range(3):
                x = x @ self.weights[f"w{layer}"] + self.weights[f"b{layer}"]
                if layer < 2:
                    x = np.maximum(x, 0)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]))
        return responses
"""

_TRITON_CONFIG = """
backend: "python"
max_batch_size: 64
input [ { name: "x" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
dynamic_batching { }
"""


class Side(msgspec.Struct, frozen=True):
    """One server and how it is asked."""

    name: str
    server: Server
    target: Target


def run(settings: Settings) -> Iterator[Result]:
    """Nothing where h2load is not installed."""
    if not available():
        print("   skipped: h2load (Debian's nghttp2-client) is not installed")
        return
    yield from _loaded(settings)
    yield _lone(settings)


def message(request: mlp.Request) -> bytes:
    """A ModelInfer request as it stands in the DATA of HTTP/2: five bytes of length before."""
    asked = pb.ModelInferRequest(model_name="mlp")
    asked.inputs.add(name="x", datatype="FP32", shape=request.array.shape)
    asked.raw_input_contents.append(request.array.tobytes())
    encoded = asked.SerializeToString()
    return b"\0" + len(encoded).to_bytes(4, "big") + encoded


def grpc_target(port: int, request: mlp.Request, clients: int = 4, streams: int = 16) -> Target:
    """Asks ``port`` over gRPC."""
    headers = {"content-type": "application/grpc", "te": "trailers"}
    return Target(PATH, headers, message(request), port, clients=clients, streams=streams)


def _loaded(settings: Settings) -> Iterator[Result]:
    """Four connections with sixteen requests under way on each."""
    work = settings.work / "grpc_lane"
    file = mlp.write_mlp(work, settings.seed)
    (binary,) = mlp.make_requests("binary", settings.seed, 1)
    with ExitStack() as stack:
        ours = stack.enter_context(headrace_server(file, work, "--runtime", "onnxruntime"))
        port = free_port()
        flags = ("--runtime", "onnxruntime", "--grpc-server", "grpcio", "--grpc-port", str(port))
        with_grpcio = stack.enter_context(headrace_server(file, work, *flags))
        # As many requests under way: h2load does not pipeline what has a body.
        http1 = Target(
            mlp.PATH, binary.headers, binary.body, ours.port, http1=True, clients=64, streams=1
        )
        sides = [
            Side("http1", ours, http1),
            Side("grpc", ours, grpc_target(ours.port, binary)),
            Side("grpcio", with_grpcio, grpc_target(port, binary)),
        ]
        triton = _triton(settings, stack)
        if triton is not None:
            sides.append(Side("triton", triton, grpc_target(triton.port, binary)))
        for side in sides:
            if side.target.path == PATH:
                _check(side.target.port, binary, file)
        yield _compared(_rounds(sides, settings, work))


def _rounds(sides: list[Side], settings: Settings, work: Path) -> dict[str, list[Load]]:
    seen: dict[str, list[Load]] = {side.name: [] for side in sides}
    for side in sides:
        load(side.server, side.target, REQUESTS_PER_S, work)  # warm
    for number in range(settings.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            count = REQUESTS_PER_S * settings.seconds
            seen[side.name].append(load(side.server, side.target, count, work))
    return seen


def _compared(seen: dict[str, list[Load]]) -> Result:
    def cpu(name: str) -> Spread:
        return Spread.of(each.cpu_us for each in seen[name])

    def ratio(a: str, b: str, figure: Callable[[Load], float]) -> Spread:
        pairs = zip(seen[a], seen[b], strict=True)
        return Spread.of(figure(mine) / figure(its) for mine, its in pairs)

    def cost(each: Load) -> float:
        return each.cpu_us

    over_http1 = ratio("grpc", "http1", cost)
    under_grpcio = ratio("grpcio", "grpc", cost)
    figures = {
        "grpc cpu us": cpu("grpc"),
        "http1 cpu us": cpu("http1"),
        "grpcio cpu us": cpu("grpcio"),
        "grpc / http1": over_http1,
        "grpcio / grpc": under_grpcio,
        "http1 req/s": Spread.of(each.rate for each in seen["http1"]),
        "grpc req/s": Spread.of(each.rate for each in seen["grpc"]),
        "grpcio req/s": Spread.of(each.rate for each in seen["grpcio"]),
    }
    what = "tiny MLP, 4 connections x 16 streams"
    goals = [
        Goal(
            f"CPU time per request over HTTP/1.1 binary on 64 connections: {what}",
            over_http1,
            MAX_OVER_HTTP1,
        ),
        Goal(
            f"CPU time per request, grpcio's server over ours: {what}",
            under_grpcio,
            MIN_UNDER_GRPCIO,
            at_least=True,
        ),
    ]
    if "triton" in seen:
        faster = ratio("grpc", "triton", lambda each: each.rate)
        figures |= {
            "triton cpu us": cpu("triton"),
            "triton req/s": Spread.of(each.rate for each in seen["triton"]),
            "req/s over triton": faster,
        }
        goals.append(
            Goal(f"requests/s over Triton's: {what}", faster, MIN_OVER_TRITON, at_least=True)
        )
    return Result(benchmark="grpc_lane", case=what, figures=figures, goals=tuple(goals))


def _lone(settings: Settings) -> Result:
    """One stream, one request at a time: what a lone caller waits for beside the model."""
    work = settings.work / "grpc_lane"
    file = mlp.write_mlp(work, settings.seed)
    requests = mlp.make_requests("binary", settings.seed, 1)
    bare_us = bare_call_us(file, requests)
    with headrace_server(file, work, "--runtime", "onnxruntime") as ours:
        target = grpc_target(ours.port, requests[0], clients=1, streams=1)
        load(ours, target, REQUESTS_PER_S // 4, work)
        seen = [
            load(ours, target, REQUESTS_PER_S // 4 * settings.seconds, work)
            for _ in range(settings.rounds)
        ]
    added = Spread.of(each.p50_us - bare_us for each in seen)
    return Result(
        benchmark="grpc_lane",
        case="tiny MLP, 1 stream",
        figures={
            "bare call us": bare_us,
            "p50 us": Spread.of(each.p50_us for each in seen),
            "p99 us": Spread.of(each.p99_us for each in seen),
            "over the bare call us": added,
        },
        goals=(Goal("median latency over the bare call: lone stream", added, MAX_ADDED_US, "us"),),
    )


def _triton(settings: Settings, stack: ExitStack) -> Server | None:
    try:
        binary = environments.triton()
    except environments.Unavailable as reason:
        print(f"   without Triton: {reason}")
        return None
    repository = settings.work / "grpc_lane" / "triton"
    shutil.rmtree(repository, ignore_errors=True)
    version = repository / "mlp" / "1"
    version.mkdir(parents=True)
    (repository / "mlp" / "config.pbtxt").write_text(_TRITON_CONFIG)
    (version / "model.py").write_text(_TRITON_MODEL)
    np.savez(version / "weights.npz", **mlp.weights(settings.seed))
    return stack.enter_context(triton_server(binary, repository))


def _check(port: int, request: mlp.Request, file: Path) -> None:
    """Every side answers what the bare model does.

    Raises:
        WrongAnswer: one does not; nothing is measured.
    """
    import onnxruntime
    from tritonclient.grpc import InferenceServerClient, InferInput

    (expected,) = onnxruntime.InferenceSession(str(file)).run(None, {"x": request.array})
    client = InferenceServerClient(f"127.0.0.1:{port}")
    tensor = InferInput("x", list(request.array.shape), "FP32")
    tensor.set_data_from_numpy(request.array)
    answer = client.infer("mlp", [tensor]).as_numpy("y")
    client.close()
    if not np.allclose(answer, expected, rtol=1e-4, atol=1e-5):
        raise WrongAnswer(f"port {port} answered {json.dumps(answer.tolist())}")
