"""Models in child processes: what becomes of them when something dies."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import InferenceFailed, InstanceDied, ModelLoadError, PayloadTooLarge
from headrace.runtimes.python import child as child_module
from headrace.runtimes.python import supervisor as supervisor_module
from tests.unit.runtimes.python_models import Gate, load, loaded, write_model

ROWS = np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])

PID = """
def predict(x: Table) -> Column:
    meet() if x[0, 0] < 0 else None
    return [os.getpid()] * len(x)
"""


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path)
    yield gate
    gate.close()


@pytest.fixture
def log():
    """Waits for a line in the runtime's log."""

    class Waiter(logging.Handler):
        def __init__(self):
            super().__init__()
            self.lines = queue.SimpleQueue()

        def emit(self, record):
            self.lines.put(record.getMessage())

        def wait_for(self, text):
            while text not in (line := self.lines.get(timeout=30)):
                pass
            return line

    waiter = Waiter()
    logger = logging.getLogger("headrace.runtimes.python")
    logger.addHandler(waiter)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield waiter
    logger.removeHandler(waiter)
    logger.setLevel(level)


def pid_of(model):
    return int(model.execute([ROWS])[0][0])


def ended(pidfd):
    """Whether that process ends, within a time that only a failure takes."""
    return bool(select.select([pidfd], [], [], 30)[0])


@contextlib.contextmanager
def blocked(model, gate):
    """A batch that is inside ``predict``, as a future."""
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(model.execute, [-ROWS])
        gate.wait()
        yield future


# Deaths


def test_a_child_that_is_killed_in_a_batch_fails_that_batch_and_is_back_for_the_next(
    tmp_path, gate
):
    with loaded(tmp_path, PID, name="frail") as model:
        pid = pid_of(model)
        with blocked(model, gate) as batch:
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(InstanceDied, match=r"of 'frail' was killed by SIGKILL"):
                batch.result()
        assert pid_of(model) != pid


DEATHS = {
    1: ("sys.exit(3)", "exited with status 3"),
    2: ("sys.exit()", "exited with status 0"),
    3: ("os._exit(5)", "exited with status 5"),
    4: ("os.abort()", "was killed by signal 6"),
    5: ("__import__('ctypes').string_at(0)", "was killed by signal 11"),
    6: ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", "was killed by signal 37"),
}


def test_how_it_died_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor_module, "HEALTHY_S", 0.0)  # every pause is the first
    source = f"""
    def predict(x: Table) -> Table:
        statement, _ = {DEATHS}.get(-x[0, 0], ("", ""))
        exec(statement)
        return x
    """
    with loaded(tmp_path, source, restart_delay_s=0.01) as model:
        for number, (_, reason) in DEATHS.items():
            with pytest.raises(InstanceDied, match=reason) as caught:
                model.execute([np.full((1, 4), -number, np.float32)])
            assert caught.value.details["reason"].startswith(reason)
            assert np.array_equal(model.execute([ROWS])[0], ROWS)


def test_exit_from_a_coroutine_ends_the_child_too(tmp_path):
    source = "async def predict(x: Table) -> Table: sys.exit(9)"
    with (
        loaded(tmp_path, source) as model,
        pytest.raises(InstanceDied, match="exited with status 9"),
    ):
        model.execute([ROWS])


def test_a_child_that_dies_idle_is_replaced_without_anyone_noticing(tmp_path, log):
    with loaded(tmp_path, PID) as model:
        pid = pid_of(model)
        os.kill(pid, signal.SIGKILL)
        log.wait_for("serves")
        assert pid_of(model) != pid


def test_one_of_two_dies_and_the_other_serves_on_alone(tmp_path, gate, log):
    with (
        loaded(tmp_path, PID, concurrency=2, restart_delay_s=300.0) as model,
        blocked(model, gate) as batch,
        ThreadPoolExecutor(1) as executor,
    ):
        idle = pid_of(model)
        os.kill(idle, signal.SIGKILL)
        log.wait_for("next start in 300.0 s")
        waiting = executor.submit(pid_of, model)
        gate.open()
        assert waiting.result() == batch.result()[0][0] != idle


def test_during_a_long_pause_batches_are_refused_at_once_and_told_when(tmp_path):
    with loaded(tmp_path, PID, restart_delay_s=300.0) as model:
        os.kill(pid_of(model), signal.SIGKILL)
        refusals = []
        while len(refusals) < 3:  # the first may still meet the dying child
            with pytest.raises(InstanceDied) as caught:
                model.execute([ROWS])
            refusals.append(caught.value.details.get("retry_after_s"))
        assert 200 < refusals[-1] <= 300


def test_nobody_waits_for_a_child_that_takes_too_long_to_come_back(tmp_path, gate, monkeypatch):
    monkeypatch.setattr("headrace.runtimes.python.pool.RECOVERY_WAIT_S", 0.05)
    source = """
    class Slow:
        def load(self):
            if os.path.exists(flag := os.path.join(os.path.dirname(__file__), "flag")):
                meet()
            open(flag, "w").close()

        def predict(self, x: Table) -> Column:
            return [os.getpid()] * len(x)
    """
    with loaded(tmp_path, source) as model:
        os.kill(pid_of(model), signal.SIGKILL)
        gate.wait()
        with pytest.raises(InstanceDied, match="is alive: one is starting"):
            model.execute([ROWS])
        gate.open()


def test_a_restart_that_fails_is_tried_again_and_a_changed_signature_is_refused(tmp_path, log):
    with loaded(tmp_path, PID, restart_delay_s=0.01) as model:
        first = pid_of(model)
        write_model(tmp_path, "def predict(x: Table) -> Table: return x")
        os.kill(first, signal.SIGKILL)
        assert "changed its inputs or outputs" in log.wait_for("restart failed")
        write_model(tmp_path, "def predict(x: Table) -> Column: oh no")
        assert "SyntaxError" in log.wait_for("SyntaxError")
        write_model(tmp_path, PID)
        log.wait_for("serves")
        assert pid_of(model) != first


def test_what_a_child_left_running_dies_with_it(tmp_path):
    source = """
    import subprocess
    def predict(x: Table) -> Column:
        if x[0, 0] < 0:
            sys.exit(1)
        return [subprocess.Popen(["sleep", "1000"]).pid] * len(x)
    """
    with loaded(tmp_path, source) as model:
        pidfd = os.pidfd_open(int(model.execute([ROWS])[0][0]))
        with pytest.raises(InstanceDied):
            model.execute([-ROWS])
        assert ended(pidfd)
        os.close(pidfd)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_children_die_with_the_server(tmp_path, how):
    path = write_model(tmp_path, PID)
    server = f"""
    import sys, time
    from pathlib import Path
    import numpy as np
    from headrace.runtimes.base import Artifact, InstanceConfig
    from headrace.runtimes.python import PythonRuntime
    path = Path({str(path)!r})
    model = PythonRuntime().load(
        Artifact("m", "1", path, path.parent, "python"), InstanceConfig())
    print(model.execute([np.ones((1, 4), "f4")])[0][0], flush=True)
    time.sleep(1000)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(server)], stdout=subprocess.PIPE, text=True
    )
    pidfd = os.pidfd_open(int(process.stdout.readline()))
    process.send_signal(how)
    process.wait()
    process.stdout.close()
    assert ended(pidfd)
    os.close(pidfd)


# Signals that are not for the child


def test_signals_to_the_group_do_not_disturb_a_batch(tmp_path, gate):
    with loaded(tmp_path, PID) as model:
        pid = pid_of(model)
        with blocked(model, gate) as batch:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                os.kill(pid, number)
            gate.open()
            assert batch.result()[0][0] == pid
        assert pid_of(model) == pid


def test_signals_while_the_interpreter_starts_do_not_end_it(tmp_path, monkeypatch):
    early = tmp_path / "early"
    early.mkdir()
    (early / "sitecustomize.py").write_text(
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    monkeypatch.syspath_prepend(early)
    with loaded(tmp_path, PID) as model:
        assert pid_of(model)


def test_programs_that_a_model_starts_do_not_inherit_its_deafness(tmp_path):
    source = """
    import subprocess
    def predict(x: Table) -> list[str]:
        program = "from signal import *; print(getsignal(2).__name__, getsignal(15) == SIG_DFL)"
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        mask = subprocess.run(["grep", "SigBlk", "/proc/self/status"], capture_output=True)
        return [f"{out.stdout.strip()} {int(mask.stdout.split()[1], 16)}"] * len(x)
    """
    with loaded(tmp_path, source) as model:
        assert model.execute([ROWS])[0][0] == b"default_int_handler True 0"


# Ends


def test_unload_runs_what_the_model_registered_for_its_end(tmp_path):
    source = """
    import atexit
    @atexit.register
    def leave():
        open(os.path.join(os.path.dirname(__file__), "left"), "w").close()

    def predict(x: Table) -> Table:
        return x
    """
    with loaded(tmp_path, source):
        pass
    assert (tmp_path / "left").exists()


A_THREAD = "import threading; threading.Thread(target=time.sleep, args=(1000,)).start()"
AT_EXIT = "import atexit; atexit.register(time.sleep, 1000)"
DEAF = AT_EXIT + "; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.mark.parametrize("obstacle", [A_THREAD, AT_EXIT, DEAF])
def test_a_child_that_will_not_leave_is_made_to(tmp_path, monkeypatch, obstacle):
    monkeypatch.setattr(supervisor_module, "LEAVE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(supervisor_module, "KILL_TIMEOUT_S", 0.05)
    model = load(write_model(tmp_path, obstacle + PID))
    pidfd = os.pidfd_open(pid_of(model))
    model.unload()
    assert ended(pidfd)
    os.close(pidfd)


def test_after_unload_there_is_nothing_to_call(tmp_path):
    with loaded(tmp_path, PID, name="gone") as model:
        pass
    with pytest.raises(InstanceDied, match="'gone' was unloaded"):
        model.execute([ROWS])


def test_unload_during_a_pause_ends_the_pause(tmp_path, log):
    with loaded(tmp_path, PID, restart_delay_s=300.0) as model:
        os.kill(pid_of(model), signal.SIGKILL)
        log.wait_for("next start")


def test_unload_while_a_batch_runs_answers_the_batch(tmp_path, gate, monkeypatch):
    """The engine does not do that; if someone does, nobody may wait for ever."""
    monkeypatch.setattr(supervisor_module, "LEAVE_TIMEOUT_S", 0.05)
    model = load(write_model(tmp_path, PID))
    with blocked(model, gate) as batch:
        model.unload()
        with pytest.raises(InstanceDied):
            batch.result()


def belongings():
    gc.collect()
    return (
        len(list(Path("/proc/self/fd").iterdir())),
        sorted(thread.name for thread in threading.enumerate()),
        # Other test processes name theirs so, and come and go meanwhile.
        sorted(
            path.name
            for path in Path("/dev/shm").iterdir()
            if not path.name.startswith("headrace-test-")
        ),
        children(),
    )


def children():
    """Processes of ours, without the one that Python keeps once anybody used shared memory."""
    tracker = resource_tracker._resource_tracker._pid
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in pids if pid != str(tracker)]


def load_and_unload(tmp_path, times):
    path = write_model(tmp_path, PID)
    before = None
    for _ in range(times):
        model = load(path, concurrency=2)
        model.execute([np.ones((100_000, 4), np.float32)])
        model.unload()
        del model
        before = before or belongings()  # the first time something is imported
    assert belongings() == before


def test_loading_and_unloading_leaves_nothing_behind(tmp_path):
    load_and_unload(tmp_path, 5)


@pytest.mark.slow
def test_loading_and_unloading_fifty_times_leaves_nothing_behind(tmp_path):
    load_and_unload(tmp_path, 50)


def test_deaths_leave_nothing_behind(tmp_path):
    before = None
    for _ in range(4):
        with loaded(tmp_path, PID) as model:
            os.kill(pid_of(model), signal.SIGKILL)
            while True:
                with contextlib.suppress(InstanceDied):
                    model.execute([ROWS])
                    break
        del model
        before = before or belongings()
    assert belongings() == before


# Beginnings


def test_a_child_that_dies_while_it_loads_says_how(tmp_path):
    source = "os.abort()\ndef predict(x: Table) -> Table: return x"
    with pytest.raises(ModelLoadError, match=r"was killed by signal 6.*while it loaded") as caught:
        load(write_model(tmp_path, source))
    assert "log" in caught.value.hint


def test_a_load_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    source = """
    class Slow:
        def load(self):
            time.sleep(1000)
        def predict(self, x: Table) -> Table: ...
    """
    monkeypatch.setattr(supervisor_module, "LEAVE_TIMEOUT_S", 0.05)
    with pytest.raises(ModelLoadError, match=r"not loaded within start_timeout_s = 0\.5"):
        load(write_model(tmp_path, source), start_timeout_s=0.5)
    assert children() == []


def test_if_one_child_cannot_load_none_is_left(tmp_path):
    source = """
    os.close(os.open(os.path.join(os.path.dirname(__file__), "only-one"), os.O_CREAT | os.O_EXCL))
    def predict(x: Table) -> Table: ...
    """
    with pytest.raises(ModelLoadError, match="FileExistsError"):
        load(write_model(tmp_path, source), concurrency=2)
    assert children() == []


def test_a_process_that_cannot_be_started_is_a_load_error(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    path = write_model(tmp_path, PID)
    before = belongings()
    monkeypatch.setattr(child_module.subprocess, "Popen", refuse)
    with pytest.raises(ModelLoadError, match=r"cannot start.*unavailable"):
        load(path, concurrency=3)
    assert belongings() == before


def test_a_process_that_cannot_be_watched_is_not_left_running(tmp_path, monkeypatch):
    def refuse(pid):
        raise OSError(24, "Too many open files")

    path = write_model(tmp_path, PID)
    before = belongings()
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(ModelLoadError, match="Too many open files"):
        load(path)
    assert belongings() == before


def test_where_the_kernel_lacks_what_it_takes_the_hint_is_the_other_isolation(
    tmp_path, monkeypatch
):
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(ModelLoadError, match="needs Linux") as caught:
        load(write_model(tmp_path, PID))
    assert 'isolation = "thread"' in caught.value.hint


def test_a_signature_that_does_not_fit_a_message_is_a_load_error(tmp_path):
    source = "def predict(x: Table) -> tuple[" + "Table, " * 4000 + "]: ..."
    with pytest.raises(ModelLoadError, match="a message to or from a child process may have"):
        load(write_model(tmp_path, source))


# What passes between


@pytest.mark.parametrize("megabytes", [1, 9, 40])
def test_answers_and_batches_of_any_size_pass(tmp_path, megabytes):
    source = "def predict(x: Table) -> Table: return x + 1"
    rows = np.zeros((megabytes * 65536, 4), np.float32)
    with loaded(tmp_path, source) as model:
        answer = model.execute([rows])[0]
        assert answer.shape == rows.shape
        assert (answer == 1).all()


def test_an_answer_above_the_limit_fails_alone(tmp_path):
    source = """
    def predict(x: Table) -> Annotated[np.ndarray, "UINT8[N,D]"]:
        return np.ones((len(x), int(x[0, 0])), "u1")
    """
    with loaded(tmp_path, source, max_shared_bytes=4_000_000) as model:
        for size, fits in ((3, True), (3_000_000, False), (2_000_000, True), (5, True)):
            rows = np.full((2, 4), size, np.float32)
            if fits:
                assert model.execute([rows])[0].shape == (2, size)
            else:
                with pytest.raises(InferenceFailed, match="max_shared_bytes is 4000000"):
                    model.execute([rows])
        with pytest.raises(PayloadTooLarge, match="max_shared_bytes"):
            model.execute([np.ones((300_000, 4), np.float32)])
        assert model.execute([ROWS])[0].shape == (2, 1)


def test_a_very_long_message_is_cut_and_its_end_is_kept(tmp_path):
    source = "def predict(x: Table) -> Table: raise ValueError('x' * 1_000_000 + 'the end')"
    with loaded(tmp_path, source) as model, pytest.raises(InferenceFailed) as caught:
        model.execute([ROWS])
    assert len(caught.value.message) < 20_000
    assert "the end (model.py" in caught.value.message


def test_a_child_that_breaks_the_protocol_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(child_module, "EXIT_TIMEOUT_S", 0.01)
    source = """
    import socket, stat
    def predict(x: Table) -> Table:
        if x[0, 0] < 0:
            for name in os.listdir("/proc/self/fd"):
                if int(name) > 2 and os.path.exists(f"/proc/self/fd/{name}"):
                    if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                        os.write(int(name), b"garbage")
        return x
    """
    with loaded(tmp_path, source) as model:
        with pytest.raises(InstanceDied, match="had to be killed"):
            model.execute([-ROWS])
        assert np.array_equal(model.execute([ROWS])[0], ROWS)


def test_an_interrupted_caller_does_not_leave_its_answer_to_the_next(tmp_path, gate):
    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        raise Interrupted

    def when_arrived(main):
        gate.wait()
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with loaded(tmp_path, PID) as model:
            pid = pid_of(model)
            helper = threading.Thread(target=when_arrived, args=(threading.get_ident(),))
            helper.start()
            with pytest.raises(Interrupted):
                model.execute([-ROWS])
            helper.join()
            assert pid_of(model) != pid
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_child_s_world_is_that_of_a_program_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/its/own")
    (tmp_path / "neighbour.py").write_text("value = 1\n")
    source = """
    import neighbour
    def predict(x: Table) -> list[str]:
        return [repr((sys.argv, sys.path[0], os.environ["PYTHONPATH"], sys.stdin.read(),
                      os.environ["OMP_NUM_THREADS"], "pytest" in sys.modules))] * len(x)
    """
    with loaded(tmp_path, source, threads=3) as model:
        seen = model.execute([ROWS])[0][0].decode()
    path = str(tmp_path / "model.py")
    assert seen == repr(([path], str(tmp_path), "/its/own", "", "3", False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.py", "neighbour.py"]
    assert str(tmp_path) not in sys.path


def test_what_a_child_prints_appears_with_the_model_s_name(tmp_path, capfd):
    source = """
    def predict(x: Table) -> Table:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.write(1, b"\\xff raw, and no end")
        return x
    """
    with loaded(tmp_path, source, name="chatty") as model:
        model.execute([ROWS])
    captured = capfd.readouterr()
    assert captured.out == ""
    for line in ("[chatty] to stdout\n", "[chatty] to stderr\n", "[chatty] \ufffd raw, and no end"):
        assert line in captured.err


def test_more_callers_than_children_take_turns(tmp_path):
    source = "def predict(x: Table) -> Table: return x"
    with loaded(tmp_path, source, concurrency=2) as model, ThreadPoolExecutor(8) as executor:
        batches = [ROWS * number for number in range(200)]
        answers = executor.map(lambda batch: model.execute([batch])[0].copy(), batches)
        assert all(map(np.array_equal, answers, batches))


@pytest.mark.slow
def test_under_fire_every_batch_gets_its_own_answer_or_an_error(tmp_path, monkeypatch, log):
    monkeypatch.setattr(supervisor_module, "HEALTHY_S", 0.0)  # every pause is the first
    source = """
    def predict(x: Table, note: list[str]) -> tuple[Table, list[str], Column]:
        return x, note, [os.getpid()] * len(x)
    """
    over = threading.Event()
    wrong, answered = [], []

    def call(model, thread):
        number = 0
        while not over.is_set():
            number += 1
            rows = np.full((1 + number % 700, 4), thread * 1_000_000 + number, np.float32)
            note = np.array([f"{thread}-{number}".encode()] * len(rows), object)
            try:
                echoed, noted, _ = model.execute([rows, note])
            except InstanceDied:
                continue
            answered.append(thread)
            if not (np.array_equal(echoed, rows) and np.array_equal(noted, note)):
                wrong.append((thread, number))

    with loaded(tmp_path, source, concurrency=3, restart_delay_s=0.01) as model:
        threads = [threading.Thread(target=call, args=(model, index)) for index in range(6)]
        for thread in threads:
            thread.start()
        one = [ROWS[:1], np.array([b"x"], object)]
        for _ in range(40):
            with contextlib.suppress(InstanceDied):
                os.kill(int(model.execute(one)[2][0]), signal.SIGKILL)
                log.wait_for("serves")
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert set(answered) == set(range(6))
