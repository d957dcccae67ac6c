"""Models that come and go: what callers notice, and what memory shows.

*swap*: a model is loaded again and again with other weights, under constant load. *cycles*: load,
ask, unload, a hundred times, with the server's resident memory after each. *many*: more models
than a memory budget holds, asked for by Zipf's law. *kill*: a model's process is ended by SIGKILL
under load, beside a model that should not notice.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree
from typing import Self

import numpy as np

from benchmarks.results import Goal, Result, Spread
from benchmarks.servers import Server, headrace_server
from benchmarks.settings import Settings
from headrace.simulate.picture import Line, draw
from headrace.testing import onnx_models

NAME = "lifecycle"
WIDTHS = (64, 256, 256, 8)
RATE = 100.0
SLO_S = 0.05
MODELS, FIT = 200, 20
_MB = 1e6
_BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]}
).encode()


def put(folder: Path, seed: int, widths: tuple[int, ...] = WIDTHS, version: int = 1) -> None:
    """One model file, replaced as a whole."""
    place = folder / str(version)
    place.mkdir(parents=True, exist_ok=True)
    new = place / "model.new"
    new.write_bytes(onnx_models.mlp(seed, widths=widths))
    new.replace(place / "model.onnx")


class Caller:
    """Asks one model at a constant rate, whatever comes back, on a thread of its own."""

    def __init__(self, server: Server, model: str, rate: float = RATE) -> None:
        self.answers: list[tuple[float, float, int, str]] = []  # when due, seconds, status, error
        self.issued = 0
        self._server, self._model, self._gap_s = server, model, 1 / rate
        self._stop = threading.Event()
        self._turn = threading.Lock()
        self._next_s = time.monotonic()
        # Several, so that one slow answer does not hold up the next request.
        self._threads = [threading.Thread(target=self._work) for _ in range(8)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        # One that is not in the list would count as neither failed nor late.
        assert self.issued == len(self.answers), f"{self.issued - len(self.answers)} got lost"

    def _work(self) -> None:
        path = f"/v2/models/{self._model}/infer"
        while True:
            with self._turn:
                due_s, self._next_s = self._next_s, self._next_s + self._gap_s
            if self._stop.wait(max(0.0, due_s - time.monotonic())):
                return
            with self._turn:
                self.issued += 1
            status, error = 0, ""
            try:
                status, body = self._server.post(path, _BODY, {})
                error = "" if status == 200 else body.decode(errors="replace")
                error = json.loads(body)["error"] if status != 200 else ""
            except (OSError, http.client.HTTPException) as failed:  # no whole answer came
                status, error = 0, f"{type(failed).__name__}: {failed}"
            except (ValueError, KeyError, TypeError):
                pass  # an error in no shape of ours: its text as it came
            self.answers.append((due_s, time.monotonic() - due_s, status, error))

    def between(self, spans: list[tuple[float, float]]) -> list[float]:
        """Seconds that answers took whose requests were due within the spans."""
        return [s for due, s, *_ in self.answers if any(a <= due <= b for a, b in spans)]


def p99(values: list[float]) -> float:
    """The 99 % value."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def swap(settings: Settings, work: Path) -> Iterator[Result]:
    """Twenty reloads, each followed by as long a time without one."""
    swaps = settings.scaled(20, 2)
    put(work / "repository" / "m", 0)
    put(work / "repository" / "other", 0)
    config = work / "swap.toml"
    config.write_text('[server]\nmodel_control = "explicit"\nload_models = ["m"]\n')
    with headrace_server(work / "repository", work, "--config", str(config)) as server:
        during: list[tuple[float, float]] = []
        steady: list[tuple[float, float]] = []
        with Caller(server, "m") as caller:
            time.sleep(1)
            for number in range(swaps):
                put(work / "repository" / "m", number + 1)
                begins_s = time.monotonic()
                status, body = server.post("/v2/repository/models/m/load", b"{}", {})
                assert status == 200, body
                ends_s = max(time.monotonic(), begins_s + 0.5)
                time.sleep(max(0.0, ends_s - time.monotonic()))
                during.append((begins_s, ends_s))
                time.sleep(0.5)
                steady.append((ends_s, ends_s + 0.5))
    failed = [answer for answer in caller.answers if answer[2] != 200]
    late = [answer for answer in caller.answers if answer[1] > SLO_S]
    ratio = p99(caller.between(during)) / p99(caller.between(steady))
    yield Result(
        benchmark=NAME,
        case=f"{swaps} swaps at {RATE:g} requests/s",
        figures={
            "requests": len(caller.answers),
            "failed": len(failed),
            "late (50 ms)": len(late),
            "p99 ms, swapping": p99(caller.between(during)) * 1e3,
            "p99 ms, steady": p99(caller.between(steady)) * 1e3,
        },
        goals=(
            Goal("failed requests", Spread.of([len(failed)]), 0, ""),
            Goal("p99 while swapping / steady", Spread.of([ratio]), 1.2),
        ),
    )


def cycles(settings: Settings, work: Path) -> Iterator[Result]:
    """Load, ask, unload, and what the server keeps; a model of 20 MB."""
    count = settings.scaled(100, 5)
    put(work / "large" / "m", 0, (64, 2200, 2200, 8))
    lines: list[Line] = []
    for isolation in ("process", "thread"):
        config = work / f"{isolation}.toml"
        config.write_text(
            f'[server]\nmodel_control = "explicit"\n[defaults]\nisolation = "{isolation}"\n'
        )
        with headrace_server(work / "large", work, "--config", str(config)) as server:
            kept: list[float] = []
            for _ in range(count):
                assert server.post("/v2/repository/models/m/load", b"{}", {})[0] == 200
                assert server.post("/v2/models/m/infer", _BODY, {})[0] == 200
                assert server.post("/v2/repository/models/m/unload", b"{}", {})[0] == 200
                _until(lambda: _is_gone(server))
                kept.append(_resident(server.pid) / _MB)
        first = kept[min(2, count - 2)]  # after what is imported once
        slope = float(np.polyfit(range(count), kept, 1)[0])
        lines.append(Line(f"{isolation} isolation", list(enumerate(kept, 1))))
        yield Result(
            benchmark=NAME,
            case=f"{count} cycles, {isolation}",
            figures={
                "MB, third": first,
                "MB, last": kept[-1],
                "KB per cycle": slope * 1e3,
            },
            goals=(Goal("resident, last / third", Spread.of([kept[-1] / first]), 1.03),),
        )
    picture = draw(
        lines,
        title="Resident memory of the server after load, request, unload",
        x_label="cycle",
        y_label="MB",
    )
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "lifecycle-memory.svg").write_text(picture)


def many(settings: Settings, work: Path) -> Iterator[Result]:
    """Two hundred models of 2 MB, a budget for twenty, Zipf(1.0)."""
    models = settings.scaled(MODELS, 30)
    for number in range(models):
        put(work / "many" / f"m{number}", number, (64, 700, 600, 8))
    size = (work / "many" / "m0" / "1" / "model.onnx").stat().st_size
    put(work / "one" / "m", 0)
    # One runtime: to compare several, a server loads their libraries, which stay.
    with headrace_server(work / "one", work, "--runtime", "onnxruntime") as server:
        empty = server.memory_bytes()
    budget = int(empty + 16 * _MB + FIT * size * 1.3)
    config = work / "many.toml"
    config.write_text(f'[server]\nmemory_budget = "{budget} B"\n')
    rng = np.random.default_rng(settings.seed)
    weights = 1 / np.arange(1, models + 1)
    asked = rng.choice(models, settings.scaled(2000, 40), p=weights / weights.sum())
    most, stop = [0], threading.Event()
    flags = ("--config", str(config), "--runtime", "onnxruntime")
    with headrace_server(work / "many", work, *flags) as server:

        def sample() -> None:
            while not stop.wait(0.02):
                most[0] = max(most[0], server.memory_bytes())

        sampler = threading.Thread(target=sample)
        sampler.start()
        hits, cold, failed = 0, [], 0
        for number in asked:
            there = server.get(f"/v2/models/m{number}/ready")[0] == 200
            begins_s = time.monotonic()
            status, _ = server.post(f"/v2/models/m{number}/infer", _BODY, {})
            failed += status != 200
            if there:
                hits += 1
            else:
                cold.append(time.monotonic() - begins_s)
        stop.set()
        sampler.join()
    yield Result(
        benchmark=NAME,
        case=f"{models} models, room for {FIT}",
        figures={
            "requests": len(asked),
            "failed": failed,
            "hit rate": hits / len(asked),
            "cold p50 ms": float(np.median(cold)) * 1e3 if cold else 0.0,
            "cold p99 ms": p99(cold) * 1e3 if cold else 0.0,
            "budget MB": budget / _MB,
            "most MB": most[0] / _MB,
        },
        goals=(Goal("most / budget", Spread.of([most[0] / budget]), 1.0),),
    )


def kill(settings: Settings, work: Path) -> Iterator[Result]:
    """One of two models under load loses its process, several times."""
    kills = settings.scaled(5, 1)
    for name in ("a", "b"):
        put(work / "pair" / name, 0)
    config = work / "kill.toml"
    config.write_text('[models.a]\nisolation = "process"\n')
    back: list[float] = []
    around: list[tuple[float, float]] = []
    apart: list[tuple[float, float]] = []
    with (
        headrace_server(work / "pair", work, "--config", str(config)) as server,
        Caller(server, "a", 50) as a,
        Caller(server, "b", 50) as b,
    ):
        time.sleep(1)
        for _ in range(kills):
            (pid,) = _processes(server, "a")
            begins_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            _until(lambda: server.post("/v2/models/a/infer", _BODY, {})[0] == 200)
            back.append(time.monotonic() - begins_s)
            time.sleep(max(0.0, begins_s + 1.5 - time.monotonic()))
            around.append((begins_s, begins_s + 1.5))
            time.sleep(1.5)
            apart.append((begins_s + 1.5, begins_s + 3))
    errors = sorted({answer[3] for answer in a.answers if answer[2] != 200})
    unanswered = sum(answer[2] == 0 for answer in a.answers)
    ratio = p99(b.between(around)) / p99(b.between(apart))
    yield Result(
        benchmark=NAME,
        case=f"{kills} kills at 2 x 50 requests/s",
        figures={
            "requests": len(a.answers),
            "errors": sum(answer[2] != 200 for answer in a.answers),
            "unanswered": unanswered,
            "other model's failed": sum(answer[2] != 200 for answer in b.answers),
            "back after s": Spread.of(back),
            "said": "; ".join(errors)[:300],
        },
        goals=(
            Goal("back after", Spread.of(back), 2.5, "s"),
            Goal("unanswered", Spread.of([unanswered]), 0, ""),
            Goal("other model's p99, around / apart", Spread.of([ratio]), 1.1),
        ),
    )


def run(settings: Settings) -> Iterator[Result]:
    """All four, each with servers of its own."""
    work = settings.work / NAME
    rmtree(work, ignore_errors=True)
    for part in (swap, cycles, many, kill):
        yield from part(settings, work)


def _processes(server: Server, model: str) -> list[int]:
    for line in json.loads(server.get("/v2/repository/models")[1]):
        if line["name"] == model:
            return list(line["processes"])
    return []


def _is_gone(server: Server) -> bool:
    lines = json.loads(server.post("/v2/repository/index", b"{}", {})[1])
    return all(line["state"] == "UNAVAILABLE" for line in lines)


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _until(holds: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + 60
    while not holds():
        if time.monotonic() > ends_s:
            raise TimeoutError("what was waited for did not happen within a minute")
        time.sleep(0.01)
