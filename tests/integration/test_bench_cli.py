"""``headrace bench`` as a user meets it: text, files, exit codes, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli.main import main
from tests.integration import bench_server
from tests.integration.bench_server import Reply, ScriptedServer, serving_in_thread


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving_in_thread() as running:
        yield running


def headrace_bench(server: ScriptedServer, *words: str) -> int:
    return main(["bench", server.url, "--warmup", "0", *words])


def test_a_run_prints_its_report(server, capsys):
    assert headrace_bench(server, "--rate", "500", "--requests", "50", "--slo-ms", "60000") == 0
    out, err = capsys.readouterr()
    assert "server: open loop, Poisson arrivals at 500/s" in out
    assert "50 offered, 50 sent, 50 ok, 0 failed" in out
    assert "p99 within 60000 ms: met" in out
    assert err == ""  # no terminal, and too short for a plain line


@pytest.mark.parametrize(
    ("slo_ms", "check", "code"),
    [("60000", ["--check"], 0), ("0.000001", ["--check"], 1), ("0.000001", [], 0)],
)
def test_check_turns_a_missed_slo_into_exit_code_1(server, slo_ms, check, code):
    assert headrace_bench(server, "--requests", "20", "--slo-ms", slo_ms, *check) == code


def test_a_run_appends_one_json_line(server, tmp_path):
    path = tmp_path / "runs.jsonl"
    for seed in ("3", "4"):
        assert headrace_bench(server, "--requests", "5", "--seed", seed, "--json", str(path)) == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["seed"] for record in records] == [3, 4]
    assert [record["results"]["ok"] for record in records] == [5, 5]
    assert records[0]["server"] == "scripted 1"


def test_a_sweep_prints_table_and_chart_and_writes_its_files(server, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    png, lines = tmp_path / "out.png", tmp_path / "runs.jsonl"
    code = headrace_bench(
        server, "--sweep", "400,200", "--requests", "40", "--slo-ms", "60000", "--check",
        "--plot", str(png), "--json", str(lines), "--ascii",
    )  # fmt: skip
    assert code == 0
    out, err = capsys.readouterr()
    assert out.isascii()
    assert "in time" in out
    assert "offered requests/s" in out
    assert "400/s is the highest rate" in " ".join(out.split())
    assert "200/s" in err
    assert png.read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["parameters"]["arrivals"]["rate"] for record in records] == [200, 400]
    assert records[0]["sweep"] == {"rates": [400, 200]}


def test_a_sweep_finds_saturation_by_itself(capsys):
    # One request in ten is refused at once, so no rate holds an SLO and none has to be found.
    with serving_in_thread(lambda number: Reply(503 if number % 10 == 9 else 200)) as server:
        code = headrace_bench(
            server, "--sweep", "auto", "--duration", "0.2", "--slo-ms", "60000", "--quiet"
        )
    assert code == 0
    out = capsys.readouterr().out
    assert "capacity    about" in out
    assert "at no rate" in out


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--model", "nope"], "model 'nope'", "it has m"),
        (["--scenario", "server"], "needs a rate", "--rate 200"),
        (["--duration", "0"], "--duration", ""),
        (["--input", "none.json"], "cannot read none.json", ""),
        (["--json", "no/folder/file"], "cannot write", ""),
        (["--pid", "4194304"], "no such process", ""),
    ],
)
def test_what_cannot_be_measured_is_exit_code_2_and_one_line(server, capsys, words, message, hint):
    assert headrace_bench(server, *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, *rest = err.splitlines()
    assert first.startswith("headrace: error: ")
    assert message in first
    assert len(rest) <= 1
    assert hint in "".join(rest)


def test_another_machine_is_refused(capsys):
    assert main(["bench", "http://192.0.2.1:8000"]) == 2
    assert "--allow-remote" in capsys.readouterr().err


def test_bodies_of_a_file_and_a_recording_reach_the_server(server, tmp_path):
    bodies = [
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [n] * 4}]}
        for n in range(3)
    ]
    given = tmp_path / "bodies.jsonl"
    given.write_text("\n".join(map(json.dumps, bodies)))
    recording = tmp_path / "trace.csv"
    recording.write_text("\n".join(str(number / 1000) for number in range(30)))
    code = headrace_bench(server, "--recording", str(recording), "--input", str(given))
    assert code == 0
    sent = [json.loads(body) for body in server.bodies]
    assert len(sent) == 1 + 30  # the probe, and the recording
    assert {json.dumps(body) for body in sent} == {json.dumps(body) for body in bodies}


# processes


@pytest.fixture
def server_process() -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its URL and process id."""
    script = Path(bench_server.__file__)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}", process.pid
        assert process.stdin is not None
        process.stdin.close()


def run_process(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "headrace", "bench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs a Linux /proc")
def test_the_server_is_found_and_its_cpu_time_reported(server_process, tmp_path):
    url, pid = server_process
    lines = tmp_path / "runs.jsonl"
    with run_process(url, "--requests", "2000", "--json", str(lines)) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"(process {pid})" in out
    (record,) = map(json.loads, lines.read_text().splitlines())
    assert record["results"]["server"]["pids"] == [pid]
    # 2,000 requests of tens of microseconds cannot cost less than a tick or more than a minute.
    assert 0 < record["results"]["server"]["seconds"] < 60


def test_ctrl_c_reports_what_there_is_and_exits_130(tmp_path):
    reached = threading.Event()

    def script(number: int) -> Reply:
        if number == 20:
            reached.set()
        return Reply()

    lines = tmp_path / "runs.jsonl"
    words = ["--warmup", "0", "--rate", "200", "--duration", "600", "--json", str(lines)]
    with serving_in_thread(script) as server, run_process(server.url, *words) as process:
        assert reached.wait(timeout=60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "unfinished (interrupted)" in out
    (record,) = map(json.loads, lines.read_text().splitlines())
    assert record["interrupted"] is True
    assert record["results"]["ok"] > 0


def test_ctrl_c_in_a_sweep_keeps_the_rates_that_were_run():
    reached, never = threading.Event(), asyncio.Event()

    def script(number: int) -> Reply:
        if number < 45:  # the probe, all of the first rate, and some of the second
            return Reply()
        reached.set()
        return Reply(hold=never)

    with serving_in_thread(script) as server:
        words = ["--warmup", "0", "--sweep", "400,500", "--requests", "40", "-q"]
        with run_process(server.url, *words, "--timeout-s", "600") as process:
            assert reached.wait(timeout=60)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "400/s is the highest rate" in " ".join(out.split())
