"""The runtime without a server: a child process that encodes texts in ways told to it.

The graph, the runtime and its options are the server's own; so is the tokeniser. What
differs is only who decides which texts run together. CPU time is the process's own over
tokenising, forming batches, running them and putting the answers in order.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from benchmarks import batching
from benchmarks.batching import Batches, Strategy
from benchmarks.servers import ROOT, environment
from headrace.runtimes import registry
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.tasks.text_options import read_options
from headrace.tasks.text_tokenizer import load_tokenizer

STRATEGIES: dict[str, Strategy] = {
    "one at a time": batching.alone,
    "naive 32": batching.naive,
    "sorted 64, rows 32": lambda lengths: batching.sorted_rows(lengths, 64),
    "sorted 64, 512 tokens": lambda lengths: batching.token_budget(lengths, 64),
    "sorted 256, 512 tokens": lambda lengths: batching.token_budget(lengths, 256),
}


class Plan(msgspec.Struct, frozen=True):
    """What the child is made with.

    ``options`` of the text task; ``threads``: executions at one time, each single-threaded.
    """

    graph: str
    options: dict[str, Any]
    runtime: str
    threads: int
    texts: list[str]


class Order(msgspec.Struct, frozen=True):
    """Encode all texts; ``save``: where the embeddings go (.npy), "" = nowhere."""

    strategy: str
    save: str = ""


class Pass(msgspec.Struct, frozen=True):
    """One pass over texts."""

    texts: int
    cpu_s: float
    wall_s: float
    batches: int
    useful_tokens: int
    padded_tokens: int

    @property
    def cpu_ms(self) -> float:
        """Per text."""
        return self.cpu_s / self.texts * 1e3

    @property
    def waste(self) -> float:
        """Share of the computed tokens that were padding."""
        return 1 - self.useful_tokens / self.padded_tokens


class BareEncoder(AbstractContextManager["BareEncoder"]):
    """The parent's handle of the child."""

    def __init__(self, plan: Plan, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        file = work / f"bare-{plan.runtime}-{plan.threads}.msgpack"
        file.write_bytes(msgspec.msgpack.encode(plan))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare_encoder", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
        )

    def encode(self, order: Order) -> Pass:
        """One pass; blocks until it is done.

        Raises:
            BrokenPipeError, msgspec.DecodeError: the child died; its traceback is on stderr.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(msgspec.json.encode(order) + b"\n")
        stdin.flush()
        return msgspec.json.decode(stdout.readline(), type=Pass)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the child ends at the end of its input
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class _Encoder:
    """The child's side: tokenise, batch, pad, run."""

    def __init__(self, plan: Plan) -> None:
        graph = Path(plan.graph)
        artifact = Artifact("minilm", "1", graph, graph.parent, "onnx")
        config = InstanceConfig(threads=1, concurrency=plan.threads)
        self._texts = plan.texts
        self._model = registry.create(plan.runtime).load(artifact, config)
        self._names = [spec.name for spec in self._model.inputs]
        self._tokenizer = load_tokenizer(read_options(plan.options))
        self._pool = ThreadPoolExecutor(plan.threads) if plan.threads > 1 else None

    def encode(self, order: Order) -> Pass:
        texts = self._texts
        started_s, cpu_s = time.monotonic(), time.process_time()
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        lengths = [len(row) for row in rows]
        batches = STRATEGIES[order.strategy](lengths)
        embeddings = self._run(rows, batches)
        seen = Pass(
            len(texts),
            time.process_time() - cpu_s,
            time.monotonic() - started_s,
            len(batches),
            sum(lengths),
            batching.padded_tokens(lengths, batches),
        )
        if order.save:
            np.save(order.save, embeddings)
        return seen

    def _run(self, rows: Sequence[Sequence[int]], batches: Batches) -> np.ndarray:
        def execute(batch: list[int]) -> np.ndarray:
            return self._model.execute(self._inputs([rows[position] for position in batch]))[0]

        pieces = map(execute, batches) if self._pool is None else self._pool.map(execute, batches)
        embeddings = np.empty((len(rows), self._model.outputs[0].shape[-1]), np.float32)
        for batch, piece in zip(batches, pieces, strict=True):
            embeddings[batch] = piece[: len(batch)]
        return embeddings

    def _inputs(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray | None]:
        # A runtime that keeps memory per shape is spared a new one for every batch, exactly
        # as the server spares it; for ONNX Runtime both are 1.
        policy = self._model.shape_policy
        count = _round_up(len(rows), policy.row_multiple) if len(rows) > 1 else 1
        longest = _round_up(max(map(len, rows)), policy.length_multiple)
        numbers = np.zeros((count, longest), np.int64)
        mask = np.zeros((count, longest), np.int64)
        for row, tokens in enumerate(rows):
            numbers[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        mask[len(rows) :] = mask[0]
        arrays = {"input_ids": numbers, "attention_mask": mask}
        return [arrays.get(name, np.zeros((count, longest), np.int64)) for name in self._names]


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def main(plan_file: Path) -> None:
    """The child process: orders on stdin, a line each; answers on stdout."""
    encoder = _Encoder(msgspec.msgpack.decode(plan_file.read_bytes(), type=Plan))
    for line in sys.stdin.buffer:
        seen = encoder.encode(msgspec.json.decode(line, type=Order))
        sys.stdout.buffer.write(msgspec.json.encode(seen) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
