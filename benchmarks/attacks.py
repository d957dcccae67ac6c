"""What attacks from outside cost and are answered, and what honest clients see meanwhile.

Each attack has a server of its own that also serves ``mlp`` to honest clients on four connections.
Their rate is measured alone and beside the attack, which is repeated as long as that takes if it is
a flood. ``held`` is whether the answer was one of those that are expected. Resident memory is of
all processes of the server: the highest during the attack, and after it, less that before.
The server has ``max_memory_bytes`` of 1 GiB and a ``trial_timeout_s`` of 5 s. Writes ``attacks.md``
beside the results.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from benchmarks import attack_cases, mlp
from benchmarks.attack_cases import ATTACKS, Attack
from benchmarks.attack_wire import Target
from benchmarks.load import Generator, LoadFailed
from benchmarks.results import Goal, Result, Spread
from benchmarks.servers import Server, headrace_server
from benchmarks.settings import Settings

NAME = "attacks"
CONNECTIONS = 4
SETTINGS = """
[server]
trial_timeout_s = 5

[server.limits]
max_memory_bytes = 1_073_741_824
"""
"""Of the attacked server: bounds that can be reached in seconds, and on a small machine."""

LEAST_SHARE = 0.5
MAX_HELD_MIB = 128
"""What memory may have grown by after an attack: allocators keep some of what they had."""

_MIB = 1 << 20
_SAMPLE_S = 0.02


class Watch:
    """The highest resident memory of a server while a block runs, in MiB over the first."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ended = threading.Event()
        self._before = server.memory_bytes()
        self.peak_mib = 0.0
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def grown_mib(self) -> float:
        """Now."""
        return (self._server.memory_bytes() - self._before) / _MIB

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self.peak_mib = max(self.peak_mib, self.grown_mib())


def run(settings: Settings) -> Iterator[Result]:
    """Every attack; then the table."""
    results = []
    for number, attack in enumerate(ATTACKS):
        results.append(measure(attack, settings, settings.work / NAME / str(number)))
        yield results[-1]
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "attacks.md").write_text("\n".join(table(results)) + "\n")


@contextmanager
def attacked(work: Path, seed: int, *, watch: bool) -> Iterator[Target]:
    """A server to be attacked."""
    repository = work / "repository"
    mlp.write_mlp(repository / "mlp" / "1", seed)
    attack_cases.write_models(repository)
    settings_file = work / "headrace.toml"
    settings_file.write_text(SETTINGS)
    flags = ("--config", str(settings_file), *(("--watch",) if watch else ()))
    with headrace_server(repository, work, *flags) as server:
        yield Target(server, repository, work)


def measure(attack: Attack, settings: Settings, work: Path) -> Result:
    """One attack on a server of its own."""
    shutil.rmtree(work, ignore_errors=True)
    honest = Generator(mlp.make_requests(mlp.BINARY, settings.seed), work / "honest")
    with attacked(work, settings.seed, watch=attack.watch) as target:
        server = target.server
        alone = honest.run(server, CONNECTIONS, settings.seconds).rate
        cpu_s = server.cpu_s()
        with Watch(server) as memory:
            answer, beside = _beside(attack, target, honest, settings)
        cpu_s = server.cpu_s() - cpu_s
        still = _settled_mib(memory)
    share = beside / alone
    held = re.fullmatch(attack.held, answer) is not None
    goals = [
        Goal("attacks that broke through", Spread.of([0 if held else 1]), 0, ""),
        Goal("memory kept, MiB", Spread.of([still]), MAX_HELD_MIB, ""),
    ]
    if attack.flood:
        goals.append(Goal("honest share", Spread.of([share]), LEAST_SHARE, "x", at_least=True))
    return Result(
        benchmark=NAME,
        case=attack.name,
        figures={
            "answer": answer[:240],
            "held": "yes" if held else "no",
            "honest alone/s": round(alone),
            "honest beside, share": round(share, 2),
            "server CPU s": round(cpu_s, 2),
            "peak MiB": round(memory.peak_mib),
            "after MiB": round(still),
        },
        goals=tuple(goals),
    )


def _beside(
    attack: Attack, target: Target, honest: Generator, settings: Settings
) -> tuple[str, float]:
    """The attack's first answer, and the honest rate meanwhile (0: a request failed)."""
    answers: list[str] = []
    ended = threading.Event()

    def repeat() -> None:
        while not answers or (attack.flood and not ended.is_set()):
            answers.append(attack.send(target))

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        rate = honest.run(target.server, CONNECTIONS, settings.seconds).rate
    except LoadFailed as error:
        answers.insert(0, f"honest requests failed: {error}")
        rate = 0.0
    ended.set()
    thread.join()
    return answers[0], rate


def _settled_mib(memory: Watch) -> float:
    """The growth after the attack, once it no longer falls."""
    lowest = memory.grown_mib()
    for _ in range(10):
        time.sleep(0.2)
        lowest = min(lowest, memory.grown_mib())
    return lowest


def table(results: list[Result]) -> Iterator[str]:
    """Attack, answer, honest share, CPU, memory."""
    yield (__doc__ or "").strip().partition("\n\n")[2].replace("\n", " ")
    yield ""
    yield "| attack | answer | held | honest rate | server CPU | memory, peak | memory, after |"
    yield "|---|---|---|--:|--:|--:|--:|"
    for result in results:
        told = {name: str(value).replace("|", "/") for name, value in result.figures.items()}
        yield (
            f"| {result.case} | {told['answer']} | {told['held']} "
            f"| {told['honest beside, share']} | {told['server CPU s']} s "
            f"| {told['peak MiB']} MiB | {told['after MiB']} MiB |"
        )
