"""One server, one model, any number of runs: probe, bodies, warm-up, load, figures."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np

from headrace.client.arrivals import Schedule, make_schedule
from headrace.client.closed_loop import ClosedLoop
from headrace.client.connection import ConnectFailed
from headrace.client.drivers import Bounds, Driver, Watch
from headrace.client.journal import RunResult, utc_now
from headrace.client.open_loop import OpenLoop
from headrace.client.payloads import PayloadPlan, Payloads, make_payloads
from headrace.client.probe import Probe
from headrace.client.processes import Meter, cpu_of, listeners
from headrace.client.samples import Samples
from headrace.client.spec import (
    DEFAULT_DURATION_S,
    SCENARIOS,
    BenchSpec,
    check_spec,
    scenario_of,
)
from headrace.client.summary import Context, Note, summarise
from headrace.client.target import Target, resolve_target
from headrace.errors import ConfigError
from headrace.types import ModelMetadata

WARMUP_CONNECTIONS = 4
"""Enough for a server to meet a batch, few enough not to overload it before the start."""

_SPARE_FILES = 64
"""Descriptors beside the connections: the loop, the libraries, the terminal."""


class Benchmark:
    """``await open(spec)``, then ``await run(...)`` for every run against that server.

    ``interrupt()`` ends the run under way with what it has; ``interrupted`` stays set.
    """

    def __init__(
        self, spec: BenchSpec, target: Target, metadata: ModelMetadata | None, server: str
    ) -> None:
        self.spec = spec
        self.server = server
        self.interrupted = False
        self._target = target
        self._metadata = metadata
        self._probe = Probe(target, spec)
        self._driver: Driver | None = None
        self._payloads: Payloads | None = None
        self._pids = _server_pids(spec, target)

    @classmethod
    async def open(cls, spec: BenchSpec) -> Benchmark:
        """Resolves the target and asks the server about itself and the model.

        Raises:
            HeadraceError: the target is refused, nothing listens, the model is unknown.
        """
        check_spec(spec)
        target = resolve_target(spec.url, allow_remote=spec.allow_remote, ca_file=spec.ca_file)
        probe = Probe(target, spec)
        server = await probe.server()
        if not spec.model:
            spec = msgspec.structs.replace(spec, model=await probe.only_model())
            probe = Probe(target, spec)
        openai = spec.payload.wire == "openai"
        return cls(spec, target, None if openai else await probe.metadata(), server)

    def interrupt(self) -> bool:
        """Ends the run under way; False where there is none."""
        self.interrupted = True
        if self._driver is None:
            return False
        self._driver.stop()
        return True

    async def warm_up(self) -> None:
        """Sends the first request, then closed-loop load for ``warmup_s``; nothing is counted.

        Raises:
            HeadraceError: the first request was refused or answered wrongly.
        """
        payloads = self._made(self.spec, None)
        await self._probe.first_request(payloads)
        if self.spec.warmup_s:
            bounds = Bounds(
                duration_s=self.spec.warmup_s,
                timeout_s=self.spec.timeout_s,
                connections=min(WARMUP_CONNECTIONS, scenario_of(self.spec).connections)
                if not SCENARIOS[self.spec.scenario].open_loop
                else WARMUP_CONNECTIONS,
            )
            await self._drive(ClosedLoop(self._target, payloads, bounds))

    async def run(self, spec: BenchSpec, watch: Watch | None = None) -> RunResult:
        """One measured run; ``spec`` differs from the one opened with in load only.

        Raises:
            HeadraceError: the schedule or the bodies cannot be made, or the server is gone.
        """
        schedule = _schedule(spec)
        payloads = self._made(spec, schedule)
        notes = _raise_file_limit(spec)
        bounds = _bounds(spec, payloads)
        driver = (
            ClosedLoop(self._target, payloads, bounds, watch)
            if schedule is None
            else OpenLoop(self._target, payloads, bounds, schedule, watch)
        )
        started_at = utc_now()
        driver.meter = meter = Meter(self._pids)
        samples = await self._drive(driver)
        if driver.gave_up:
            notes.append(Note("ended", f"ended early: {driver.gave_up}"))
        context = Context(
            percentile=SCENARIOS[spec.scenario].percentile,
            slo_ms=spec.slo_ms,
            horizon_ns=None if schedule is None else schedule.horizon_ns,
            rows=payloads.rows_of(np.arange(len(samples))),
            interrupted=driver.interrupted,
            meter=meter,
            notes=tuple(notes),
        )
        return RunResult(
            spec=spec,
            summary=summarise(samples, context),
            server=self.server,
            distinct_bodies=len(payloads.bodies),
            mean_body_bytes=round(sum(map(len, payloads.bodies)) / len(payloads.bodies), 1),
            started_at=started_at,
            interrupted=driver.interrupted,
        )

    def _made(self, spec: BenchSpec, schedule: Schedule | None) -> Payloads:
        """The bodies; made once, unless a recording decides their lengths anew each run."""
        lengths = None if schedule is None else schedule.lengths
        if lengths is None and self._payloads is not None:
            return self._payloads
        scenario = scenario_of(spec)
        payloads = make_payloads(
            PayloadPlan(
                head=self._probe.head(),
                spec=spec.payload,
                metadata=self._metadata,
                model=spec.model,
                samples=scenario.samples,
                seed=spec.seed,
                fanout_allowed=spec.scenario == "multi-stream",
                lengths=lengths,
            )
        )
        if lengths is None:
            self._payloads = payloads
        return payloads

    async def _drive(self, driver: Driver) -> Samples:
        self._driver = driver
        try:
            with _without_garbage_collection():
                return await driver.run()
        except ConnectFailed as failure:
            raise ConfigError(
                f"{self._target.url}: {failure}", hint="is the server still running?"
            ) from failure
        finally:
            self._driver = None


def _server_pids(spec: BenchSpec, target: Target) -> tuple[int, ...]:
    if spec.pid is not None:
        if not cpu_of((spec.pid,)).pids:
            raise ConfigError(f"--pid {spec.pid}: there is no such process, or no /proc")
        return (spec.pid,)
    if not target.loopback:
        return ()
    pids = listeners(target.port)
    # A server inside this very process cannot be told apart from the generator.
    return () if os.getpid() in pids else pids


def _schedule(spec: BenchSpec) -> Schedule | None:
    if not SCENARIOS[spec.scenario].open_loop:
        return None
    return make_schedule(
        spec.arrivals, duration_s=spec.duration_s, requests=spec.requests, seed=spec.seed
    )


def _bounds(spec: BenchSpec, payloads: Payloads) -> Bounds:
    duration_s = spec.duration_s
    if duration_s is None and spec.requests is None:
        duration_s = DEFAULT_DURATION_S
    return Bounds(
        duration_s=duration_s,
        requests=spec.requests,
        timeout_s=spec.timeout_s,
        connections=scenario_of(spec).connections,
        fanout=payloads.fanout,
        max_outstanding=spec.max_outstanding,
    )


def _raise_file_limit(spec: BenchSpec) -> list[Note]:
    """Lets this process open as many sockets as the run may need; notes where it may not."""
    scenario = scenario_of(spec)
    wanted = spec.max_outstanding if scenario.open_loop else scenario.connections * scenario.samples
    wanted += _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, granted), hard))
        if granted < wanted:
            text = f"only {granted} open files are allowed (ulimit -n), {wanted} may be needed"
            return [Note("files", text)]
    return []


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A collection would stop the sender for milliseconds; a bounded run makes little garbage."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where there is one: half the CPU time a request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
