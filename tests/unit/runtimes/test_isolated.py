"""Models of other runtimes in child processes: what goes in and out, and what dies."""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import textwrap
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from headrace import machine
from headrace.config import ModelConfig, TensorConfig
from headrace.errors import (
    ConfigError,
    InferenceFailed,
    InstanceDied,
    ModelLoadError,
    PayloadTooLarge,
)
from headrace.runtimes import registry
from headrace.runtimes.base import Artifact, InstanceConfig, ShapePolicy
from headrace.runtimes.isolated import IsolatedModel
from headrace.runtimes.onnx import OnnxRuntime
from headrace.runtimes.python.native_child import NativeModel
from headrace.runtimes.python.native_start import native_start
from headrace.runtimes.shared_tensors import INITIAL_BYTES
from headrace.testing import onnx_models
from tests.unit.runtimes.python_models import Gate

GATED = """
    import os
    from pathlib import Path
    import numpy as np
    from headrace.errors import InferenceFailed, ModelLoadError
    from headrace.runtimes.base import ShapePolicy
    from headrace.types import TensorSpec

    class Runtime:
        name = "gated"
        formats = ("gated",)
        def load(self, artifact, config):
            word = artifact.path.read_text()
            if word == "refuse":
                raise ModelLoadError("no such water", hint="look upstream", depth=3)
            if word == "raise":
                raise KeyError("sluice")
            if word == "exit":
                os._exit(7)
            return Model(artifact, config)

    class Model:
        inputs = (TensorSpec("x", "FP32", (-1,)),)
        outputs = (TensorSpec("pid", "INT64", (1,)), TensorSpec("told", "BYTES", (1,)))
        shape_policy = ShapePolicy(row_multiple=4, length_multiple=32)
        concurrency = 1

        def __init__(self, artifact, config):
            self.folder = artifact.folder
            told = [config.threads, config.concurrency, dict(artifact.options),
                    artifact.config.parameters, os.environ.get("OMP_NUM_THREADS")]
            self.told = repr(told).encode()

        def execute(self, inputs):
            match float(inputs[0][0]):
                case 1.0:
                    self.meet()
                case 2.0:
                    raise InferenceFailed("too wet", hint="drain it", level=5)
                case 3.0:
                    raise ZeroDivisionError("of what")
            told = np.empty(1, object)
            told[0] = self.told
            return [np.array([os.getpid()]), told]

        def meet(self):
            arrived, opened = (os.open(self.folder / n, os.O_RDWR) for n in ("arrived", "opened"))
            os.write(arrived, b"x")
            os.read(opened, 1)

        def unload(self):
            (self.folder / "unloaded").touch()
"""

PLAIN, MEET, FAIL, RAISE = (np.float32([value]) for value in range(4))


@pytest.fixture
def gated(tmp_path, monkeypatch):
    """Makes models of a runtime of another package, found by its entry point."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "headrace_test_gated", raising=False)
    (tmp_path / "headrace_test_gated.py").write_text(textwrap.dedent(GATED))
    info = tmp_path / "headrace_test_gated-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: headrace-test-gated\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        f"[{registry.ENTRY_POINTS}]\ngated = headrace_test_gated:Runtime\n"
    )
    folder = tmp_path / "model"
    folder.mkdir()

    @contextmanager
    def make(word="serve", *, threads=1, concurrency=1, config=None, **options):
        path = folder / "model.gated"
        path.write_text(word)
        artifact = Artifact(
            "weir",
            "2",
            path,
            folder,
            "gated",
            options=options,
            config=config or ModelConfig(),
            may_run_code=True,
        )
        model = IsolatedModel("gated", artifact, InstanceConfig(threads, concurrency))
        try:
            yield model
        finally:
            model.unload()

    make.folder = folder
    return make


def isolated(folder: Path, content: bytes, *, concurrency=1, name="m", **options):
    path = folder / "model.onnx"
    path.write_bytes(content)
    artifact = Artifact(name, "1", path, folder, "onnx", options=options)
    return IsolatedModel("onnxruntime", artifact, InstanceConfig(1, concurrency))


@contextmanager
def loaded(folder: Path, content: bytes, **options):
    model = isolated(folder, content, **options)
    try:
        yield model
    finally:
        model.unload()


# What the engine asks of a model


def test_it_looks_as_it_does_inside_the_server(tmp_path):
    with loaded(tmp_path, onnx_models.embedder(), concurrency=2) as model:
        path = tmp_path / "model.onnx"
        inside = OnnxRuntime().load(Artifact("m", "1", path, tmp_path, "onnx"), InstanceConfig())
        for name in ("inputs", "outputs", "axis_names", "shape_policy"):
            assert getattr(model, name) == getattr(inside, name)
        assert model.concurrency == 2
        assert not model.may_run_inline
        assert not hasattr(model, "instance"), "it keeps no state that a sequence could have"
        inside.unload()


def test_the_child_is_told_what_the_runtime_may_ask(gated):
    config = ModelConfig(
        parameters={"depth": "3"},
        inputs=(TensorConfig(name="x", datatype="FP32", shape=(-1,)),),
        task_options={"labels": ["a name of a class"] * 10_000},  # no message is so large
    )
    with gated(threads=3, concurrency=2, config=config, colour="blue") as model:
        _, told = model.execute([PLAIN])
        assert told[0].decode() == "[3, 1, {'colour': 'blue'}, {'depth': '3'}, '3']"
        assert model.shape_policy == ShapePolicy(row_multiple=4, length_multiple=32)


def test_what_is_said_of_its_processes_is_not_for_the_runtime(tmp_path):
    model = onnx_models.identity("FP32", ("batch", 4))
    with loaded(tmp_path, model, max_shared_bytes=4096) as small:
        with pytest.raises(PayloadTooLarge, match="max_shared_bytes is 4096"):
            small.execute([np.zeros((1024, 4), np.float32)])
        assert small.execute([np.ones((2, 4), np.float32)])[0].sum() == 8
    with pytest.raises(ModelLoadError, match="restart_delay_s") as caught:
        isolated(tmp_path, model, restart_delay_s=-1)
    assert "start_timeout_s" in caught.value.hint


# Tensors


@pytest.mark.parametrize("rows", [0, 1, INITIAL_BYTES // 16, 5 * INITIAL_BYTES // 16])
def test_no_rows_and_more_than_a_segment_holds(tmp_path, rows):
    with loaded(tmp_path, onnx_models.identity("FP32", ("batch", 4))) as model:
        sent = np.random.default_rng(rows).random((rows, 4), np.float32)
        for _ in range(2):
            (got,) = model.execute([sent])
            assert got.dtype == sent.dtype
            assert np.array_equal(got, sent)


def test_texts_that_grow_and_shrink(tmp_path):
    with loaded(tmp_path, onnx_models.identity("BYTES", ("batch",))) as model:
        for size in (3, 2 * INITIAL_BYTES, 0):
            sent = np.empty(2, object)
            sent[:] = ["é".encode(), b"x" * size]
            assert model.execute([sent])[0].tolist() == sent.tolist()
        none = np.empty((0,), object)
        assert model.execute([none])[0].shape == (0,)


# Errors


def test_what_the_runtime_raises_on_purpose_arrives_without_its_traceback(gated, caplog):
    with gated() as model:
        with pytest.raises(InferenceFailed) as caught:
            model.execute([FAIL])
        error = caught.value
        assert (error.message, error.hint, error.details) == ("too wet", "drain it", {"level": 5})
        assert "Traceback" not in caplog.text
        assert model.execute([PLAIN])[0][0] in model.process_ids()


def test_what_it_raises_by_mistake_is_a_failure_with_a_traceback_in_the_log(gated, caplog):
    with gated() as model:
        with pytest.raises(InferenceFailed, match=r"'weir' failed: ZeroDivisionError\('of what'\)"):
            model.execute([RAISE])
        assert "headrace_test_gated.py" in caplog.text
        assert model.execute([PLAIN])[0][0] in model.process_ids()


@pytest.mark.parametrize("value", [2, 3])
def test_a_failure_does_not_hold_its_batch(gated, value):
    """A segment is lent until its arrays are gone, and a cycle would keep them for long."""
    (gated.folder / "model.gated").write_text("serve")
    path = gated.folder / "model.gated"
    artifact = Artifact("weir", "2", path, gated.folder, "gated", may_run_code=True)
    told = native_start("gated", artifact, InstanceConfig())
    model = NativeModel("weir", str(artifact.path), told)
    batch = np.full(1, value, np.float32)
    gone = weakref.ref(batch)
    gc.disable()
    try:
        try:
            model([batch])
        except InferenceFailed:
            del batch
        assert gone() is None
    finally:
        gc.enable()


def test_a_refusal_of_the_runtime_is_the_servers_own(gated):
    with pytest.raises(ModelLoadError) as caught, gated("refuse"):
        pass
    error = caught.value
    assert (error.message, error.hint, error.details) == (
        "no such water",
        "look upstream",
        {"depth": 3},
    )


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("raise", r"the runtime gated failed to load model 'weir': KeyError\('sluice'\)"),
        ("exit", r"exited with status 7 while it loaded .*model\.gated"),
    ],
)
def test_a_runtime_that_does_not_keep_the_contract_takes_nothing_down(gated, word, told):
    with pytest.raises(ModelLoadError, match=told), gated(word):
        pass


def test_a_runtime_that_is_not_there_is_said_before_anything_is_started(tmp_path):
    artifact = Artifact("m", "1", tmp_path / "m.onnx", tmp_path, "onnx")
    with pytest.raises(ConfigError, match="'onyx'"):
        IsolatedModel("onyx", artifact, InstanceConfig())


def test_the_folder_of_a_model_is_not_imported_from(gated):
    (gated.folder / "numpy.py").write_text("raise SystemExit('this is data, not a program')")
    with gated() as model:
        assert len(model.execute([PLAIN])) == 2


# Deaths


def test_a_kill_in_a_batch_fails_that_batch_and_the_next_ones_wait_for_the_restart(gated):
    gate = Gate(gated.folder)
    with gated() as model, ThreadPoolExecutor(3) as threads:
        events: queue.SimpleQueue[str] = queue.SimpleQueue()
        model.on_event = events.put
        (pid,) = model.process_ids()
        met = threads.submit(model.execute, [MEET])
        gate.wait()
        waiting = [threads.submit(model.execute, [PLAIN]) for _ in range(2)]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(InstanceDied, match="child process of 'weir' was killed by SIGKILL"):
            met.result(30)
        others = {int(each.result(30)[0][0]) for each in waiting}
        assert len(others) == 1
        assert others.isdisjoint({pid})
        assert others == set(model.process_ids())
        assert events.get(timeout=30).startswith(f"child process {pid} was killed by SIGKILL")
        assert events.get(timeout=30) == f"child process {others.pop()} serves"
        assert events.empty()
    gate.close()


def test_a_listener_that_fails_does_not_stop_the_restart(gated, caplog):
    with gated() as model:
        told = threading.Event()

        def fail(_event):
            told.set()
            raise ValueError("deaf")

        model.on_event = fail
        (pid,) = model.process_ids()
        os.kill(pid, signal.SIGKILL)
        assert told.wait(30)
        assert _answer_after_a_death(model) != pid
        assert "deaf" in caplog.text


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (2, 3, "was killed by the kernel: out of memory"),
        (2, 2, r"was killed by SIGKILL \(by hand: the kernel killed nobody for memory\)"),
        (None, None, r"was killed by SIGKILL \(out of memory, or by hand\)"),
    ],
)
def test_the_kernels_counter_says_whether_memory_was_the_reason(
    gated, monkeypatch, before, after, told
):
    gate = Gate(gated.folder)
    monkeypatch.setattr(machine, "oom_kills", lambda: before)
    with gated() as model, ThreadPoolExecutor(1) as threads:
        met = threads.submit(model.execute, [MEET])
        gate.wait()
        monkeypatch.setattr(machine, "oom_kills", lambda: after)
        os.kill(model.process_ids()[0], signal.SIGKILL)
        with pytest.raises(InstanceDied, match=told):
            met.result(30)
    gate.close()


def _answer_after_a_death(model) -> int:
    """The batch that still meets the dying child fails; the next waits for another one."""
    try:
        return int(model.execute([PLAIN])[0][0])
    except InstanceDied:
        return int(model.execute([PLAIN])[0][0])


# Ends


def test_the_model_in_the_child_is_unloaded_too(gated):
    with gated():
        pass
    assert (gated.folder / "unloaded").exists()


def test_nothing_stays_after_unloading(tmp_path):
    """Descriptors, threads, mappings, processes: all cycles end where the first one ended."""
    content = onnx_models.identity("FP32", ("batch", 4))
    pids: list[int] = []

    def cycle() -> tuple[int, int, int]:
        model = isolated(tmp_path, content)
        pids.extend(model.process_ids())
        (answer,) = model.execute([np.ones((INITIAL_BYTES // 8, 4), np.float32)])
        model.unload()
        assert answer.sum() == INITIAL_BYTES // 2, "an answer outlives its model"
        del answer, model
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count("memfd:headrace")
        files = len(list(Path("/proc/self/fd").iterdir()))
        return files, maps, threading.active_count()

    files, maps, threads = cycle()
    for _ in range(5):
        assert cycle() == (files, maps, threads)
    assert maps == 0
    assert len(set(pids)) == 6
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
