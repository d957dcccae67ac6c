"""What the response cache saves, and what an answer from it costs.

A *hit* is beside the floor server that answers zeros and asks no model: what an echo costs. The
*trace* is 200,000 requests for 10,000 keys by Zipf's law (power 1.0) to a cache that holds half of
the answers; executions are counted over its second half, once it is warm. A *stampede* is fifty
equal requests at one time, for each of two hundred keys.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import numpy as np

from benchmarks import mlp
from benchmarks.load import Generator
from benchmarks.overhead import interleaved
from benchmarks.results import Goal, Result, Spread
from benchmarks.servers import floor_server, headrace_server
from benchmarks.settings import Settings
from headrace.config import ModelConfig
from headrace.engine.cache_store import CacheStore
from headrace.engine.engine import Engine
from headrace.engine.served import Profile, ServedModel
from headrace.runtimes.base import ShapePolicy
from headrace.types import InferenceRequest, ModelMetadata, Tensor, TensorSpec

NAME = "cache"
KEYS = 10_000
REQUESTS = 200_000
ENTRY_BYTES = 528
MAX_RATIO = 1.3


class Counting:
    """A model that doubles its input and remembers how often it was asked for each."""

    inputs = (TensorSpec("x", "FP32", (-1, 4)),)
    outputs = (TensorSpec("y", "FP32", (-1, 4)),)
    concurrency = 1
    shape_policy = ShapePolicy()

    def __init__(self) -> None:
        self.rows: Counter[int] = Counter()

    def execute(self, inputs):
        self.rows.update(inputs[0][:, 0].astype(int).tolist())
        return [inputs[0] * 2]

    def unload(self) -> None:
        pass


def run(settings: Settings) -> Iterator[Result]:
    """The cost of a hit, the trace, the stampede, and the policy alone."""
    yield hit(settings)
    yield asyncio.run(trace(settings))
    yield asyncio.run(stampede(settings))
    yield policy(settings)


def hit(settings: Settings) -> Result:
    """64 connections, 32 different requests in turn, all of which are kept."""
    work = settings.work / "cache"
    file = mlp.write_mlp(work, settings.seed)
    config = work / "headrace.toml"
    config.write_text("[defaults]\nresponse_cache = true\n")
    requests = mlp.make_requests("json", settings.seed)
    flags = ("--runtime", "onnxruntime", "--config", str(config))
    with headrace_server(file, work, *flags) as ours, floor_server("null", "json") as floor:
        generator = Generator(requests, work)
        for server in (ours, floor):
            generator.run(server, 64, 1)
        pairs = interleaved(ours, floor, generator, 64, settings)
    ratio = Spread.of(mine.cpu_us / its.cpu_us for mine, its in pairs)
    return Result(
        benchmark=NAME,
        case="hit, JSON, 64 connections",
        figures={
            "cpu us": Spread.of(mine.cpu_us for mine, _ in pairs),
            "echo floor cpu us": Spread.of(its.cpu_us for _, its in pairs),
            "ratio": ratio,
            "req/s": Spread.of(mine.rate for mine, _ in pairs).median,
        },
        goals=(Goal("CPU time of a hit over the bare echo", ratio, MAX_RATIO),),
    )


async def trace(settings: Settings) -> Result:
    """Executions with the cache, over requests."""
    count = settings.scaled(REQUESTS, least=20_000)
    keys = _zipf(count, settings.seed)
    model = Counting()
    engine = _engine(model, KEYS // 2 * ENTRY_BYTES)
    for key in keys[: count // 2]:
        await engine.infer(_request(key))
    before = model.rows.total()
    for key in keys[count // 2 :]:
        await engine.infer(_request(key))
    executed = model.rows.total() - before
    engine.close()
    factor = Spread.of([(count - count // 2) / max(1, executed)])
    return Result(
        benchmark=NAME,
        case=f"Zipf(1.0), {KEYS:,} keys, room for half, {count:,} requests",
        figures={"executions once warm": executed, "requests per execution": factor},
        goals=(Goal("requests per execution once warm", factor, 10.0, at_least=True),),
    )


async def stampede(settings: Settings) -> Result:
    """Executions for each of the keys that everybody asks for at once."""
    model = Counting()
    engine = _engine(model, KEYS * ENTRY_BYTES)
    keys = range(settings.scaled(200, least=20))
    for key in keys:
        await asyncio.gather(*(engine.infer(_request(key)) for _ in range(50)))
    engine.close()
    most = Spread.of([float(max(model.rows.values()))])
    return Result(
        benchmark=NAME,
        case="stampede: 50 equal requests at one time",
        figures={"executions per key, at most": most, "keys": len(keys)},
        goals=(Goal("executions per distinct key in a stampede", most, 1.0),),
    )


def policy(settings: Settings) -> Result:
    """The hit rate of the store by itself, beside least recently used, with and without scans."""
    count = settings.scaled(REQUESTS, least=20_000)
    figures: dict[str, Spread | float | int | str] = {}
    for name, every in (("skewed", 0), ("with scans", 4)):
        ours, its = CacheStore[int](KEYS // 10), dict[int, None]()
        hits, other = 0, 0
        fresh = KEYS
        for number, key in enumerate(_zipf(count, settings.seed)):
            asked = [key]
            if every and number % 10_000 < 2_000 and number % every == 0:
                fresh += 1
                asked.append(fresh)
            for each in asked:
                if ours.get(each, 0) is not None:
                    hits += 1
                else:
                    ours.put(each, each, 1)
                if each in its:
                    other += 1
                    del its[each]
                its[each] = None
                if len(its) > KEYS // 10:
                    del its[next(iter(its))]
        figures[f"{name}: hits"] = round(hits / count, 4)
        figures[f"{name}: hits, least recently used"] = round(other / count, 4)
    return Result(benchmark=NAME, case="eviction, room for a tenth of the keys", figures=figures)


def _engine(model: Counting, cache_bytes: int) -> Engine:
    engine = Engine(instances=1, preprocess_threads=1, response_cache_bytes=cache_bytes)
    served = ServedModel(
        metadata=ModelMetadata("m", ("1",), "test", model.inputs, model.outputs),
        version="1",
        loaded=model,
        task=None,
        runtime="test",
        config=ModelConfig(response_cache=True),
    )
    engine.add_model(served, Profile(max_rows=32, inline_rows=32, batchable=True))
    return engine


def _request(key: int) -> InferenceRequest:
    data = np.array([[key, 1, 2, 3]], np.float32)
    return InferenceRequest("m", [Tensor("x", "FP32", data.shape, data)])


def _zipf(count: int, seed: int) -> list[int]:
    chance = random.Random(seed)
    weights = [1.0 / rank for rank in range(1, KEYS + 1)]
    return chance.choices(range(KEYS), weights, k=count)
