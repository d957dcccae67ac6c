"""The demo's client: plain HTTP with the standard library, as any program would ask."""

from __future__ import annotations

import http.client
import queue
import re
import threading
import time
import urllib.parse
from collections.abc import Sequence

import msgspec
import numpy as np

from headrace.errors import OperatorError

TIMEOUT_S = 60.0
"""Of silence, for one request: a model of 23 million parameters on the slowest of machines."""


class _Embedding(msgspec.Struct):
    index: int
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    """What ``POST /v1/embeddings`` answers."""

    data: list[_Embedding]


class _Output(msgspec.Struct):
    shape: list[int]
    data: list[float]


class _Inference(msgspec.Struct):
    """What V2's ``infer`` answers."""

    outputs: list[_Output]


class Counters(msgspec.Struct, frozen=True):
    """What ``/metrics`` says of one model. Tokens are 0 for a model without a length."""

    tokens: int
    batches: int
    useful_tokens: int
    padded_tokens: int

    def since(self, before: Counters) -> Counters:
        """What was added after ``before``."""
        return Counters(
            self.tokens - before.tokens,
            self.batches - before.batches,
            self.useful_tokens - before.useful_tokens,
            self.padded_tokens - before.padded_tokens,
        )

    @property
    def waste(self) -> float:
        """The share of what was computed that was padding, 0 to 1."""
        return 1 - self.useful_tokens / self.padded_tokens if self.padded_tokens else 0.0


class Client:
    """One connection to one model. ``openai``: ask through ``/v1/embeddings``, else V2."""

    def __init__(self, url: str, model: str, *, openai: bool) -> None:
        parts = urllib.parse.urlsplit(url)
        self._connection = http.client.HTTPConnection(
            parts.hostname or "127.0.0.1", parts.port, timeout=TIMEOUT_S
        )
        self._model = model
        self._openai = openai

    def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Vectors of unit length, FP32 ``[len(texts), width]``, and the request's nanoseconds.

        Raises:
            OperatorError: the server is gone, or answers with an error.
        """
        body: dict[str, object]
        if self._openai:
            path, body = "/v1/embeddings", {"model": self._model, "input": list(texts)}
        else:
            path = f"/v2/models/{self._model}/infer"
            text = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
            body = {"inputs": [text]}
        started_ns = time.perf_counter_ns()
        answer = self._request("POST", path, msgspec.json.encode(body))
        taken_ns = time.perf_counter_ns() - started_ns
        if self._openai:
            data = msgspec.json.decode(answer, type=_Embeddings).data
            vectors = np.array([each.embedding for each in data], np.float32)
        else:
            output = msgspec.json.decode(answer, type=_Inference).outputs[0]
            vectors = np.array(output.data, np.float32).reshape(output.shape)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(norms, 1e-12), taken_ns

    def counters(self) -> Counters:
        """Reads ``/metrics``."""
        page = self._request("GET", "/metrics", None).decode()
        names = ("tokens", "batches", "batch_useful_tokens", "batch_padded_tokens")
        return Counters(*(_sample(page, f"headrace_{name}_total", self._model) for name in names))

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def _request(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise OperatorError(f"the server did not answer {method} {path}: {error}") from error
        if response.status != http.HTTPStatus.OK:
            said = answer[:200].decode(errors="replace")
            raise OperatorError(f"the server answered {response.status} to {method} {path}: {said}")
        return answer


def embed_at_once(
    url: str, model: str, texts: Sequence[str], *, openai: bool, connections: int
) -> tuple[np.ndarray, float]:
    """One request for each text, ``connections`` of them under way at any time.

    As many callers would: nobody waits for company, and the server makes the batches.

    Returns:
        One row for each text, in order, and the seconds it took in all.

    Raises:
        OperatorError: a request failed; the first one's error.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(texts)):
        waiting.put(number)
    rows: dict[int, np.ndarray] = {}
    errors: list[OperatorError] = []

    def work() -> None:
        client = Client(url, model, openai=openai)
        try:
            while not errors:
                number = waiting.get_nowait()
                rows[number] = client.embed([texts[number]])[0][0]
        except queue.Empty:
            return
        except OperatorError as error:
            errors.append(error)
        finally:
            client.close()

    # Daemons: Ctrl-C does not wait for an answer.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(connections)]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken_s = time.perf_counter() - started_s
    if errors:
        raise errors[0]
    return np.stack([rows[number] for number in range(len(texts))]), taken_s


def _sample(page: str, name: str, model: str) -> int:
    """The value of a counter, of all versions together; 0 where the page does not have it."""
    pattern = rf'^{name}\{{[^}}]*model="{re.escape(model)}"[^}}]*\}} (\S+)$'
    return int(sum(float(value) for value in re.findall(pattern, page, re.MULTILINE)))
