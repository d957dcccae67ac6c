"""Every feature that tritonclient has a call for, through each of its clients that has it."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from conformance.registry import CHECKS, Check
from conformance.servers import Server
from conformance.triton_clients import KINDS, Client, connected

A = np.array([[1, 2, 3, 4]], dtype=np.float32)
B = np.array([[10, 20, 30, 40]], dtype=np.float32)
AB = {"INPUT0": A, "INPUT1": B}

ARRAYS = {
    "BOOL": np.array([True, False]),
    "UINT8": np.array([0, 255], dtype=np.uint8),
    "UINT16": np.array([0, 65535], dtype=np.uint16),
    "UINT32": np.array([0, 2**32 - 1], dtype=np.uint32),
    "UINT64": np.array([0, 2**64 - 1], dtype=np.uint64),
    "INT8": np.array([-128, 127], dtype=np.int8),
    "INT16": np.array([-32768, 32767], dtype=np.int16),
    "INT32": np.array([-(2**31), 2**31 - 1], dtype=np.int32),
    "INT64": np.array([-(2**63), 2**63 - 1], dtype=np.int64),
    "FP16": np.array([-1.5, 65504], dtype=np.float16),
    "FP32": np.array([-1.5, 3.25], dtype=np.float32),
    "FP64": np.array([-1.5, 1e300]),
    "BYTES": np.array([b"", "Grüße".encode()], dtype=object),
}

GRPC = tuple(kind for kind, (_, protocol) in KINDS.items() if protocol == "grpc")
HTTP = tuple(kind for kind in KINDS if kind not in GRPC)
SYNC = tuple(kind for kind in KINDS if not kind.endswith(".aio"))

_PATIENCE_S = 30.0


def through(
    feature: str, kinds: tuple[str, ...] = tuple(KINDS)
) -> Callable[[Callable[[Client], None]], None]:
    """Registers a check for each of ``kinds``."""

    def register(body: Callable[[Client], None]) -> None:
        for kind in kinds:

            def run(server: Server, kind: str = kind) -> None:
                with connected(kind, server) as client:
                    body(client)

            CHECKS.append(Check(feature, kind, run))

    return register


def fails(call: Callable[[], Any], *texts: str) -> InferenceServerException:
    """The error that ``call`` must end in, with every text in its message."""
    try:
        call()
    except InferenceServerException as error:
        for text in texts:
            assert text in str(error), f"{text!r} is not in {error}"
        return error
    raise AssertionError(f"succeeded; expected {texts}")


@through("server live, ready")
def _(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()


@through("model ready")
def _(client: Client) -> None:
    assert client.is_model_ready("add_sub")
    assert client.is_model_ready("add_sub", "1")
    assert not client.is_model_ready("add_sub", "7")
    assert not client.is_model_ready("nobody")


@through("server metadata")
def _(client: Client) -> None:
    extensions = set(client.asked("get_server_metadata")["extensions"])
    assert {"sequence", "statistics", "system_shared_memory", "binary_tensor_data"} <= extensions


@through("model metadata")
def _(client: Client) -> None:
    metadata = client.asked("get_model_metadata", "add_sub")
    assert metadata["versions"] == ["1"]
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["INPUT0", "INPUT1"]
    assert [int(size) for size in metadata["inputs"][0]["shape"]] == [-1, 4]
    assert metadata["outputs"][0]["datatype"] == "FP32"


@through("model configuration")
def _(client: Client) -> None:
    config = client.asked("get_model_config", "add_sub")
    config = config.get("config", config)
    assert config["max_batch_size"] == 8
    assert config["output"][0]["label_filename"] == "labels.txt"


def _infers(datatype: str) -> None:
    @through(f"infer {datatype}")
    def _(client: Client) -> None:
        array = ARRAYS[datatype]
        result = client.infer_arrays("echo", {f"IN_{datatype}": array})
        answer = result.as_numpy(f"OUT_{datatype}")
        assert answer.dtype == array.dtype
        assert answer.tolist() == array.tolist()


for _datatype in ARRAYS:
    _infers(_datatype)


@through("infer as JSON", HTTP)
def _(client: Client) -> None:
    inputs = [client.tensor(name, array, binary_data=False) for name, array in AB.items()]
    outputs = [client.output("OUTPUT1", binary_data=False), client.output("OUTPUT0")]
    result = client.infer("add_sub", inputs, outputs=outputs, request_id="r1")
    assert result.get_response()["id"] == "r1"
    assert result.as_numpy("OUTPUT1").tolist() == (A - B).tolist()
    assert result.as_numpy("OUTPUT0").tolist() == (A + B).tolist()


@through("requested outputs, request id")
def _(client: Client) -> None:
    outputs = [client.output("OUTPUT1")]
    result = client.infer_arrays("add_sub", AB, outputs=outputs, request_id="r2")
    response = result.get_response()
    assert (response["id"] if client.protocol == "http" else response.id) == "r2"
    assert result.as_numpy("OUTPUT0") is None
    assert result.as_numpy("OUTPUT1").tolist() == (A - B).tolist()


@through("compression", ("tritonclient.http",))  # the aio variant lacks an import of its own
def _(client: Client) -> None:
    for algorithm in ("gzip", "deflate"):
        result = client.infer_arrays(
            "add_sub",
            AB,
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        assert result.as_numpy("OUTPUT0").tolist() == (A + B).tolist()


@through("compression", GRPC)
def _(client: Client) -> None:
    for algorithm in ("gzip", "deflate"):
        result = client.infer_arrays("add_sub", AB, compression_algorithm=algorithm)
        assert result.as_numpy("OUTPUT0").tolist() == (A + B).tolist()


@through("async infer", ("tritonclient.http",))
def _(client: Client) -> None:
    inputs = [client.tensor(*item) for item in AB.items()]
    pending = [client.async_infer("add_sub", inputs) for _ in range(8)]
    for each in pending:
        assert each.get_result().as_numpy("OUTPUT0").tolist() == (A + B).tolist()


@through("async infer", ("tritonclient.grpc",))
def _(client: Client) -> None:
    inputs = [client.tensor(*item) for item in AB.items()]
    done = threading.Semaphore(0)
    answers: list[Any] = []

    def answered(result: Any, error: Any) -> None:
        answers.append(error or result)
        done.release()

    for _ in range(8):
        client.async_infer("add_sub", inputs, answered)
    for _ in range(8):
        assert done.acquire(timeout=_PATIENCE_S)
    assert all(a.as_numpy("OUTPUT0").tolist() == (A + B).tolist() for a in answers)


@through("cancel", ("tritonclient.grpc",))
def _(client: Client) -> None:
    ended = threading.Event()
    outcome: list[Any] = []

    def answered(result: Any, error: Any) -> None:
        outcome.append(error or result)
        ended.set()

    seconds = np.array([0.5], dtype=np.float32)
    call = client.async_infer("patient", [client.tensor("SECONDS", seconds)], answered)
    call.cancel()
    assert ended.wait(_PATIENCE_S)
    assert "cancel" in str(outcome[0]).lower()
    again = client.infer_arrays("patient", {"SECONDS": np.zeros(1, np.float32)})
    assert again.as_numpy("SECONDS_WAITED").tolist() == [0]


@through("deadline (grpc-timeout)", GRPC)
def _(client: Client) -> None:
    seconds = {"SECONDS": np.array([0.5], dtype=np.float32)}
    error = fails(lambda: client.infer_arrays("patient", seconds, client_timeout=0.1))
    assert "Deadline" in str(error) or "DEADLINE" in str(error)


@through("stream", GRPC)
def _(client: Client) -> None:
    requests = [
        {
            "model_name": "add_sub",
            "inputs": [client.tensor("INPUT0", A + i), client.tensor("INPUT1", B)],
            "request_id": str(i),
        }
        for i in range(5)
    ]
    answers = {a.get_response().id: a for a in client.stream(requests)}
    for i in range(5):
        assert answers[str(i)].as_numpy("OUTPUT0").tolist() == (A + i + B).tolist()


@through("stream, decoupled model", GRPC)
def _(client: Client) -> None:
    inputs = [client.tensor("IN", np.arange(3, dtype=np.int32))]
    answers = client.stream([{"model_name": "repeat", "inputs": inputs}])
    assert [a.as_numpy("OUT").tolist() for a in answers] == [[0], [1], [2]]


@through("stream, empty final response", ("tritonclient.grpc",))  # aio cannot ask
def _(client: Client) -> None:
    inputs = [client.tensor("IN", np.arange(2, dtype=np.int32))]
    request = {"model_name": "repeat", "inputs": inputs, "enable_empty_final_response": True}
    answers = [a.get_response() for a in client.stream([request])]
    finals = [a.parameters["triton_final_response"].bool_param for a in answers]
    assert finals == [False, False, True]
    assert not answers[-1].outputs


@through("stream, error of one request", GRPC)
def _(client: Client) -> None:
    good = [client.tensor(*item) for item in AB.items()]
    bad = [client.tensor("INPUT0", A)]
    answers = client.stream(
        [{"model_name": "add_sub", "inputs": bad}, {"model_name": "add_sub", "inputs": good}]
    )
    errors = [a for a in answers if isinstance(a, InferenceServerException)]
    assert len(errors) == 1
    assert len(answers) == 2


@through("decoupled model refuses unary")
def _(client: Client) -> None:
    arrays = {"IN": np.arange(2, dtype=np.int32)}
    fails(lambda: client.infer_arrays("repeat", arrays), "decoupled")


@through("classification")
def _(client: Client) -> None:
    outputs = [client.output("OUTPUT0", class_count=2)]
    answer = client.infer_arrays("add_sub", AB, outputs=outputs).as_numpy("OUTPUT0")
    assert answer.tolist() == [[b"44.000000:3:west", b"33.000000:2:south"]]


@through("sequence")
def _(client: Client) -> None:
    ids = [int(uuid.uuid4().int % 2**31) + 1 for _ in range(3)]
    sums = dict.fromkeys(ids, 0)
    for step in range(4):
        for sequence in ids:
            result = client.infer_arrays(
                "accumulate",
                {"IN": np.array([[step + 1]], dtype=np.int32)},
                sequence_id=sequence,
                sequence_start=step == 0,
                sequence_end=step == 3,
            )
            sums[sequence] += step + 1
            assert result.as_numpy("OUT").tolist() == [[sums[sequence]]]


@through("sequence without a start")
def _(client: Client) -> None:
    one = {"IN": np.array([[1]], dtype=np.int32)}
    fails(lambda: client.infer_arrays("accumulate", one), "correlation ID")
    lost = {"sequence_id": 4_000_000_001}
    fails(lambda: client.infer_arrays("accumulate", one, **lost), "START flag")


@through("ensemble")
def _(client: Client) -> None:
    answer = client.infer_arrays("pipeline", {"A": A, "B": B})
    assert answer.as_numpy("TWICE_A").tolist() == (2 * A).tolist()


@through("priority and timeout")
def _(client: Client) -> None:
    answer = client.infer_arrays("add_sub", AB, priority=1, timeout=10_000_000)
    assert answer.as_numpy("OUTPUT0").tolist() == (A + B).tolist()


@through("custom parameters")
def _(client: Client) -> None:
    answer = client.infer_arrays("add_sub", AB, parameters={"colour": "red", "shade": 3})
    assert answer.as_numpy("OUTPUT0").tolist() == (A + B).tolist()


@through("repository index")
def _(client: Client) -> None:
    index = client.asked("get_model_repository_index")
    models = index if client.protocol == "http" else index["models"]
    states = {each["name"]: each.get("state") for each in models}
    assert states["add_sub"] == "READY"
    assert states["pipeline"] == "READY"


@through("repository load, unload")
def _(client: Client) -> None:
    client.unload_model("patient")
    _until(lambda: not client.is_model_ready("patient"))
    client.load_model("patient")
    assert client.is_model_ready("patient")


@through("repository load with config")
def _(client: Client) -> None:
    # Both times with a configuration: Triton keeps an override until a file of the model changes.
    for rows in (3, 8):
        client.load_model("add_sub", config=json.dumps(_add_sub(rows)))
        told = client.asked("get_model_config", "add_sub")
        assert told.get("config", told)["max_batch_size"] == rows


def _add_sub(rows: int) -> dict[str, Any]:
    return {
        "backend": "python",
        "max_batch_size": rows,
        "input": [{"name": f"INPUT{i}", "data_type": "TYPE_FP32", "dims": [4]} for i in (0, 1)],
        "output": [
            {
                "name": "OUTPUT0",
                "data_type": "TYPE_FP32",
                "dims": [4],
                "label_filename": "labels.txt",
            },
            {"name": "OUTPUT1", "data_type": "TYPE_FP32", "dims": [4]},
        ],
    }


@through("repository load of nothing")
def _(client: Client) -> None:
    fails(lambda: client.load_model("nobody"), "failed to load 'nobody'")


@through("statistics")
def _(client: Client) -> None:
    def counted() -> tuple[int, int]:
        (stats,) = client.asked("get_inference_statistics", "echo")["model_stats"]
        return int(stats["inference_count"]), int(stats["inference_stats"]["success"]["count"])

    client.infer_arrays("echo", {"IN_INT8": ARRAYS["INT8"]})
    rows, requests = counted()
    for _ in range(3):
        client.infer_arrays("echo", {"IN_INT8": ARRAYS["INT8"]})
    assert counted() == (rows + 3, requests + 3)


@through("trace settings")
def _(client: Client) -> None:
    changed = client.asked("update_trace_settings", settings={"trace_rate": "7"})
    changed = changed.get("settings", changed)
    assert "7" in str(changed["trace_rate"])
    client.update_trace_settings(settings={"trace_rate": None})
    told = client.asked("get_trace_settings", "add_sub")
    told = told.get("settings", told)
    assert "1000" in str(told["trace_rate"])


@through("log settings")
def _(client: Client) -> None:
    client.update_log_settings({"log_verbose_level": 1})
    told = client.asked("get_log_settings")
    told = told.get("settings", told)
    assert "1" in str(told["log_verbose_level"])
    client.update_log_settings({"log_verbose_level": 0})


@through("system shared memory")
def _(client: Client) -> None:
    unique = uuid.uuid4().hex[:8]
    given, taken = f"headrace-test-given-{unique}", f"headrace-test-taken-{unique}"
    size = A.nbytes
    inside = shm.create_shared_memory_region(given, f"/{given}", 2 * size)
    outside = shm.create_shared_memory_region(taken, f"/{taken}", size)
    try:
        shm.set_shared_memory_region(inside, [A, B])
        client.register_system_shared_memory(given, f"/{given}", 2 * size)
        client.register_system_shared_memory(taken, f"/{taken}", size)
        inputs = [client.module.InferInput(f"INPUT{i}", [1, 4], "FP32") for i in (0, 1)]
        inputs[0].set_shared_memory(given, size)
        inputs[1].set_shared_memory(given, size, offset=size)
        output = client.output("OUTPUT0")
        output.set_shared_memory(taken, size)
        client.infer("add_sub", inputs, outputs=[output])
        answer = shm.get_contents_as_numpy(outside, np.float32, [1, 4])
        assert answer.tolist() == (A + B).tolist()
        status = client.asked("get_system_shared_memory_status")
        regions = status if client.protocol == "http" else status["regions"]
        assert given in str(regions)
        inputs[1].set_shared_memory(given, size, offset=size + 1)
        fails(lambda: client.infer("add_sub", inputs, outputs=[output]), given)
        client.unregister_system_shared_memory(given)
        client.unregister_system_shared_memory(taken)
        inputs[1].set_shared_memory(given, size, offset=size)
        fails(lambda: client.infer("add_sub", inputs), given)
    finally:
        shm.destroy_shared_memory_region(inside)
        shm.destroy_shared_memory_region(outside)


@through("errors that clients match")
def _(client: Client) -> None:
    fails(
        lambda: client.infer_arrays("nobody", AB),
        "Request for unknown model: 'nobody' is not found",
    )
    fails(
        lambda: client.infer_arrays("add_sub", {"INPUT0": A, "C": B}),
        "unexpected inference input 'C' for model 'add_sub'",
    )
    fails(
        lambda: client.infer_arrays("add_sub", {"INPUT0": A.astype(np.int32), "INPUT1": B}),
        "inference input 'INPUT0' data-type is 'INT32', but model 'add_sub' expects 'FP32'",
    )
    wrong = {"INPUT0": np.zeros((1, 3, 3), np.float32), "INPUT1": B}
    fails(
        lambda: client.infer_arrays("add_sub", wrong),
        "unexpected shape for input 'INPUT0' for model 'add_sub'. Expected [-1,4], got [1,3,3]",
    )
    fails(
        lambda: client.infer_arrays("add_sub", AB, outputs=[client.output("C")]),
        "unexpected inference output 'C' for model 'add_sub'",
    )


@through("error of the model")
def _(client: Client) -> None:
    arrays = {"SECONDS": np.array([-1], dtype=np.float32)}
    fails(lambda: client.infer_arrays("patient", arrays), "time does not run backwards")


def _until(condition: Callable[[], bool]) -> None:
    """Unloading may go on after the answer."""
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not become true in 10 s")
