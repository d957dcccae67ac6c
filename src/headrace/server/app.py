"""The composition root of one server process: names every part once, and decides nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from headrace import __version__
from headrace.config import Config, TlsConfig
from headrace.engine.engine import Engine
from headrace.engine.models import ModelManager
from headrace.engine.opening import Openings
from headrace.errors import ConfigError, ModelLoadError
from headrace.frontends.access import LoggedConnection
from headrace.frontends.asgi_bridge import Application as Asgi
from headrace.frontends.asgi_bridge import AsgiBridge, LateApplication
from headrace.frontends.http1 import Connection
from headrace.frontends.lane import Lane
from headrace.frontends.openai import EmbeddingsRoute
from headrace.frontends.router import Router
from headrace.frontends.v1_predict import PredictRoute
from headrace.frontends.v2_infer import InferRoute
from headrace.loading import cache_folder
from headrace.machine import usable_cores
from headrace.repository.layout import ScanResult
from headrace.server.group import Group
from headrace.server.sockets import BACKLOG
from headrace.telemetry.logs import access_log
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.prometheus import render

_LOG = logging.getLogger("headrace.server")


_SETTLED_S = 0.5
"""Looking at everything that start-up left takes tens of milliseconds; whoever waits for
readiness should not wait for that too."""


def _settle() -> None:
    """What is alive now lives to the end: let the collector look at requests only."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class Application:
    """Everything of one process, from the listening socket to the instances."""

    def __init__(self, config: Config, *, group: Group | None = None) -> None:
        server = config.server
        np.seterr(over="raise")  # a number too large for its datatype is the client's error
        self._config = config
        self._tls = tls_context(server.tls) if server.tls else None
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._loaded = False
        self.metrics = Metrics(version=__version__)
        cores = usable_cores()
        wanted = [model.instances for model in (config.defaults, *config.models.values())]
        self.engine = Engine(
            instances=max(cores, *wanted),
            preprocess_threads=server.preprocess_threads or cores,
            instrument=self.metrics,
        )
        self.manager = ModelManager(
            self.engine, cache_dir=cache_folder(config, os.environ), instrument=self.metrics
        )
        self._rest = LateApplication(self._build_rest)
        router = Router(
            InferRoute(self.engine),
            EmbeddingsRoute(self.engine),
            PredictRoute(self.engine),
            AsgiBridge(self._rest, scheme="https" if server.tls else "http"),
        )
        self.lane = Lane(router.handle, limits=server.limits, counters=self.metrics.http)
        self._server: asyncio.Server | None = None

    def is_ready(self) -> bool:
        """Loading is over, something can be served, and the end has not begun."""
        catalog = self.engine.catalog
        return (
            self._loaded
            and not self._stopping.is_set()
            and any(status.state == "READY" for status in catalog.statuses())
        )

    async def listen(self, listener: socket.socket) -> None:
        """Answers on ``listener`` from now on; liveness at once, readiness after loading."""
        log = access_log()
        self._server = await self._loop.create_server(
            lambda: Connection(self.lane) if log is None else LoggedConnection(self.lane, log),
            sock=listener,
            ssl=self._tls,
            backlog=BACKLOG,  # listens again, and its own default is 100
        )

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
        building = asyncio.ensure_future(asyncio.to_thread(self._rest.get))
        errors = await self.manager.load_all(found.models, openings)
        await building
        if len(errors) == len(found.models):
            raise errors[0] if errors else ModelLoadError(_nothing_found(found))
        for error in errors:
            _LOG.error("%s", error.message)
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
        if self._server is not None:
            self._server.close()
        # The engine after the lane: what has begun to arrive is still taken.
        served = await self.lane.drain(server.drain_timeout_s)
        return served and await self.engine.drain(server.drain_timeout_s)

    async def close(self) -> None:
        """Gives everything back, at once."""
        if self._server is not None:
            self._server.close()
        self.lane.abort()
        self.engine.close()
        await self.manager.close()

    def snapshot(self) -> bytes:
        """This process's counters, for its siblings."""
        statistics = self.engine.statistics()
        for served in self.engine.catalog.served():
            model = statistics.models[served.number]
            waiting = model.waiting + served.preparing
            self.metrics.queue_changed(served.name, served.version, waiting, model.running)
        return self.metrics.snapshot()

    def _build_rest(self) -> Asgi:
        from headrace.frontends.rest import create_app

        return create_app(
            self.engine.catalog,
            version=__version__,
            metrics=self._metrics_page,
            is_live=lambda: True,
            is_ready=self.is_ready,
        )

    async def _metrics_page(self) -> bytes:
        snapshot = self.snapshot()
        snapshots = [snapshot] if self._group is None else await self._group.snapshots(snapshot)
        return render(snapshots)


async def serve(
    config: Config,
    found: ScanResult,
    listener: socket.socket,
    *,
    group: Group | None = None,
    openings: Openings | None = None,
    announce: Sequence[str] = (),
) -> int:
    """One server process, from start to end.

    Stopped while it loads, or while a request does not end within ``drain_timeout_s``, it
    ends the process itself: a thread that loads or runs a model cannot be interrupted, and
    the interpreter would wait for it.

    Returns:
        The exit status, 0: every request was finished.

    Raises:
        HeadraceError: it could not start.
    """
    app = Application(config, group=group)
    signals = _Signals(app)
    try:
        if group is None:
            await app.listen(listener)
        else:
            group.follow(app.stop)
        loaded = await app.load_unless_stopped(found, openings)
        if loaded and group is not None:
            # Siblings answer on the same port: no connection should come here before it can
            # be served.
            await app.listen(listener)
            await group.join(app.snapshot)
        for line in announce if loaded else ():
            _LOG.info("%s", line)
        finished = await app.run_until_stopped()
        if not (loaded and finished):
            _end_process(0 if finished else 1)
    finally:
        if group is not None:
            await group.leave()
        await app.close()
        signals.restore()
    return 0


def _end_process(status: int) -> NoReturn:
    if status:
        _LOG.error("some requests were still under way after drain_timeout_s and were cut off")
    logging.shutdown()
    os._exit(status)


class _Signals:
    """SIGTERM and the first Ctrl-C drain; the second Ctrl-C ends the process."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)

    def restore(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGINT:
            self._loop.remove_signal_handler(number)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        _LOG.info("stopping: finishing what is under way")
        self._app.stop()


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """TLS 1.2 and later, by the standard library's defaults for servers.

    Raises:
        ConfigError: a file is missing, no PEM, or key and certificate do not match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the TLS certificate {tls.certificate} and key {tls.key} cannot be used: {error}",
            hint="both must be PEM files, and the key must belong to the certificate",
        ) from error
    return context


def _nothing_found(found: ScanResult) -> str:
    reasons = "; ".join(f"{problem.name}: {problem.reason}" for problem in found.problems)
    return f"no model could be served{': ' + reasons if reasons else ''}"
