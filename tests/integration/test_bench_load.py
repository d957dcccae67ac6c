"""The two loops against a server that misbehaves on demand.

Nothing here asserts how long something took. What is asserted follows from the order of
events on one clock: a request that was due before the server went on cannot have been
answered before it did.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np
import pytest

from headrace.client.benchmark import Benchmark
from headrace.client.journal import RunResult
from headrace.client.samples import Samples
from headrace.client.spec import ArrivalSpec, BenchSpec, Lengths, PayloadSpec
from headrace.errors import (
    CapacityError,
    ConfigError,
    InferenceFailed,
    InvalidRequest,
    ModelNotFound,
)
from tests.integration.bench_server import Model, Reply, ScriptedServer, serving


def spec_for(server: ScriptedServer, **changes: Any) -> BenchSpec:
    payload = changes.pop("payload", PayloadSpec(distinct=4))
    given = {"url": server.url, "model": "m", "warmup_s": 0.0, "payload": payload, **changes}
    return BenchSpec(**given)


def open_loop(server: ScriptedServer, rate: float, requests: int, **changes: Any) -> BenchSpec:
    arrivals = ArrivalSpec(process="constant", rate=rate)
    return spec_for(server, scenario="server", arrivals=arrivals, requests=requests, **changes)


class Run:
    """A benchmark that also keeps the raw samples of its last run."""

    def __init__(self) -> None:
        self.samples = Samples()
        self.enough = 0
        self.reached = asyncio.Event()

    def watch(self, samples: Samples) -> None:
        """Ten times a second, and at the end."""
        self.samples = samples
        if self.enough and len(samples) >= self.enough:
            self.reached.set()

    async def __call__(self, spec: BenchSpec) -> RunResult:
        self.benchmark = await Benchmark.open(spec)
        return await self.benchmark.run(self.benchmark.spec, self.watch)


@pytest.fixture
def run() -> Run:
    return Run()


# good weather


@pytest.mark.parametrize("wire", ["json", "binary", "openai"])
async def test_an_open_loop_sends_the_whole_schedule_and_all_succeeds(run, wire):
    async with serving() as server:
        payload = PayloadSpec(wire=wire, distinct=4)
        result = await run(open_loop(server, 2000, 300, payload=payload))
    summary = result.summary
    assert (summary.offered, summary.sent, summary.ok, summary.failed) == (300, 300, 300, 0)
    assert len(server.arrived_ns) == 300
    assert summary.latency is not None
    assert summary.late is not None
    assert summary.offered_rps == pytest.approx(2000)


async def test_requests_do_not_leave_before_they_are_due(run):
    async with serving() as server:
        await run(open_loop(server, 500, 100))
    due, taken = np.array(run.samples.due_ns), np.array(run.samples.taken_ns)
    assert (taken >= due).all()
    assert np.diff(due).tolist() == [2_000_000] * 99
    # requests overtake one another on different connections, their number does not
    assert (np.sort(server.arrived_ns) >= due).all()


async def test_the_same_seed_sends_the_same_bodies(run):
    texts = Model(inputs=[{"name": "t", "datatype": "BYTES", "shape": [-1]}])
    payload = PayloadSpec(distinct=16, lengths=Lengths(8, 0.5, 40))
    sent = []
    for seed in (1, 1, 2):
        async with serving(model=texts) as server:
            await run(spec_for(server, requests=40, seed=seed, payload=payload))
            sent.append(server.bodies)
    assert sent[0] == sent[1]
    assert sent[0] != sent[2]


async def test_a_closed_loop_keeps_its_callers_busy_and_no_more(run):
    gate = asyncio.Event()

    def script(number: int) -> Reply:
        if number == 7:  # all eight callers are waiting now
            gate.set()
        return Reply(hold=gate)

    async with serving(script) as server:
        result = await run(spec_for(server, scenario="closed", connections=8, requests=200))
    assert server.most_running == 8
    assert len(server.arrived_ns) == 200
    assert result.summary.ok == 200
    assert result.summary.late is None


async def test_a_single_stream_never_has_two_requests_under_way(run):
    async with serving() as server:
        result = await run(spec_for(server, requests=50))
    assert server.most_running == 1
    assert result.summary.percentile == 90


async def test_a_closed_loop_ends_with_its_duration(run):
    async with serving() as server:
        result = await run(spec_for(server, scenario="closed", connections=2, duration_s=0.2))
    samples = run.samples
    assert result.summary.ok == len(samples) > 0
    assert max(samples.due_ns) < samples.started_ns + 200_000_000


async def test_multi_stream_puts_its_samples_into_one_request_where_the_model_takes_them(run):
    async with serving() as server:
        result = await run(spec_for(server, scenario="multi-stream", requests=10))
    shapes = {tuple(json.loads(body)["inputs"][0]["shape"]) for body in server.bodies}
    assert shapes == {(8, 4)}
    assert result.summary.samples_per_s == pytest.approx(8 * result.summary.answered_rps)


async def test_multi_stream_sends_several_requests_where_it_does_not(run):
    fixed = Model(inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 4]}])
    gate = asyncio.Event()

    def script(number: int) -> Reply:
        if number == 7:  # eight are only ever here together if they came at once
            gate.set()
        return Reply(hold=gate)

    async with serving(script, fixed) as server:
        result = await run(spec_for(server, scenario="multi-stream", requests=5))
    assert len(server.arrived_ns) == 40
    assert server.most_running == 8
    assert result.summary.ok == 5
    assert result.summary.samples_per_s == pytest.approx(8 * result.summary.answered_rps)


# coordinated omission


async def test_a_stall_shows_in_every_request_that_was_due_meanwhile(run):
    stall_s, rate = 0.4, 200
    gate, stall = asyncio.Event(), [0, 0]

    def go_on() -> None:
        stall[1] = time.monotonic_ns()
        gate.set()

    def script(number: int) -> Reply:
        if number == 20:
            stall[0] = time.monotonic_ns()
            asyncio.get_running_loop().call_later(stall_s, go_on)
        return Reply(hold=gate if number >= 20 else None)

    async with serving(script) as server:
        result = await run(open_loop(server, rate, 160))
    due, done = np.array(run.samples.due_ns), np.array(run.samples.done_ns)
    arrived_in_stall = (due >= stall[0]) & (due < stall[1])
    # Every request that became due while the server stood still waited for the rest of it.
    assert (done[arrived_in_stall] >= stall[1]).all()
    remaining_ms = (stall[1] - due[arrived_in_stall]) / 1e6
    assert ((done - due)[arrived_in_stall] / 1e6 >= remaining_ms).all()
    # The schedule alone says how many those are; a generator that waits would have sent one.
    covered_ns = min(stall[1], due[-1]) - stall[0]
    assert arrived_in_stall.sum() >= covered_ns / 1e9 * rate - 1
    assert result.summary.ok == 160
    # Every latency has this lower bound, so every percentile has that of the bounds.
    bounds_ms = np.sort(np.where(arrived_in_stall, stall[1] - due, 0)) / 1e6
    assert result.summary.latency is not None
    assert result.summary.latency.p90_ms >= bounds_ms[143]
    assert result.summary.latency.p99_ms >= bounds_ms[158]


async def test_the_same_stall_hides_in_a_closed_loop(run):
    """Why the closed loop's report says that its callers wait."""
    gate = asyncio.Event()

    def script(number: int) -> Reply:
        if number == 20:
            asyncio.get_running_loop().call_later(0.1, gate.set)
        return Reply(hold=gate if number >= 20 else None)

    async with serving(script) as server:
        await run(spec_for(server, requests=160))
    latencies_ms = np.sort((np.array(run.samples.done_ns) - np.array(run.samples.due_ns)) / 1e6)
    assert latencies_ms[-1] >= 99
    assert server.most_running == 1  # nobody came while it stood still


# bad weather


async def test_requests_beyond_the_limit_fail_unsent_with_that_reason(run):
    gate = asyncio.Event()
    seen = 0

    def script(number: int) -> Reply:
        nonlocal seen
        seen = number + 1
        return Reply(hold=gate)

    async with serving(script) as server:
        spec = open_loop(server, 1000, 50, max_outstanding=10)
        run.enough = 50
        task = asyncio.create_task(run(spec))
        await run.reached.wait()
        gate.set()
        result = await task
    assert seen == 10
    assert (result.summary.ok, result.summary.failed) == (10, 40)
    (error,) = result.summary.errors
    assert (error.status, error.count) == (0, 40)
    assert "10 outstanding" in error.reason
    assert result.summary.sent == 10


@pytest.mark.parametrize("scenario", ["server", "closed"])
async def test_no_answer_is_a_failure_after_the_time_out(run, scenario):
    never = asyncio.Event()
    changes: dict[str, Any] = {"timeout_s": 0.2, "requests": 5}
    async with serving(lambda number: Reply(hold=never)) as server:
        if scenario == "server":
            spec = open_loop(server, 1000, **changes)
        else:
            spec = spec_for(server, scenario="closed", connections=5, **changes)
        result = await run(spec)
    assert result.summary.failed == 5
    assert [error.reason for error in result.summary.errors] == ["no answer within 0.2 s"]
    assert result.summary.latency is None
    assert min(np.array(run.samples.done_ns) - np.array(run.samples.due_ns)) >= 200_000_000


@pytest.mark.parametrize("scenario", ["server", "closed"])
@pytest.mark.parametrize(
    ("reply", "status", "reason"),
    [
        (Reply(503), 503, "scripted refusal"),
        (Reply(status=429, body=b'{"error": "slow down"}'), 429, "slow down"),
        (Reply(body=b'{"outputs": []}'), 200, "without outputs"),
        (Reply(body=b'{"outputs": [{"name": "z", "data": []}]}'), 200, "outputs missing: y"),
        (Reply(drop=True), 0, "closed by the server"),
        (Reply(raw=b"HTTP/9 what\r\n\r\n"), 0, "malformed HTTP answer"),
    ],
)
async def test_failures_are_counted_by_status_and_reason(run, scenario, reply, status, reason):
    # every second one fails; the loop goes on after each
    async with serving(lambda number: reply if number % 2 else Reply()) as server:
        if scenario == "server":
            result = await run(open_loop(server, 500, 40))
        else:
            result = await run(spec_for(server, scenario="closed", connections=3, requests=40))
    assert (result.summary.ok, result.summary.failed) == (20, 20)
    assert sum(error.count for error in result.summary.errors) == 20
    for error in result.summary.errors:
        assert error.status == status
        assert reason in error.reason


@pytest.mark.parametrize("scenario", ["server", "closed"])
async def test_a_server_that_closes_after_each_answer_is_served_with_new_connections(run, scenario):
    async with serving(lambda number: Reply(close=True)) as server:
        if scenario == "server":
            result = await run(open_loop(server, 500, 60))
        else:
            result = await run(spec_for(server, scenario="closed", connections=4, requests=60))
    assert (result.summary.ok, result.summary.failed) == (60, 0)


async def test_a_multi_stream_query_fails_once_if_one_of_its_requests_does(run):
    fixed = Model(inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 4]}])
    async with serving(lambda number: Reply(500 if number == 3 else 200), fixed) as server:
        result = await run(spec_for(server, scenario="multi-stream", requests=5))
    assert (result.summary.ok, result.summary.failed) == (4, 1)


async def test_a_closed_loop_ends_when_the_server_has_gone(run):
    async with serving() as server:

        def script(number: int) -> Reply:
            if number == 10:
                assert server._server is not None
                server._server.close()
                for connection in tuple(server.connections):
                    connection.transport.abort()
            return Reply(drop=number >= 10)

        server.script = script
        result = await run(spec_for(server, scenario="closed", connections=20, duration_s=600))
    assert result.summary.ok <= 10
    reasons = " ".join(error.reason for error in result.summary.errors)
    assert "Connection refused" in reasons
    assert [note.kind for note in result.summary.notes if note.kind == "ended"] == ["ended"]


async def test_an_open_loop_reports_refused_connections(run):
    async with serving() as server:

        def script(number: int) -> Reply:
            assert server._server is not None
            server._server.close()
            for connection in tuple(server.connections):
                connection.transport.abort()
            return Reply(drop=True)

        server.script = script
        result = await run(open_loop(server, 200, 20))
    assert (result.summary.ok, result.summary.failed) == (0, 20)
    assert any("Connection refused" in error.reason for error in result.summary.errors)


async def test_an_interruption_keeps_what_there_is(run):
    never = asyncio.Event()
    async with serving(lambda number: Reply(hold=never if number >= 5 else None)) as server:
        run.enough = 20
        task = asyncio.create_task(run(open_loop(server, 1000, 100_000)))
        await run.reached.wait()
        assert run.benchmark.interrupt()
        result = await task
    assert result.interrupted
    assert result.summary.ok == 5
    assert result.summary.unfinished == result.summary.offered - 5 >= 15


async def test_our_own_process_is_not_taken_for_the_server(run):
    async with serving() as server:
        result = await run(spec_for(server, requests=5))
    assert result.summary.server is None


# before the run


async def opened(spec: BenchSpec) -> None:
    benchmark = await Benchmark.open(spec)
    await benchmark.warm_up()


async def test_warm_up_is_not_counted(run):
    async with serving() as server:
        benchmark = await Benchmark.open(spec_for(server, warmup_s=0.1, requests=10))
        await benchmark.warm_up()
        warm = len(server.arrived_ns)
        result = await benchmark.run(benchmark.spec)
    assert warm > 4
    assert result.summary.offered == 10
    assert len(server.arrived_ns) == warm + 10


async def test_the_only_model_need_not_be_named(run):
    async with serving() as server:
        result = await run(spec_for(server, model="", requests=3))
    assert result.spec.model == "m"


async def test_nothing_listening_is_one_sentence_with_a_hint():
    async with serving() as server:
        spec = spec_for(server)
    with pytest.raises(ConfigError, match="Connection refused") as caught:
        await opened(spec)
    assert "headrace serve" in caught.value.hint


async def test_a_server_that_hangs_up_may_speak_tls():
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()  # with the rest unread, so it is a reset for some clients
        await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match=r"connection (lost|closed)") as caught:
            await opened(BenchSpec(url=f"http://127.0.0.1:{port}", model="m"))
    assert "https://" in caught.value.hint


async def test_an_unknown_model_is_told_with_those_that_exist():
    async with serving() as server:
        with pytest.raises(ModelNotFound, match="'nope'") as caught:
            await opened(spec_for(server, model="nope"))
    assert caught.value.hint == "it has m"


@pytest.mark.parametrize(
    ("reply", "error", "hint"),
    [
        (Reply(400), InvalidRequest, "--input"),
        (Reply(401), InvalidRequest, "--header"),
        (Reply(503), CapacityError, "loading"),
        (Reply(500), InferenceFailed, "log"),
        (Reply(body=b'{"outputs":[]}'), InferenceFailed, "wire form"),
    ],
)
async def test_a_refused_first_request_ends_it_with_a_hint(reply, error, hint):
    async with serving(lambda number: reply) as server:
        with pytest.raises(error) as caught:
            await opened(spec_for(server))
    assert hint in caught.value.hint


async def test_headers_and_text_lengths_arrive(run):
    texts = Model(inputs=[{"name": "t", "datatype": "BYTES", "shape": [-1]}])
    payload = PayloadSpec(distinct=8, lengths=Lengths(5, 0.0, 5))
    async with serving(model=texts) as server:
        headers = (("Authorization", "Bearer t"),)
        await run(spec_for(server, requests=8, headers=headers, payload=payload))
    assert {each["authorization"] for each in server.headers} == {"Bearer t"}
    words = [len(json.loads(body)["inputs"][0]["data"][0].split()) for body in server.bodies]
    assert words == [5] * 8
