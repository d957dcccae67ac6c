"""Texts through a server: one a request, every answer kept, CPU time and batches counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import client
from benchmarks.load import http_request
from benchmarks.minilm import PATH
from benchmarks.servers import Server

_COUNTERS = ("batches", "rows", "batch_useful_tokens", "batch_padded_tokens")


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """One pass of texts through a server. ``embeddings`` FP32 ``[texts, width]``."""

    cpu_s: float
    wall_s: float
    p50_ms: float
    p99_ms: float
    rows_per_batch: float
    waste: float
    embeddings: np.ndarray

    @property
    def cpu_ms(self) -> float:
        """Per text."""
        return self.cpu_s / len(self.embeddings) * 1e3

    @property
    def rate(self) -> float:
        """Texts per second."""
        return len(self.embeddings) / self.wall_s


class ServeFailed(Exception):
    """Some text was not answered with an embedding."""


def serve_texts(server: Server, texts: Sequence[str], connections: int, work: Path) -> Served:
    """Sends every text once.

    Raises:
        ServeFailed: a request failed.
    """
    requests = [_request(server, text) for text in texts]
    plan = client.Plan(url=server.url, requests=requests, connections=connections, keep=True)
    before, before_s = _counters(server), server.cpu_s()
    seen = client.send(plan, work)
    cpu_s = server.cpu_s() - before_s
    after = _counters(server)
    if seen.failures or seen.answered != len(texts):
        raise ServeFailed(f"{seen.answered} of {len(texts)} answered: {seen.failures}")
    batches, rows, useful, padded = (after[name] - before[name] for name in _COUNTERS)
    return Served(
        cpu_s=cpu_s,
        wall_s=seen.seconds,
        p50_ms=seen.percentile_us(50) / 1e3,
        p99_ms=seen.percentile_us(99) / 1e3,
        rows_per_batch=rows / batches,
        waste=1 - useful / padded,
        embeddings=np.stack([_embedding(body) for body in seen.bodies]),
    )


def _request(server: Server, text: str) -> bytes:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
    body = msgspec.json.encode({"inputs": [tensor]})
    return http_request(server.port, PATH, {"Content-Type": "application/json"}, body)


def _embedding(body: bytes) -> np.ndarray:
    answer: dict[str, Any] = msgspec.json.decode(body)
    return np.array(answer["outputs"][0]["data"], np.float32)


def _counters(server: Server) -> dict[str, float]:
    """The server's own counts of batches, rows and tokens."""
    status, page = server.get("/metrics")
    if status != 200:
        raise ServeFailed(f"/metrics answered {status}")
    counts = dict.fromkeys(_COUNTERS, 0.0)
    for line in page.decode().splitlines():
        name, _, rest = line.partition("{")
        short = name.removeprefix("headrace_").removesuffix("_total")
        if short in counts:
            counts[short] += float(rest.rpartition(" ")[2])
    return counts
