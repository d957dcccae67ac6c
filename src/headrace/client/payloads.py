"""The bodies of a run: made before it begins, chosen at random while it runs.

The choice is drawn beforehand, too, so that request ``i`` of a seed carries the same bytes
in every run, and sending is an index into a list.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.client.connection import Connection
from headrace.client.inputs import (
    DEFAULT_LENGTH,
    Row,
    check_overrides,
    make_inputs,
    rows_per_request,
)
from headrace.client.spec import Lengths, PayloadSpec
from headrace.client.text import draw_lengths, make_text
from headrace.client.wire import (
    CONNECTIONS,
    Check,
    HttpHead,
    binary_body,
    embeddings_check,
    json_body,
    v2_check,
)
from headrace.errors import ConfigError
from headrace.types import DTYPE_OF, ModelMetadata, Tensor

MAX_BYTES = 512 * 1024 * 1024
"""All bodies together; they stay in memory for the whole run."""

_CYCLE = 65_536
"""After so many requests the random choice of bodies repeats."""

# Children of the seed; ``arrivals.py`` has 0 and 1.
_VALUES, _CHOICE = 2, 3


class Payloads(msgspec.Struct, frozen=True):
    """Requests ready to send.

    Attributes:
        bodies: different HTTP requests, head and body.
        rows: samples in each of them.
        order: request ``i`` is ``bodies[order[i % len(order)]]``.
        fanout: requests that make up one query (the multi-stream scenario with a model
            that takes one sample at a time); otherwise 1.
    """

    bodies: list[bytes]
    rows: npt.NDArray[np.int64]
    order: array[int]
    check: Check
    connection: type[Connection]
    fanout: int = 1

    def request(self, index: int) -> bytes:
        """The bytes of request ``index``."""
        return self.bodies[self.order[index % len(self.order)]]

    def rows_of(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Samples in each of these queries."""
        order = np.frombuffer(self.order, np.intc)
        return self.rows[order[indices * self.fanout % len(order)]] * self.fanout


class PayloadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What bodies are made from.

    ``metadata`` is None for OpenAI. ``samples`` is the scenario's; ``lengths`` one for each
    request, of a recording; ``fanout_allowed``: the driver can send a query as several
    requests.
    """

    head: HttpHead
    spec: PayloadSpec
    metadata: ModelMetadata | None
    model: str
    samples: int
    seed: int
    fanout_allowed: bool = False
    lengths: npt.NDArray[np.int64] | None = None


def make_payloads(plan: PayloadPlan) -> Payloads:
    """Generates, or reads, all bodies.

    Raises:
        ConfigError: they cannot be made from this metadata, or the file is unusable, or
            they would need more than ``MAX_BYTES``.
    """
    if plan.spec.input_file:
        return _from_file(plan)
    return _generated(plan)


def _random(seed: int, child: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(child,))))


def _choose(seed: int, bodies: int) -> array[int]:
    drawn = _random(seed, _CHOICE).integers(0, bodies, _CYCLE, np.intc)
    # Every body at least once, in order, before chance decides: the first few are enough to
    # see all of a small file, and a single body is simply repeated.
    return array("i", np.concatenate((np.arange(bodies, dtype=np.intc), drawn)).tobytes())


def _generated(plan: PayloadPlan) -> Payloads:
    fanout, rows = _split(plan)
    if plan.lengths is None:
        lengths = _drawn_lengths(plan)
        order = _choose(plan.seed, len(lengths))
    else:  # one body for each length that occurs, sent when the recording says
        distinct, inverse = np.unique(plan.lengths, return_inverse=True)
        lengths = [int(length) for length in distinct]
        order = array("i", inverse.astype(np.intc).tobytes())
    random, bodies, total = _random(plan.seed, _VALUES), [], 0
    for length in lengths:
        bodies.append(_body(random, plan, Row(rows, length)))
        total += len(bodies[-1])
        if total > MAX_BYTES:
            raise ConfigError(
                f"{len(lengths)} different bodies need more than {MAX_BYTES >> 20} MiB",
                hint="fewer with --distinct, or smaller ones with --shape or --text-lengths",
            )
    return Payloads(
        bodies,
        np.full(len(bodies), rows, np.int64),
        order,
        _check(plan, rows),
        CONNECTIONS[plan.spec.wire],
        fanout,
    )


def _split(plan: PayloadPlan) -> tuple[int, int]:
    """A query's samples as ``(requests, rows in each)``."""
    if plan.metadata is not None:
        check_overrides(plan.metadata.inputs, plan.spec)
    if plan.metadata is None:
        return 1, plan.samples
    rows = rows_per_request(plan.metadata.inputs, plan.spec)
    if rows is None:
        return 1, plan.samples
    fanout, rest = divmod(plan.samples, rows)
    if plan.fanout_allowed and not rest:
        return fanout, rows
    if plan.spec.samples not in (None, rows) or plan.fanout_allowed:
        raise ConfigError(
            f"{plan.samples} samples do not fit: a request to {plan.model!r} has {rows} "
            "(its first dimensions are fixed, by the model or by --shape)",
            hint=f"--samples {rows}, or a multiple of it with --scenario multi-stream",
        )
    return 1, rows


def _drawn_lengths(plan: PayloadPlan) -> list[int]:
    texts = plan.metadata is None or any(spec.datatype == "BYTES" for spec in plan.metadata.inputs)
    lengths = plan.spec.lengths or (Lengths() if texts else None)
    if lengths is None:
        return [DEFAULT_LENGTH] * plan.spec.distinct
    return draw_lengths(_random(plan.seed, _VALUES), lengths, plan.spec.distinct)


def _body(random: np.random.Generator, plan: PayloadPlan, row: Row) -> bytes:
    if plan.metadata is None:
        texts = [make_text(random, row.length) for _ in range(row.rows)]
        body = {"model": plan.model, "input": texts if row.rows > 1 else texts[0]}
        return plan.head.request(msgspec.json.encode(body))
    return _v2(plan, make_inputs(random, plan.metadata.inputs, plan.spec, row))


def _v2(plan: PayloadPlan, tensors: Sequence[Tensor], extra: dict[str, Any] | None = None) -> bytes:
    if plan.spec.wire == "binary":
        body, header_length = binary_body(tensors, extra)
        return plan.head.request(body, header_length=header_length)
    return plan.head.request(json_body(tensors))


def _check(plan: PayloadPlan, texts: int | None) -> Check:
    if plan.metadata is None:
        return embeddings_check(texts)
    return v2_check(frozenset(output.name for output in plan.metadata.outputs))


# bodies from a file


def _from_file(plan: PayloadPlan) -> Payloads:
    if plan.spec.shapes or plan.spec.ranges or plan.spec.lengths or plan.lengths is not None:
        raise ConfigError(
            "--input gives whole bodies; shapes, ranges and lengths would have no effect",
            hint="leave --shape, --range, --text-lengths and recorded lengths out",
        )
    path = Path(plan.spec.input_file)
    bodies = [_given(plan, text, number) for number, text in _documents(path)]
    if not bodies:
        raise ConfigError(f"{path} has no bodies", hint="a JSON body, or JSONL with one a line")
    selective = any(body.selects for body in bodies)
    check = v2_check(frozenset()) if selective else _check(plan, None)
    return Payloads(
        [body.request for body in bodies],
        np.array([body.rows for body in bodies], np.int64),
        _choose(plan.seed, len(bodies)),
        check,
        CONNECTIONS[plan.spec.wire],
    )


def _documents(path: Path) -> list[tuple[int, bytes]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} has more than {MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix.lower() not in {".jsonl", ".ndjson"}:
        return [(1, content)]
    lines = enumerate(content.splitlines(), 1)
    return [(number, line) for number, line in lines if line.strip()]


class _GivenTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any = None


class _GivenBody(msgspec.Struct):
    inputs: list[_GivenTensor]
    id: str = ""
    outputs: list[dict[str, Any]] | None = None
    parameters: dict[str, Any] = {}

    def extra(self) -> dict[str, Any]:
        """The members beside the inputs that were given."""
        members = {"id": self.id, "outputs": self.outputs, "parameters": self.parameters}
        return {name: value for name, value in members.items() if value}


class _Given(msgspec.Struct, frozen=True):
    request: bytes
    rows: int
    selects: bool = False  # it names the outputs it wants, so not all will come


class _GivenTexts(msgspec.Struct):
    input: str | list[Any]


def _given(plan: PayloadPlan, text: bytes, number: int) -> _Given:
    """One body, which is sent as it is unless it must be binary."""
    try:
        if plan.metadata is None:
            texts = msgspec.json.decode(text, type=_GivenTexts).input
            rows = len(texts) if isinstance(texts, list) else 1
            return _Given(plan.head.request(text.strip()), rows)
        body = msgspec.json.decode(text, type=_GivenBody)
        request = plan.head.request(text.strip())
        if plan.spec.wire == "binary":
            request = _v2(plan, [_tensor(given) for given in body.inputs], body.extra())
        return _Given(request, _given_rows(plan.metadata, body), bool(body.outputs))
    except (msgspec.DecodeError, ValueError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"{plan.spec.input_file}, line {number}: not a body for this model: {error}",
            hint='for example {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], '
            '"data": [1, 2]}]}, or {"model": "m", "input": "a text"} with --openai',
        ) from error


def _given_rows(metadata: ModelMetadata, body: _GivenBody) -> int:
    if rows_per_request(metadata.inputs, PayloadSpec()) is not None:
        return 1
    return body.inputs[0].shape[0] if body.inputs and body.inputs[0].shape else 1


def _tensor(given: _GivenTensor) -> Tensor:
    dtype = DTYPE_OF.get(given.datatype)
    if dtype is None or given.datatype == "BF16":
        raise ValueError(f"the datatype {given.datatype!r} cannot be read from JSON")
    if given.datatype == "BYTES":
        elements = [
            text.encode() if isinstance(text, str) else bytes(text) for text in _flat(given.data)
        ]
        data = np.empty(len(elements), dtype)
        data[:] = elements
    else:
        data = np.array(given.data, dtype)
    return Tensor(given.name, given.datatype, given.shape, data.reshape(given.shape))


def _flat(data: Any) -> list[Any]:
    if not isinstance(data, list):
        return [data]
    return [element for part in data for element in _flat(part)]
