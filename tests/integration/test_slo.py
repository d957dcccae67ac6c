"""SLOs, tenants and bounds as callers meet them, over HTTP and gRPC."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.integration.server_process import serving

MODEL = """
import time
from typing import Annotated
import numpy as np
Table = Annotated[np.ndarray, "FP32[N,2]"]

def predict(x: Table) -> Table:
    time.sleep(0.03)
    return x
"""
CONFIG = """
[models.sleeper]
slo = { p99 = "5s", strict = true }
priority_levels = 3
[tenants.search]
share = 3
"""
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slo")
    (folder / "models" / "sleeper").mkdir(parents=True)
    (folder / "models" / "sleeper" / "model.py").write_text(MODEL)
    (folder / "headrace.toml").write_text(CONFIG)
    with serving(folder / "models", "--config", folder / "headrace.toml") as server:
        yield server


def asked(server, *fields: str):
    head = "".join(f"{field}\r\n" for field in fields)
    body = json.dumps(BODY).encode()
    with server.connect() as raw:
        raw.send(
            f"POST /v2/models/sleeper/infer HTTP/1.1\r\nHost: x\r\n{head}"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        status, headers, answer = raw.answer()
    return status, headers, json.loads(answer)


@pytest.mark.parametrize("fields", [(), ("x-slo-ms: 1000",), ("x-tenant-id: search",)])
def test_who_has_the_time_is_answered(server, fields):
    status, _, answer = asked(server, *fields)

    assert status == 200
    assert answer["outputs"][0]["data"] == [1, 2]


def test_what_not_even_an_idle_machine_could_do_is_refused_at_once(server):
    status, _, answer = asked(server, "X-SLO-Ms: 2.5")

    assert (status, answer["code"], answer["wanted_ms"]) == (504, "slo_unattainable", 2.5)
    assert answer["predicted_ms"] > 2.5  # of an idle machine, which this one may not be


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("x-slo-ms: 0", "invalid_slo"),
        ("x-slo-ms: soon", "invalid_slo"),
        ("x-tenant-id: a b", "invalid_tenant"),
    ],
)
def test_a_header_that_is_wrong_is_named(server, field, code):
    status, _, answer = asked(server, field)

    assert (status, answer["code"], answer["header"]) == (400, code, field.partition(":")[0])


def over_grpc(server, headers, **more):
    with grpcclient.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        tensor = grpcclient.InferInput("x", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.array([[1, 2]], np.float32))
        return client.infer("sleeper", [tensor], headers=headers, **more).as_numpy("output")


def test_the_same_over_grpc(server):
    headers = {"x-slo-ms": "1000", "x-tenant-id": "search"}
    assert over_grpc(server, headers, priority=1).tolist() == [[1, 2]]

    with pytest.raises(InferenceServerException, match=r"SLO of 2\.5 ms is strict") as caught:
        over_grpc(server, {"x-slo-ms": "2.5"})
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    with pytest.raises(InferenceServerException, match="x-slo-ms must be a number") as caught:
        over_grpc(server, {"x-slo-ms": "-1"})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_refusals_are_counted_by_their_reason(server):
    before = server.metrics()
    asked(server, "x-slo-ms: 2.5")
    after = server.metrics()

    (series,) = [name for name in after if 'reason="slo_unattainable"' in name]
    assert after[series] - before.get(series, 0) == 1
    (series,) = [name for name in after if name.startswith("headrace_slo_unattainable_total")]
    assert after[series] - before[series] == 1
