"""Sentence embedding with uneven lengths: server CPU time per text, beside the bare runtime.

2,000 texts, one in a request, over 64 connections and over one. In the same run, in turn
with the server, a child process feeds the same graph to the same runtime in the ways people
do without a server. Tokenising is in every figure; HTTP and JSON are in the server's alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np

from benchmarks.bare_encoder import STRATEGIES, BareEncoder, Order, Pass, Plan
from benchmarks.minilm import Minilm, Unavailable, get_minilm
from benchmarks.results import Goal, Result, Spread
from benchmarks.served_texts import Served, serve_texts
from benchmarks.servers import Server, headrace_server
from benchmarks.settings import Settings

NAME = "embedding"
TEXTS = 2000
LONE_TEXTS = 100
CONNECTIONS = 64
LONE_ROUNDS = 3
"""Latencies are noisier than CPU time: so many times more pairs, of fewer texts."""

TOLERANCE = 1e-4

MIN_OVER_NAIVE = 4.0
MIN_OVER_ALONE = 1.35
MAX_OVER_SORTED = 1.10
MAX_LONE = 1.03
"""A lone client must not be slower than without batching; 3 % is what rounds differ by."""

ALONE, NAIVE, SAME_WINDOW = "one at a time", "naive 32", "sorted 64, 512 tokens"


class WrongAnswer(Exception):
    """Embeddings depend on who computes them, or on what they are batched with."""


def run(settings: Settings) -> Iterator[Result]:
    """One result for each way of serving or feeding the texts."""
    work = settings.work / NAME
    try:
        minilm = get_minilm(settings, work / "cache")
    except Unavailable as error:
        yield Result(benchmark=NAME, case="all", skipped=str(error))
        return
    texts = minilm.texts(settings.scaled(TEXTS, 2 * CONNECTIONS), settings.seed)
    plan = Plan(str(minilm.graph), minilm.options, settings.runtime, 1, texts)
    with ExitStack() as stack:
        bare = stack.enter_context(BareEncoder(plan, work))
        batched = stack.enter_context(_server(minilm, work, settings))
        unbatched = stack.enter_context(_server(minilm, work, settings, "--max-batch-size", "1"))
        _check(bare, (batched, unbatched), texts, work)
        yield from _many_connections(bare, batched, texts, settings)
        yield _one_connection(batched, unbatched, texts, settings)


def _server(
    minilm: Minilm, work: Path, settings: Settings, *flags: str
) -> AbstractContextManager[Server]:
    flags = ("--runtime", settings.runtime, "--name", "minilm", *flags)
    return headrace_server(minilm.folder, work, *flags)


def _check(bare: BareEncoder, servers: Sequence[Server], texts: Sequence[str], work: Path) -> None:
    """Every text has the same embedding, whoever computes it, batched in whatever way.

    Raises:
        WrongAnswer: it has not.
    """
    file = work / "embeddings.npy"
    answers: dict[str, np.ndarray] = {}
    for strategy in STRATEGIES:
        bare.encode(Order(strategy, str(file)))
        answers[strategy] = np.load(file)
    for number, server in enumerate(servers):
        answers[f"server {number}"] = serve_texts(server, texts, CONNECTIONS, work).embeddings
    expected = answers.pop(ALONE)
    for name, embeddings in answers.items():
        worst = float(np.abs(embeddings - expected).max())
        if not worst <= TOLERANCE:
            raise WrongAnswer(f"{name}: embeddings differ from those alone by {worst:g}")


def _many_connections(
    bare: BareEncoder, server: Server, texts: Sequence[str], settings: Settings
) -> Iterator[Result]:
    served: list[Served] = []
    passes: dict[str, list[Pass]] = {strategy: [] for strategy in STRATEGIES}
    for _ in range(max(1, settings.rounds // 2)):
        for strategy, seen in passes.items():
            seen.append(bare.encode(Order(strategy)))
            if strategy == NAIVE:  # so that the server runs in the middle of its round
                served.append(serve_texts(server, texts, CONNECTIONS, settings.work / NAME))
    over = {
        strategy: Spread.of(b.cpu_ms / s.cpu_ms for b, s in zip(seen, served, strict=True))
        for strategy, seen in passes.items()
    }
    yield _served_result(served, over, passes[SAME_WINDOW])
    for strategy, seen in passes.items():
        yield Result(
            benchmark=NAME,
            case=f"bare, {strategy}",
            figures={
                "cpu ms/text": Spread.of(each.cpu_ms for each in seen),
                "x headrace": over[strategy],
                "rows/batch": len(texts) / seen[-1].batches,
                "padding": seen[-1].waste,
            },
        )


def _served_result(
    served: Sequence[Served], over: dict[str, Spread], beside: Sequence[Pass]
) -> Result:
    ratio = Spread.of(s.cpu_ms / b.cpu_ms for s, b in zip(served, beside, strict=True))
    return Result(
        benchmark=NAME,
        case=f"headrace, {CONNECTIONS} connections",
        figures={
            "cpu ms/text": Spread.of(each.cpu_ms for each in served),
            "x headrace": 1.0,
            "rows/batch": Spread.of(each.rows_per_batch for each in served).median,
            "padding": Spread.of(each.waste for each in served).median,
            "texts/s": Spread.of(each.rate for each in served).median,
            "p50 ms": Spread.of(each.p50_ms for each in served).median,
            "p99 ms": Spread.of(each.p99_ms for each in served).median,
        },
        goals=(
            Goal(f"{NAIVE} over headrace", over[NAIVE], MIN_OVER_NAIVE, at_least=True),
            Goal(f"{ALONE} over headrace", over[ALONE], MIN_OVER_ALONE, at_least=True),
            Goal(f"headrace over {SAME_WINDOW}", ratio, MAX_OVER_SORTED),
        ),
    )


def _one_connection(
    batched: Server, unbatched: Server, texts: Sequence[str], settings: Settings
) -> Result:
    """A client that waits for each answer, with batching on and off, in turn."""
    some = texts[: settings.scaled(LONE_TEXTS, 50)]
    pairs: list[tuple[Served, Served]] = []
    for number in range(LONE_ROUNDS * settings.rounds):
        order = (batched, unbatched) if number % 2 == 0 else (unbatched, batched)
        seen = {s.port: serve_texts(s, some, 1, settings.work / NAME) for s in order}
        pairs.append((seen[batched.port], seen[unbatched.port]))
    ratio = Spread.of(on.p50_ms / off.p50_ms for on, off in pairs)
    return Result(
        benchmark=NAME,
        case="headrace, 1 connection",
        figures={
            "cpu ms/text": Spread.of(on.cpu_ms for on, _ in pairs),
            "rows/batch": pairs[-1][0].rows_per_batch,
            "padding": pairs[-1][0].waste,
            "texts/s": Spread.of(on.rate for on, _ in pairs).median,
            "p50 ms": Spread.of(on.p50_ms for on, _ in pairs).median,
            "p99 ms": Spread.of(on.p99_ms for on, _ in pairs).median,
            "p50 without batching": Spread.of(off.p50_ms for _, off in pairs).median,
        },
        goals=(Goal("lone client's p50 over that without batching", ratio, MAX_LONE),),
    )
