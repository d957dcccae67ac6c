"""Made-up requests that run before a model is ready, so that the first real one is not the first.

They take the way of a real request, from the check of its inputs to its answer, save the queue.
So a warm-up that passes has shown that the model answers, and one that fails says why before
anybody relies on it.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from headrace.config import WarmupConfig
from headrace.engine.inflight import Reply, Ticket
from headrace.engine.instances import BatchJob
from headrace.engine.outcomes import response_of
from headrace.engine.served import ServedModel
from headrace.engine.validate import check_inputs, rows_of
from headrace.errors import HeadraceError, InferenceFailed, ModelLoadError
from headrace.limits import GIB
from headrace.runtimes.base import Emitted
from headrace.telemetry.instruments import RequestRecord
from headrace.types import DTYPE_OF, DYNAMIC, InferenceRequest, InferenceResponse, Tensor

_LOG = logging.getLogger("headrace.engine")

PATIENCE_S = 300.0
"""How long a decoupled model may take to end its answers to one request."""

WARMUP_BYTES = 1 * GIB
"""Of the inputs of one made-up request; requests are smaller (``limits.max_body_bytes``)."""

ReadFile = Callable[[str], bytes]


def warm_up(served: ServedModel, read: ReadFile) -> None:
    """Runs every request of ``served.config.warmup``. Blocks; any thread.

    Args:
        read: a file of the model's folder ``warmup``, by name.

    Raises:
        ModelLoadError: one of them failed.
    """
    for number, config in enumerate(served.config.warmup):
        try:
            for turn in range(config.count):
                request = request_of(served, config, read, seed=turn)
                _run(served, request)
        except HeadraceError as error:
            raise failed(served, config, error) from error
        _LOG.info("model %s: warm-up %s ran", served.name, config.name or number)


def failed(served: ServedModel, config: WarmupConfig, error: HeadraceError) -> ModelLoadError:
    """What is told of a warm-up that failed."""
    return ModelLoadError(
        f"failed to run warmup sample '{config.name}' for model '{served.name}': {error.message}",
        code="warmup_failed",
        hint=error.hint,
        model=served.name,
    )


def request_of(
    served: ServedModel, config: WarmupConfig, read: ReadFile, *, seed: int = 0
) -> InferenceRequest:
    """The request that a configuration describes.

    Raises:
        InferenceFailed, ModelLoadError: an input's datatype, shape or file is not what it must
            be.
    """
    inputs: list[Tensor] = []
    size_bytes = 0
    for place, (name, said) in enumerate(config.inputs.items()):
        datatype, shape = _form(served, config.rows, name, said)
        size_bytes += math.prod(shape) * DTYPE_OF[datatype].itemsize
        if size_bytes > WARMUP_BYTES or any(size < 0 for size in shape):
            raise InferenceFailed(
                f"input '{name}' of shape {shape} brings its inputs to {size_bytes} bytes; "
                f"at most {WARMUP_BYTES} can be made up"
            )
        data = said.get("data", "zero")
        if data == "zero":
            array = _zeros(datatype, shape)
        elif data == "random":
            array = _random(datatype, shape, np.random.default_rng(seed + place))
        else:
            array = _from_bytes(name, datatype, shape, read(str(data)))
        inputs.append(Tensor(name, datatype, tuple(shape), array))
    return InferenceRequest(served.name, inputs, served.version, id=config.name or "warmup")


def _form(
    served: ServedModel, rows: int, name: str, said: Mapping[str, Any]
) -> tuple[str, list[int]]:
    """Datatype and shape of an input. A shape may count rows or not: its length tells."""
    check = served.checks.get(name)
    datatype = str(said.get("datatype", check.datatype if check else ""))
    if datatype not in DTYPE_OF:
        raise InferenceFailed(f"input '{name}' has an unknown datatype '{datatype}'")
    shape = [int(size) for size in said.get("shape", ())]
    if check is not None and (served.rows_declared or served.batchable):
        shape = [rows, *(shape[1:] if len(shape) == check.rank else shape)]
    return datatype, [1 if size == DYNAMIC else size for size in shape]


def _zeros(datatype: str, shape: Sequence[int]) -> np.ndarray:
    if datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, DTYPE_OF[datatype])


def _random(datatype: str, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    dtype = DTYPE_OF[datatype]
    if datatype == "BYTES":
        return np.full(shape, b"warmup", dtype=object)
    if datatype == "BF16":
        return (rng.random(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if dtype.kind == "f":
        return rng.random(shape, np.float32).astype(dtype)
    # Small, so that they are valid indices of almost anything.
    return rng.integers(0, 2, shape).astype(dtype)


def _from_bytes(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    if datatype == "BYTES":
        elements = _strings(raw)
        if len(elements) != count:
            raise InferenceFailed(
                f"input '{name}' of shape {list(shape)} has {count} elements, its file "
                f"{len(elements)}"
            )
        array = np.empty(count, dtype=object)
        array[:] = elements
        return array.reshape(shape)
    dtype = DTYPE_OF[datatype]
    if len(raw) != count * dtype.itemsize:
        raise InferenceFailed(
            f"input '{name}' of shape {list(shape)} has {count * dtype.itemsize} bytes, its file "
            f"{len(raw)}"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _strings(raw: bytes) -> list[bytes]:
    """Elements with four bytes of length before each, little-endian, as in V2's binary form."""
    elements: list[bytes] = []
    start = 0
    while start < len(raw):
        if start + 4 > len(raw):
            raise InferenceFailed("a file of strings ends within the length of one")
        (size,) = struct.unpack_from("<I", raw, start)
        elements.append(raw[start + 4 : start + 4 + size])
        start += 4 + size
    if start > len(raw):
        raise InferenceFailed("a file of strings ends within one")
    return elements


def _run(served: ServedModel, request: InferenceRequest) -> None:
    arrays = check_inputs(request, served)
    rows = rows_of(arrays, served) if served.batchable and served.task is None else 1
    answers = _Answers()
    ticket = Ticket(
        served.name,
        served.version,
        rows,
        engine=answers,
        served=served,
        request=request,
        reply=answers,
        arrays=arrays,
    )
    parts: Sequence[Any] = (ticket,)
    if served.task is not None:
        parts = served.task.prepare(request).items
    elif served.signature is not None:
        ticket.arrays = served.signature.filled(served.signature.shaped(served.name, arrays), rows)
    length = max((getattr(part, "length", 0) for part in parts), default=0)
    job = BatchJob(0, 0, served, parts, rows, length, inline=False)
    if served.decoupled:
        job.emitted = answers.emitted
    job.run()
    if job.error is not None:
        raise job.error
    if served.decoupled:
        answers.wait()
        return
    for piece in job.pieces:
        if isinstance(piece, HeadraceError):
            raise piece
    if served.task is None:
        ticket.result = job.pieces[0]  # type: ignore[assignment]  # no error, as was just seen
        response_of(ticket)


class _Answers(Reply):
    """Takes the answers of one made-up request."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._error: HeadraceError | None = None

    def emitted(self, _ticket: Ticket, answer: Emitted, final: bool) -> None:
        if isinstance(answer, HeadraceError):
            self._error = answer
        if final or self._error is not None:
            self._over.set()

    def wait(self) -> None:
        """Returns once the last answer is there, or raises what came instead."""
        if not self._over.wait(PATIENCE_S):
            raise InferenceFailed(f"it did not end its answers within {PATIENCE_S:.0f} s")
        if self._error is not None:
            raise self._error

    def complete(self, response: InferenceResponse, record: RequestRecord) -> None:
        """Nobody is told."""

    def fail(self, error: HeadraceError) -> None:
        """Nobody is told: what is raised is enough."""

    def cancel(self, ticket: Ticket) -> None:
        """Nobody cancels it."""
