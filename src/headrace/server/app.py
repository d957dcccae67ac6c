"""The composition root of one server process: names every part once, and decides nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import structs

from headrace import __version__
from headrace.config import Config
from headrace.engine.catalog import ABSENT, UNLOADED
from headrace.engine.engine import Engine
from headrace.engine.limits import load_of
from headrace.engine.load_threads import LoadTimeouts
from headrace.engine.models import ModelManager
from headrace.engine.opening import Openings
from headrace.engine.tenants import Tenants
from headrace.errors import ModelLoadError
from headrace.frontends.access import LoggedConnection
from headrace.frontends.asgi_bridge import Application as Asgi
from headrace.frontends.asgi_bridge import AsgiBridge, LateApplication
from headrace.frontends.exchange import Handler
from headrace.frontends.generate import GenerateRoute
from headrace.frontends.grpc.call import LateMethods, LongCalls, Methods
from headrace.frontends.http1 import Connection
from headrace.frontends.http2.connection import Http2Connection
from headrace.frontends.lane import DRAIN_MOMENT_S, Lane
from headrace.frontends.openai import EmbeddingsRoute
from headrace.frontends.router import Router, ScrapeRouter
from headrace.frontends.shared_memory import SharedMemory
from headrace.frontends.site_guard import SiteGuard
from headrace.frontends.slices import Slices
from headrace.frontends.tls_server import TlsServer
from headrace.frontends.v1_predict import PredictRoute
from headrace.frontends.v2_infer import InferRoute
from headrace.loading import cache_folder
from headrace.machine import usable_cores
from headrace.repository.layout import ScanResult
from headrace.server import ports
from headrace.server.group import Group
from headrace.server.parts import byte_account_of, recorder_of, shared_cache_of
from headrace.server.sockets import BACKLOG, close_when_accepted
from headrace.server.stopping import END_GRACE_S, StopSignals, end_process, end_within
from headrace.server.tls import tls_context
from headrace.telemetry.gpu import GpuReader
from headrace.telemetry.logs import access_log
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.prometheus import RenderOptions, TritonOptions, render

if TYPE_CHECKING:
    from headrace.frontends.grpc.grpcio_server import GrpcioServer
    from headrace.server.control import ServerControl
    from headrace.telemetry.trace import Tracing

_LOG = logging.getLogger("headrace.server")


_SETTLED_S = 0.5
"""Looking at everything that start-up left takes tens of milliseconds; whoever waits for
readiness should not wait for that too."""


def _settle() -> None:
    """What is alive now lives to the end: let the collector look at requests only."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _protocol(lane: Lane) -> Callable[[], Connection]:
    """Makes what speaks to a new client of the lane."""
    log = access_log()
    lane.http2 = lambda: Http2Connection(lane, log)
    return lambda: Connection(lane) if log is None else LoggedConnection(lane, log)


class Application:
    """Everything of one process, from the listening socket to the instances."""

    def __init__(
        self,
        config: Config,
        *,
        group: Group | None = None,
        paths: Sequence[Path] = (),
        name: str = "",
        fetch: Callable[[], None] | None = None,
    ) -> None:
        server = config.server
        np.seterr(over="raise")  # a number too large for its datatype is the client's error
        self._config = config
        self._tls = tls_context(server.tls) if server.tls else None
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._loaded = False
        self.metrics = Metrics(version=__version__, gpus=GpuReader())
        cores = usable_cores()
        wanted = [model.instances for model in (config.defaults, *config.models.values())]
        self._recorder = recorder_of(server, group)
        self._shared_cache = shared_cache_of(server, self.metrics)
        self.engine = Engine(
            instances=max(cores, *wanted),
            response_cache_bytes=config.server.response_cache_bytes,
            preprocess_threads=server.preprocess_threads or cores,
            tenants=Tenants(config.tenants),
            recorder=self._recorder,
            shared_cache=self._shared_cache,
            instrument=self.metrics,
        )
        self.manager = self._make_manager()
        self._paths, self._name, self._fetch = tuple(paths), name, fetch
        self.shared_memory = SharedMemory(server.shared_memory)
        self._rest = LateApplication(self._build_rest)
        self._guard = SiteGuard((server.host, *server.allowed_hosts))
        bridge = AsgiBridge(self._rest, scheme="https" if server.tls else "http")
        limits, slices = server.limits, Slices()
        router = Router(
            InferRoute(self.engine, self.shared_memory, limits, slices),
            EmbeddingsRoute(self.engine),
            PredictRoute(self.engine, limits),
            GenerateRoute(self.engine, limits),
            bridge,
            lobby=lambda: self.engine.lobby,
            max_values=limits.max_values,
            slices=slices,
        )
        self._account = byte_account_of(config)
        self.lane = self._make_lane(router.handle)
        self._scrape_lane = self._make_lane(ScrapeRouter(bridge).handle)  # has no gRPC methods
        self._grpc = LateMethods(self._build_grpc)
        self.lane.grpc = self._grpc
        self._long_calls = LongCalls()
        self._servers: list[asyncio.Server | TlsServer] = []
        self._listeners: list[socket.socket] = []
        self._grpcio: GrpcioServer | None = None

    def _make_lane(self, handler: Handler) -> Lane:
        server = self._config.server
        return Lane(
            handler,
            limits=structs.replace(server.limits, max_memory_bytes=self._account.total_bytes),
            http2_limits=server.http2,
            counters=self.metrics.http,
            account=self._account,
        )

    def _make_manager(self) -> ModelManager:
        config = self._config
        return ModelManager(
            self.engine,
            cache_dir=cache_folder(config, os.environ),
            compiled_bytes=config.compiled_cache_bytes,
            instrument=self.metrics,
            workers=config.server.workers,
            shares_answers=self._shared_cache is not None,
            memory_budget_bytes=config.memory_budget_bytes,
            parallel_loads=config.server.parallel_loads,
            timeouts=LoadTimeouts(config.server.load_timeout_s, config.server.trial_timeout_s),
        )

    @cached_property
    def control(self) -> ServerControl:
        """Commands to this process, and to all of its group. Made while models are loaded."""
        from headrace.server.control import ServerControl
        from headrace.server.live import LiveRepository
        from headrace.telemetry.log_settings import LogControl
        from headrace.telemetry.trace import Tracing

        server, group = self._config.server, self._group
        return ServerControl(
            server,
            catalog=self.engine.catalog,
            repository=LiveRepository(
                self.manager,
                self.engine.catalog,
                paths=self._paths,
                config=self._config,
                drain_s=server.drain_timeout_s,
                given_name=self._name,
                fetch=self._fetch,
            ),
            manager=self.manager,
            tracing=Tracing(
                server.trace,
                watch=self._watch_requests,
                first_id=1 if group is None else group.seat.index + 1,
                step=server.workers,
            ),
            log=LogControl(server.log_file),
            regions=self.shared_memory,
            snapshots=self._snapshots,
            seat=None if group is None else group.seat,
        )

    def is_ready(self) -> bool:
        """Loading is over, something can be served, and the end has not begun.

        Where models come and go by command, a server without one is ready for the command.
        """
        if not self._loaded or self._stopping.is_set():
            return False
        server = self._config.server
        statuses = [s for s in self.engine.catalog.statuses() if s.reason != UNLOADED]
        # What is one request away from memory is as good as there.
        serving = [s.state == "READY" or s.reason == ABSENT for s in statuses]
        broken = [s.state == "UNAVAILABLE" and s.reason != ABSENT for s in statuses]
        if server.strict_readiness and any(broken):
            return False
        return server.model_control != "none" or any(serving)

    async def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Answers on ``listeners`` from now on; liveness at once, readiness after loading.

        ``listeners`` are those of ``ports.fields_of``, in that order.
        """
        fields = ports.fields_of(self._config.server)
        for field, listener in zip(fields, listeners, strict=True):
            lane = self._scrape_lane if field == "metrics_port" else self.lane
            make = _protocol(lane)
            self._listeners.append(listener)
            if self._tls is None:
                self._servers.append(
                    await self._loop.create_server(
                        make,
                        sock=listener,
                        backlog=BACKLOG,  # listens again, and its own default is 100
                    )
                )
            else:
                listener.listen(BACKLOG)
                self._servers.append(TlsServer(lane, make, listener, self._tls))

    async def load(self, found: ScanResult, openings: Openings | None = None) -> None:
        """Loads what the repository found, some of it perhaps being opened already.

        Raises:
            HeadraceError: nothing at all could be loaded; the first reason.
        """
        catalog = self.engine.catalog
        for problem in found.problems:
            catalog.set_status(problem.name, problem.version, "UNAVAILABLE", problem.reason)
            _LOG.error("model %s is left out: %s", problem.name, problem.reason)
        # Loading a model is mostly reading a file: time to import what is not hot.
        building = asyncio.ensure_future(asyncio.to_thread(self._build_cold))
        errors = await self.manager.load_all(found.models, openings)
        await building
        server = self._config.server
        broken = errors or [problem.error for problem in found.problems]
        if broken and server.exit_on_error:
            raise broken[0]
        if len(errors) == len(found.models) and server.model_control == "none":
            raise errors[0] if errors else ModelLoadError(_nothing_found(found))
        for error in errors:
            _LOG.error("%s", error.message)
        if server.grpc_server == "grpcio":
            await self._start_grpcio()
        self._loaded = True
        self._loop.call_later(_SETTLED_S, _settle)

    async def load_unless_stopped(
        self, found: ScanResult, openings: Openings | None = None
    ) -> bool:
        """:meth:`load`; False if the end began first. Threads may then still be loading."""
        loading = asyncio.ensure_future(self.load(found, openings))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if loading.done():
            loading.result()
            return True
        loading.cancel()
        await asyncio.wait({loading})
        return False

    def stop(self) -> None:
        """Begins the end: readiness is false from now on."""
        self._stopping.set()

    async def run_until_stopped(self) -> bool:
        """Waits for :meth:`stop`, then drains. True if every request was finished in time."""
        await self._stopping.wait()
        server = self._config.server
        await asyncio.sleep(server.readiness_grace_s)
        await close_when_accepted(self._servers, self._listeners)
        if self._tls is not None:  # handshakes under way, which a lane does not see
            await asyncio.sleep(DRAIN_MOMENT_S)
            self._end_handshakes()
        if self._grpcio is not None:
            self._long_calls.drain()
            await self._grpcio.stop(server.drain_timeout_s)
        # The engine after the lane: what has begun to arrive is still taken.
        served, _ = await asyncio.gather(
            self.lane.drain(server.drain_timeout_s, then=self._long_calls.drain),
            self._scrape_lane.drain(server.drain_timeout_s),
        )
        return served and await self.engine.drain(server.drain_timeout_s)

    async def close(self) -> None:
        """Gives everything back, at once."""
        for server in self._servers:
            server.close()
        self._end_handshakes()
        if self._grpcio is not None:
            await self._grpcio.stop(0)
        self.lane.abort()
        self._scrape_lane.abort()
        self.engine.close()
        if self._shared_cache is not None:
            await self._shared_cache.close()
        if self._recorder is not None:
            self._recorder.close()
        await self.control.close()
        await self.manager.close()

    def _end_handshakes(self) -> None:
        for server in self._servers:
            if isinstance(server, TlsServer):
                server.end_handshakes()

    def snapshot(self) -> bytes:
        """This process's counters, for its siblings."""
        statistics = self.engine.statistics()
        for served in self.engine.catalog.served():
            queue = load_of(served, statistics)
            self.metrics.queue_changed(served.name, served.version, queue)
        account, http = self._account, self.metrics.http
        http.buffered_bytes, http.buffered_limit_bytes = account.used_bytes, account.total_bytes
        http.buffered_refused = account.refused
        return self.metrics.snapshot()

    def _build_cold(self) -> None:
        """What is not needed before the first request, and takes time to import."""
        self._rest.get()
        self._grpc.table()

    def _build_grpc(self) -> Methods:
        from headrace.frontends.codecs.v2_proto import RequestDecoder, ResponseEncoder
        from headrace.frontends.grpc.infer import InferMethods
        from headrace.frontends.grpc.service import InferenceService
        from headrace.frontends.grpc.standard import standard_methods
        from headrace.frontends.rest import EXTENSIONS

        limits = self._config.server.limits
        infer = InferMethods(
            self.engine,
            RequestDecoder(limits),
            ResponseEncoder(limits.max_answer_bytes),
            self._long_calls,
            shared=self.shared_memory,
            limits=limits,
        )
        service = InferenceService(
            infer,
            self.engine.catalog,
            lambda: self.control,
            version=__version__,
            extensions=EXTENSIONS,
            is_ready=self.is_ready,
            guard=self._guard,
        )
        return {**service.methods(), **standard_methods(self.is_ready, self._long_calls)}

    async def _start_grpcio(self) -> None:
        from headrace.frontends.grpc.grpcio_server import GrpcioServer

        self._grpcio = GrpcioServer(self.lane.grpc, self._config.server, self._account)
        await self._grpcio.start()

    def _build_rest(self) -> Asgi:
        from headrace.frontends.rest import create_app

        return create_app(
            self.engine.catalog,
            version=__version__,
            metrics=self._metrics_page,
            is_live=lambda: True,
            is_ready=self.is_ready,
            control=self.control,
            explain=self._explain,
            guard=self._guard,
        )

    def _explain(self, name: str, version: str) -> object:
        from headrace.engine.explain import explanation_of

        served = self.engine.catalog.resolve(name, version)
        return explanation_of(served, self.engine.statistics())

    def _watch_requests(self, tracing: Tracing | None) -> None:
        """Traces cost nothing unless somebody wants them."""
        from headrace.telemetry.trace import Tracer

        metrics = self.metrics
        self.engine.watch_with(metrics if tracing is None else Tracer(tracing, metrics))

    async def _snapshots(self) -> list[bytes]:
        snapshot = self.snapshot()
        return [snapshot] if self._group is None else await self._group.snapshots(snapshot)

    async def _metrics_page(self) -> bytes:
        server = self._config.server
        triton = TritonOptions(
            histogram_latencies=server.metrics_histograms,
            summary_latencies=server.metrics_summaries,
            tags={
                (served.name, served.version): served.config.metric_tags
                for served in self.engine.catalog.served()
                if served.config.metric_tags
            },
        )
        return render(await self._snapshots(), RenderOptions(triton=triton))


async def serve(
    config: Config,
    found: ScanResult,
    listeners: Sequence[socket.socket],
    *,
    group: Group | None = None,
    openings: Openings | None = None,
    announce: Sequence[str] = (),
    paths: Sequence[Path] = (),
    name: str = "",
    fetch: Callable[[], None] | None = None,
) -> int:
    """One server process, from start to end.

    ``fetch``: brings what stores hold to ``paths``; blocks.

    Stopped while it loads, or while a request does not end within ``drain_timeout_s``, it
    ends the process itself: a thread that loads or runs a model cannot be interrupted, and
    the interpreter would wait for it. Whatever else keeps it from ending, it is ended
    ``END_GRACE_S`` later, with status 1.

    Returns:
        The exit status, 0: every request was finished.

    Raises:
        HeadraceError: it could not start.
    """
    app = Application(config, group=group, paths=paths, name=name, fetch=fetch)
    server = config.server
    end_within(server.drain_timeout_s + server.readiness_grace_s + END_GRACE_S)
    signals = StopSignals(app.stop)
    try:
        if group is None:
            await app.listen(listeners)
        else:
            group.follow(app.stop)
        loaded = await app.load_unless_stopped(found, openings)
        if loaded:
            await app.control.start()
        if loaded and group is not None:
            # Siblings answer on the same port: no connection should come here before it can
            # be served.
            await app.listen(listeners)
            await group.join(app.snapshot)
        for line in announce if loaded else ():
            _LOG.info("%s", line)
        finished = await app.run_until_stopped()
        if not finished:
            _LOG.error("some requests were still under way after drain_timeout_s and were cut off")
        if not (loaded and finished):
            end_process(0 if finished else 1)
    finally:
        if group is not None:
            await group.leave()
        await app.close()
        signals.restore()
    return 0


def _nothing_found(found: ScanResult) -> str:
    reasons = "; ".join(f"{problem.name}: {problem.reason}" for problem in found.problems)
    return f"no model could be served{': ' + reasons if reasons else ''}"
