"""The supervisor against real child processes that do what a small script says.

Everything is awaited: a worker's word on its socket pair, a roster, an exit. The children
speak the wire directly, so that they start in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace.errors import ConfigError, OperatorError
from headrace.server.link import Roster, Seat
from headrace.server.processes import EXIT_INTERRUPTED, Backoff, Supervisor, run_workers

QUICK = Backoff(first_s=0.001, most_s=0.002, give_up_after=3)

PRELUDE = """
import json, os, signal, socket, sys, time
seat = json.loads(sys.argv[1])
link = socket.socket(fileno=seat["channel_fd"])
def say(**message): link.send(json.dumps(message).encode())
def here(name): return os.path.join(seat["run_dir"], name)
def log(word):
    with open(sys.argv[2], "a") as file: file.write(f"{seat['index']}:{word}\\n")
"""

SERVE = "signal.signal(signal.SIGTERM, lambda *_: (log('drained'), os._exit(0)))\n"
READY = "say(type='ready')\n"
FOREVER = "while True: signal.pause()\n"

Command = Callable[[Seat], list[str]]


def worker(body: str, log: Path) -> Command:
    script = PRELUDE + body

    def command(seat: Seat) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", script, seat.encode(), str(log)]

    return command


class Rosters:
    """Collects rosters and lets a test wait for the one it needs."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[Roster] = asyncio.Queue()

    def __call__(self, roster: Roster) -> None:
        self._arrived.put_nowait(roster)

    async def until(self, wanted: Callable[[Roster], bool]) -> Roster:
        async with asyncio.timeout(30):
            while not wanted(roster := await self._arrived.get()):
                pass
        return roster


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[asyncio.Task[int]]:
    task = asyncio.create_task(supervisor.run())
    try:
        yield task
    finally:
        supervisor.kill()
        await asyncio.wait([task])


def make(
    count: int, command: Command, rosters: Rosters | None = None, stop_timeout_s: float = 30
) -> Supervisor:
    return Supervisor(
        count, command, stop_timeout_s=stop_timeout_s, backoff=QUICK, on_roster=rosters
    )


async def test_all_workers_become_ready_and_drain_when_told_to_stop(log: Path) -> None:
    rosters = Rosters()
    supervisor = make(3, worker(SERVE + READY + FOREVER, log), rosters)
    async with running(supervisor) as task:
        assert await rosters.until(lambda r: r.ready == 3) == Roster(count=3, ready=3, restarts=0)
        supervisor.stop()
        assert await task == 0
    assert sorted(log.read_text().split()) == ["0:drained", "1:drained", "2:drained"]
    assert supervisor.statistics().ready == 0


async def test_readiness_counts_only_those_who_said_so(log: Path) -> None:
    rosters = Rosters()
    only_the_first = SERVE + "if seat['index'] == 0: say(type='ready')\n" + FOREVER
    supervisor = make(2, worker(only_the_first, log), rosters)
    async with running(supervisor):
        assert (await rosters.until(lambda r: True)).ready == 1
        assert supervisor.statistics() == Roster(count=2, ready=1, restarts=0)


async def test_a_dead_worker_is_replaced_and_missed_meanwhile(log: Path) -> None:
    rosters = Rosters()
    body = SERVE + "log(f'pid={os.getpid()} generation={seat[\"generation\"]}')\n" + READY + FOREVER
    supervisor = make(2, worker(body, log), rosters)
    async with running(supervisor) as task:
        await rosters.until(lambda r: r.ready == 2)
        victim = int(log.read_text().split("0:pid=")[1].split()[0])
        os.kill(victim, signal.SIGKILL)
        assert (await rosters.until(lambda r: r.ready < 2)).ready == 1
        assert await rosters.until(lambda r: r.ready == 2) == Roster(count=2, ready=2, restarts=1)
        supervisor.stop()
        assert await task == 0
    starts = [line for line in log.read_text().splitlines() if line.startswith("0:pid")]
    assert [line.rpartition("=")[2] for line in starts] == ["0", "1"]


async def test_a_worker_that_hangs_is_killed_and_replaced(log: Path, caplog) -> None:
    rosters = Rosters()
    # The first in each place says nothing after it is ready; those after it do.
    body = READY + "beat = seat['beat_s'] / 4 if seat['generation'] else 1e6\n"
    body += "while True: time.sleep(beat); say(type='alive')\n"
    command = worker(body, log)
    supervisor = Supervisor(
        2, command, stop_timeout_s=0, worker_timeout_s=3, backoff=QUICK, on_roster=rosters
    )
    async with running(supervisor):
        await rosters.until(lambda r: r.restarts >= 2 and r.ready == 2)
    assert "worker 0 hung: it was not heard of for 3 s, and was killed" in caplog.text


async def test_what_is_heard_counts_and_not_the_time(log: Path) -> None:
    """However long this process was held up: it listens before it judges."""
    rosters = Rosters()
    body = READY + "while True: say(type='alive'); time.sleep(0.01)\n"
    supervisor = Supervisor(
        1, worker(body, log), stop_timeout_s=0, worker_timeout_s=3600, on_roster=rosters
    )
    async with running(supervisor):
        await rosters.until(lambda r: r.ready == 1)
        place = supervisor._places[0]
        place.unheard = 5
        assert place.channel is not None
        await asyncio.to_thread(select.select, [place.channel], [], [], 30)
        supervisor._read(place)
        assert place.unheard == 0


async def test_workers_hear_how_many_are_ready(log: Path) -> None:
    """The second worker speaks only after it heard of the first one, at once or later."""
    rosters = Rosters()
    body = (
        "if seat['index'] == 1:\n"
        "    while json.loads(link.recv(4096))['ready'] < 1: pass\n"
        "    if seat['generation'] == 0: sys.exit(1)\n"
    )
    async with running(make(2, worker(body + READY + FOREVER, log), rosters)):
        assert (await rosters.until(lambda r: r.ready == 2)).restarts == 1


async def test_a_reason_that_every_worker_has_is_told_once(log: Path) -> None:
    body = (
        "say(type='failed', message='model.onnx is cut short', code='model_load_error', "
        "hint='fetch it again')\nlog('started')\nsys.exit(1)\n"
    )
    supervisor = make(3, worker(body, log))
    with pytest.raises(OperatorError, match=r"^model\.onnx is cut short$") as caught:
        await supervisor.run()
    assert caught.value.hint == "fetch it again"
    assert caught.value.code == "model_load_error"
    assert sorted(log.read_text().split()) == ["0:started", "1:started", "2:started"]


async def test_a_worker_that_dies_without_a_word_has_its_signal_named(log: Path) -> None:
    supervisor = make(1, worker("os.kill(os.getpid(), signal.SIGSEGV)\n", log))
    with pytest.raises(OperatorError, match=r"worker 0 .*SIGSEGV.* before it was ready"):
        await supervisor.run()


async def test_a_command_that_does_not_exist_is_an_error_not_a_loop() -> None:
    supervisor = make(2, lambda _: ["/nonexistent/python"])
    with pytest.raises(OperatorError, match="cannot be started"):
        await supervisor.run()


async def test_one_failed_start_among_several_is_told_and_tried_again(
    log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rosters = Rosters()
    body = SERVE + "if seat['index'] == 1 and seat['generation'] == 0: sys.exit(7)\n"
    supervisor = make(2, worker(body + READY + FOREVER, log), rosters)
    async with running(supervisor):
        assert (await rosters.until(lambda r: r.ready == 2)).restarts == 1
    assert "worker 1 ended with status 7 before it was ready; starting it again" in caplog.text


async def test_a_group_that_can_no_longer_start_ends_instead_of_looping(log: Path) -> None:
    body = "log('start')\nif seat['generation'] > 0: sys.exit(3)\n" + READY + "sys.exit(4)\n"
    with pytest.raises(OperatorError, match="status 3 before it was ready"):
        await make(1, worker(body, log)).run()
    assert log.read_text().count("start") == 1 + QUICK.give_up_after


async def test_a_worker_that_will_not_leave_is_ended_and_the_status_tells(log: Path) -> None:
    rosters = Rosters()
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    supervisor = make(1, worker(deaf + READY + FOREVER, log), rosters, stop_timeout_s=0.01)
    async with running(supervisor) as task:
        await rosters.until(lambda r: r.ready == 1)
        supervisor.stop()
        assert await task == 1


async def test_stopping_before_a_worker_is_ready_is_clean(log: Path) -> None:
    supervisor = make(2, worker(FOREVER, log))
    supervisor.stop()
    async with running(supervisor) as task:
        assert await task == 0


async def test_what_a_worker_started_ends_with_it(log: Path, tmp_path: Path) -> None:
    """The child's end of a pipe closes only when the child is gone."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    body = (
        f"if seat['generation'] == 0 and os.fork() == 0:\n"
        f"    alive = open({str(fifo)!r}, 'w')\n    alive.write('x'); alive.flush()\n"
        f"    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"    while True: signal.pause()\n"
    )
    supervisor = make(1, worker(SERVE + body + READY + FOREVER, log), rosters := Rosters())
    async with running(supervisor) as task:
        with await asyncio.to_thread(fifo.open) as alive:
            assert await asyncio.to_thread(alive.read, 1) == "x"
            await rosters.until(lambda r: r.ready == 1)
            supervisor.stop()
            assert await task == 0
            assert await asyncio.to_thread(alive.read) == ""


async def test_the_run_directory_is_private_and_goes_away(log: Path, tmp_path: Path) -> None:
    rosters = Rosters()
    body = SERVE + "log(seat['run_dir'])\n" + READY + FOREVER
    supervisor = make(1, worker(body, log), rosters)
    async with running(supervisor) as task:
        await rosters.until(lambda r: r.ready == 1)
        run_dir = Path(log.read_text().strip().removeprefix("0:"))
        assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
        supervisor.stop()
        await task
    assert not run_dir.exists()


async def test_a_temporary_folder_too_deep_for_sockets_is_refused(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(ConfigError) as caught:
        await make(1, worker(FOREVER, log)).run()
    assert "TMPDIR" in caught.value.hint


async def test_a_word_nobody_knows_is_ignored(log: Path) -> None:
    rosters = Rosters()
    body = SERVE + "say(type='song')\nlink.send(b'\\xff')\n" + READY + FOREVER
    async with running(make(1, worker(body, log), rosters)):
        assert (await rosters.until(lambda r: True)).ready == 1


@pytest.mark.parametrize(
    ("ends", "expected_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (10_000, 30.0)]
)
def test_the_pause_doubles_up_to_its_bound(ends: int, expected_s: float) -> None:
    assert Backoff().pause_s(ends) == expected_s


PARENT = """
import signal, sys
# Whoever runs the tests under nohup made every child ignore it, and so would we.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from headrace.server.processes import Supervisor, run_workers
script, log = sys.argv[1:]
def command(seat): return [sys.executable, "-I", "-S", "-c", script, seat.encode(), log]
def told(roster): print(roster.ready, flush=True)
sys.exit(run_workers(Supervisor(2, command, stop_timeout_s=30, on_roster=told)))
"""


@pytest.fixture
def start_parent(log: Path) -> Callable[[str], subprocess.Popen[str]]:
    def start(body: str) -> subprocess.Popen[str]:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, PRELUDE + body, str(log)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert parent.stdout is not None
        for line in parent.stdout:
            if line == "2\n":
                break
        return parent

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_parent_drains_the_workers(
    number: signal.Signals, start_parent: Callable[[str], subprocess.Popen[str]], log: Path
) -> None:
    with start_parent(SERVE + READY + FOREVER) as parent:
        parent.send_signal(number)
        assert parent.wait(30) == 0
    assert sorted(log.read_text().split()) == ["0:drained", "1:drained"]


def test_a_second_interrupt_does_not_wait(
    start_parent: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    """The workers tell through a FIFO that they heard the first signal, and stay."""
    fifo = tmp_path / "heard"
    os.mkfifo(fifo)
    busy = f"signal.signal(signal.SIGTERM, lambda *_: open({str(fifo)!r}, 'w').write('h'))\n"
    with start_parent(busy + READY + FOREVER) as parent:
        parent.send_signal(signal.SIGINT)
        with fifo.open() as heard:
            assert heard.read(1) == "h"
            parent.send_signal(signal.SIGINT)
            assert parent.wait(30) == EXIT_INTERRUPTED


def test_workers_learn_that_the_parent_was_killed(
    start_parent: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    fifo = tmp_path / "orphaned"
    os.mkfifo(fifo)
    body = (
        f"while link.recv(4096): pass\n"
        f"if seat['index'] == 0: open({str(fifo)!r}, 'w').write(seat['run_dir'])\n"
    )
    with start_parent(READY + body) as parent:
        parent.kill()
        run_dir = Path(fifo.read_text())
    assert run_dir.name.startswith("headrace-")
    shutil.rmtree(run_dir)  # nobody was left to do it


def test_the_supervisor_can_be_run_without_a_signal_to_wait_for(log: Path) -> None:
    with pytest.raises(OperatorError, match="status 5"):
        run_workers(make(1, worker("sys.exit(5)\n", log)))


def test_the_seat_travels_as_one_argument() -> None:
    seat = Seat(index=1, count=2, run_dir="/run/x", channel_fd=5, generation=3)
    assert Seat.decode(seat.encode()) == seat
    assert [path.name for path in seat.peer_paths] == ["worker-0.sock", "worker-1.sock"]
    assert seat.socket_path == seat.peer_paths[1]
    with pytest.raises(ConfigError, match="not a worker's seat"):
        Seat.decode(json.dumps({"index": "one"}))
