"""What callers see when something goes wrong with a model, and how long until it is right again.

Every fault is made in a watched repository while two models are asked 50 times a second each:
``m``, to which it is done, and ``other``, which must not notice. Writes ``faults.md`` beside
the results.

What stands in brackets is our own description; everything else was read from the server. The
seconds run from the repair, for a killed process from the kill. The last two faults open the
models in processes of their own, beside the server and without it: how long those took.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import onnx
from onnx import TensorProto, helper

from benchmarks.lifecycle import Caller, put
from benchmarks.results import Goal, Result, Spread
from benchmarks.servers import Server, headrace_server
from benchmarks.settings import Settings

NAME = "faults"
_HUGE = 10 * 1024**4


_OPEN_ALL = """
import sys
from pathlib import Path
from headrace.config import Config
from headrace.engine.opening import open_model
from headrace.repository.layout import scan
for model in scan([Path(sys.argv[1])], config=Config()).models:
    open_model(model, Path(sys.argv[2]))
"""
"""Opens every model of a repository with a cache, in a process of its own."""


class Scene(msgspec.Struct):
    """A running server, its repository, and a place for what does not belong there."""

    server: Server
    repository: Path
    work: Path

    @property
    def model(self) -> Path:
        """The folder to which things are done."""
        return self.repository / "m"

    def states(self) -> dict[tuple[str, str], tuple[str, str]]:
        """As the index says."""
        lines = json.loads(self.server.post("/v2/repository/index", b"{}", {})[1])
        return {(line["name"], line["version"]): (line["state"], line["reason"]) for line in lines}

    def until(self, holds: Callable[[dict[tuple[str, str], tuple[str, str]]], bool]) -> float:
        """Seconds until the index is as wanted."""
        begins_s = time.monotonic()
        while not holds(self.states()):
            if time.monotonic() > begins_s + 60:
                raise TimeoutError(f"never happened; the index says {self.states()}")
            time.sleep(0.02)
        return time.monotonic() - begins_s

    def told(self, version: str) -> str:
        """Waits until the index tells what is wrong with a version."""
        self.until(lambda states: bool(states.get(("m", version), ("", ""))[1]))
        return self.states()["m", version][1]

    def refused(self) -> str:
        """What a command to load the model is told now."""
        status, body = self.server.post("/v2/repository/models/m/load", b"{}", {})
        assert status == 400, body
        return str(json.loads(body)["error"])

    def repair(self, version: int) -> float:
        """A sound version in its place; seconds until it answers."""
        shutil.rmtree(self.model / str(version), ignore_errors=True)
        put(self.model, version, version=version)
        return self.until(lambda states: states.get(("m", str(version)), ("", ""))[0] == "READY")


Fault = Callable[[Scene], tuple[str, float]]
"""Does it; what was told of it, and seconds from its repair until all was well."""


def corrupted(scene: Scene) -> tuple[str, float]:
    """a corrupted file as a new version"""
    (scene.model / "2").mkdir()
    (scene.model / "2" / "model.onnx").write_bytes(os.urandom(4096))
    return scene.told("2"), scene.repair(2)


def half_copied(scene: Scene) -> tuple[str, float]:
    """a version folder that is half copied, and is finished later"""
    put(scene.work / "whole", 2, version=2)
    whole = (scene.work / "whole" / "2" / "model.onnx").read_bytes()
    (scene.model / "2").mkdir()
    (scene.model / "2" / "model.onnx").write_bytes(whole[: len(whole) // 2])
    said = scene.told("2")
    (scene.model / "2" / "model.onnx").write_bytes(whole)
    return said, scene.until(lambda states: states.get(("m", "2"), ("", ""))[0] == "READY")


def deleted(scene: Scene) -> tuple[str, float]:
    """the version that serves is deleted, and another comes later"""
    shutil.rmtree(scene.model / "1")
    (scene.model / "notes.txt").write_text("nothing to load here\n")
    time.sleep(2.5)  # time to notice: what is in memory has to go on serving
    return "(the log: no version left on disk, what is in memory stays)", scene.repair(2)


def nonsense(scene: Scene) -> tuple[str, float]:
    """model.toml becomes nonsense"""
    (scene.model / "model.toml").write_text("threads = 'many'\n")
    said = scene.refused()
    (scene.model / "model.toml").unlink()
    put(scene.model, 2, version=2)
    seconds = scene.until(lambda states: states.get(("m", "2"), ("", ""))[0] == "READY")
    return said, seconds


def link_out(scene: Scene) -> tuple[str, float]:
    """a version that is a link out of the repository"""
    put(scene.work / "elsewhere", 2, version=2)
    (scene.model / "2").symlink_to(scene.work / "elsewhere" / "2")
    said = scene.refused()
    (scene.model / "2").unlink()
    return said, scene.repair(2)


def huge(scene: Scene) -> tuple[str, float]:
    """a model that claims ten terabytes of weights"""
    weight = TensorProto(name="w", dims=[_HUGE // 4], data_type=TensorProto.FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(_HUGE))):
        weight.external_data.add(key=key, value=value)
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "huge", [shape], [out], [weight])
    (scene.model / "2").mkdir()
    (scene.model / "2" / "weights.bin").write_bytes(bytes(64))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (scene.model / "2" / "model.onnx").write_bytes(onnx.ModelProto.SerializeToString(model))
    return scene.told("2"), scene.repair(2)


def failed_warm_up(scene: Scene) -> tuple[str, float]:
    """a version that fails its own warm-up"""
    (scene.model / "2").mkdir()
    put(scene.work / "warm", 2, version=2)
    (scene.model / "2" / "model.toml").write_text(
        '[[warmup]]\nname = "w"\n[warmup.inputs]\nx = '
        '{ datatype = "FP32", shape = [1, 63], data = "zero" }\n'
    )
    shutil.copy(scene.work / "warm" / "2" / "model.onnx", scene.model / "2" / "model.onnx")
    return scene.told("2"), scene.repair(2)


def killed(scene: Scene) -> tuple[str, float]:
    """the process of the model is killed (isolation = "process")"""
    (scene.model / "model.toml").write_text('isolation = "process"\n')
    path = "/v2/repository/models"

    def pids() -> list[int]:
        lines = json.loads(scene.server.get(path)[1])
        return [pid for each in lines if each["name"] == "m" for pid in each.get("processes", ())]

    scene.until(lambda _: bool(pids()))
    (pid,) = pids()
    begins_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    scene.until(lambda _: bool(set(pids()) - {pid}))
    history = json.loads(scene.server.get("/v2/models/m/history")[1])
    said = next(each["reason"] for each in history if str(pid) in each["reason"])
    return said, time.monotonic() - begins_s


def two_at_once(scene: Scene) -> tuple[str, float]:
    """two processes open the models with one cold cache at once"""
    command = [
        sys.executable, "-c",
        _OPEN_ALL,
        str(scene.repository), str(scene.work / "cold"),
    ]  # fmt: skip
    begins_s = time.monotonic()
    both = [subprocess.Popen(command) for _ in range(2)]
    codes = [process.wait(60) for process in both]
    assert codes == [0, 0]
    return "(both processes open every model)", time.monotonic() - begins_s


def full_disk(scene: Scene) -> tuple[str, float]:
    """nothing can be written to the cache (a limit of 0 bytes a file)"""
    command = [
        sys.executable, "-c",
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0));" + _OPEN_ALL,
        str(scene.repository), str(scene.work / "full"),
    ]  # fmt: skip
    begins_s = time.monotonic()
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    return "(every model is opened)", time.monotonic() - begins_s


FAULTS: tuple[Fault, ...] = (
    corrupted,
    half_copied,
    deleted,
    nonsense,
    link_out,
    huge,
    failed_warm_up,
    killed,
    two_at_once,
    full_disk,
)


def measure(fault: Fault, work: Path) -> Result:
    """One fault in a server of its own."""
    shutil.rmtree(work, ignore_errors=True)
    for name in ("m", "other"):
        put(work / "repository" / name, 1)
    with headrace_server(work / "repository", work, "--watch") as server:
        scene = Scene(server, work / "repository", work)
        with Caller(server, "m", 50) as m, Caller(server, "other", 50) as other:
            time.sleep(0.5)
            said, seconds = fault(scene)
            time.sleep(0.5)
    wrong = [answer for answer in m.answers if answer[2] != 200]
    beside = sum(answer[2] != 200 for answer in other.answers)
    unanswered = sum(answer[2] == 0 for answer in (*m.answers, *other.answers))
    return Result(
        benchmark=NAME,
        case=(fault.__doc__ or fault.__name__).strip(),
        figures={
            "requests": len(m.answers),
            "failed": len(wrong),
            "other's failed": beside,
            "well again after s": round(seconds, 2),
            "told": said.replace(str(work), "…")[:240],
            "callers saw": wrong[0][3][:160] if wrong else "answers",
        },
        goals=(
            Goal("other model's failed", Spread.of([beside]), 0, ""),
            Goal("unanswered", Spread.of([unanswered]), 0, ""),
        ),
    )


def run(settings: Settings) -> Iterator[Result]:
    """Every fault; then the table."""
    work = settings.work / NAME
    results = []
    for fault in FAULTS:
        results.append(measure(fault, work / fault.__name__))
        yield results[-1]
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "faults.md").write_text("\n".join(table(results)) + "\n")


def table(results: list[Result]) -> Iterator[str]:
    """Fault, what callers saw, what the operator is told, time to recover."""
    yield (__doc__ or "").strip().rpartition("\n\n")[2].replace("\n", " ")
    yield ""
    yield "| fault | its callers | another's callers | the operator is told | well again after |"
    yield "|---|---|---|---|--:|"
    for result in results:
        figures = {name: str(value).replace("|", "/") for name, value in result.figures.items()}
        seen, beside = figures["callers saw"], figures["other's failed"]
        failed = f"{figures['failed']} of {figures['requests']} failed"
        yield (
            f"| {result.case} | {failed}{': ' + seen if seen != 'answers' else ''} "
            f"| {beside} failed "
            f"| {figures['told']} | {figures['well again after s']} s |"
        )
