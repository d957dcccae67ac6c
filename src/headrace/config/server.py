"""Settings of the server process: ports, workers, control, caches, tenants, TLS."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from headrace.limits import (
    GIB,
    LOAD_TIMEOUT_S,
    MIB,
    TRIAL_TIMEOUT_S,
    Http2Limits,
    HttpLimits,
    Levels,
    NotNegative,
    Port,
    Positive,
    Seconds,
    Workers,
)
from headrace.units import Size


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certificate chain and key in PEM; through the standard library's ``ssl``."""

    certificate: str
    """File with the server's certificate, and those that lead to a root, in that order."""

    key: str
    """File with the certificate's private key, without a pass phrase."""


class TraceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the server's traces of single requests start with (Triton's ``--trace-config``)."""

    level: tuple[Literal["OFF", "TIMESTAMPS", "TENSORS"], ...] = ("OFF",)
    """What a trace contains. Over the trace API too, as all but ``file``."""

    file: str = ""
    """Where traces are written; "" writes none. Not for a caller to say: who could name a
    file could overwrite any."""

    rate: NotNegative = 1000
    """One request of so many is traced; Triton's default."""

    count: Annotated[int, Meta(ge=-1)] = -1
    """Traces until it ends; -1: no end. Of each worker."""

    log_frequency: NotNegative = 0
    """0: one file. N: a further file for every N traces, ``<file>.0`` and so on, up to 1,000."""


class SharedCacheConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A second place for kept answers, which servers share: Redis or Valkey (extra ``redis``)."""

    url: str = ""
    """``redis://host:6379/0``, ``rediss://`` or ``unix:///path``. "": there is none."""

    key_file: str = ""
    """File with at least 16 random bytes, the same for all servers: kept answers are authenticated
    with it (HMAC), so that others who can write to the cache cannot choose what is answered. "":
    the password of ``url`` is used; without either, only ``unix:`` is accepted."""

    timeout_s: Annotated[float, Meta(gt=0, le=10)] = 0.02
    """Of one look. What takes longer counts as not there: the model is not much slower."""

    ttl_s: Seconds = 3600.0
    """How long it keeps answers of models without a ``ttl`` of their own."""

    max_value_bytes: Positive = 1 * MIB
    """Larger answers stay where they are."""

    prefix: str = "headrace:"
    """Of its keys."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to listen and how many processes."""

    host: str = "127.0.0.1"
    """Loopback unless told otherwise: nothing is exposed by accident."""

    port: Port = 8000
    """Triton's HTTP port, so that its clients' defaults work; 0 picks a free one."""

    grpc_port: Port | None = None
    """A further port, for gRPC clients that expect one; gRPC is answered on ``port`` as well.
    0 picks a free one."""

    metrics_port: Port | None = None
    """A further port for scrapers: ``/metrics`` and health, which ``port`` answers as well, and
    nothing else."""

    grpc_server: Literal["headrace", "grpcio"] = "headrace"
    """``grpcio``: its asyncio server on ``grpc_port``, which costs several times the CPU of our
    own HTTP/2 lane. For those who rely on an option that only it has."""

    allowed_hosts: tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\[\]-]+$")], ...] = ()
    """Names that ``Host`` may have in state-changing requests that arrive on loopback, beside
    localhost, loopback addresses and ``host``; the port does not count. Any other name is refused
    there, because a web page can point its own name at 127.0.0.1 (DNS rebinding). A proxy on this
    machine that passes on the name it was asked for needs that name here."""

    shared_memory: Literal["local", "any", "off"] = "local"
    """Who may register system shared memory: ``local``: clients on loopback, each for objects that
    its own user owns, and only it finds them. ``any``: every client, for every object that the
    server's user can open; regions are everybody's, as in Triton. ``off``: nobody."""

    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Processes that share the port. One is enough until the event loop is the limit."""

    worker_timeout_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    """With several workers: one whose event loop has not come round for so long is killed, and
    another takes its place. Far above what loading a model or a busy machine holds a loop up for.
    0: none is, for a debugger."""

    drain_timeout_s: Seconds = 30.0
    """How long SIGTERM waits for requests in flight; Kubernetes' default grace is 30 s. Connections
    that the kernel has made are accepted before the port closes. One without a request has half a
    second (a quarter of this time, if that is less) to send its last one."""

    readiness_grace_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    """How long readiness is false before the port closes, for balancers that poll."""

    preprocess_threads: Workers = 0
    """Threads for tokenisation and image decoding; 0 = number of cores."""

    model_control: Literal["none", "poll", "explicit", "watch"] = "none"
    """``none``: every model of the repository is loaded at the start. ``poll``: the repository
    is looked at again every ``repository_poll_s``. ``explicit``: what ``load_models`` names is
    loaded at the start, the rest when somebody asks for it over the repository API. ``watch``
    (``--watch``): everything is loaded, the repository is looked at every second, and the API
    and ``headrace models`` load and unload as well."""

    load_models: tuple[str, ...] = ()
    """With ``explicit``: the models to load at the start; ``["*"]``: all of them."""

    repository_poll_s: Seconds = 15.0
    """With ``poll``: between two looks at the repository; Triton's default."""

    memory_budget: Size = ""
    """What the server may take, all of its processes together: ``"4GiB"``. Before a model is
    loaded, those that are least worth their memory leave; they come back when they are asked for.
    "": no bound, every model stays."""

    parallel_loads: Annotated[int, Meta(ge=1, le=64)] = 2
    """Models that are loaded at one time. Loading is bound by the disk and one core each; more at
    once only makes all of them later. With a ``memory_budget``: one, so that each is measured."""

    load_timeout_s: Seconds = LOAD_TIMEOUT_S
    """A model that is not loaded after so long is given up, and its place goes to the next. Tens of
    gigabytes from a cold disk, compiled for a device, fit."""

    trial_timeout_s: Seconds = TRIAL_TIMEOUT_S
    """A model from a store or a load request is first opened and run in a child process, which is
    killed after so long; see ``code_from``."""

    code_from: Literal["local", "anywhere", "nowhere"] = "local"
    """Which models may run code of their own, which can do whatever the server can: those in
    folders of this machine; also those that came from a store or with a load request; or none.
    Without "anywhere" models from stores and load requests are data: they may not choose a runtime
    that runs code, its options, or more instances and threads than the cores allow."""

    uploads: bool = True
    """False: a load request may not bring files of its own, and loads what the repository holds."""

    strict_readiness: bool = False
    """True: ready means that every model that should be served is. False: that one is, so
    that a model that is broken does not take its neighbours out of a balancer."""

    exit_on_error: bool = False
    """True: a model that cannot be loaded ends the server. False: it is left out, with the
    reason in the log and in the index."""

    response_cache_bytes: NotNegative = 64 * MIB
    """Memory for the answers of models with ``response_cache = true``; used only by those."""

    shared_cache: SharedCacheConfig = SharedCacheConfig()

    metrics_histograms: bool = False
    """Adds the histograms of first responses to the ``nv_*`` series; Triton's default too."""

    metrics_summaries: bool = False
    """Adds the summaries (quantiles) to the ``nv_*`` series; Triton's default too."""

    trace: TraceConfig = TraceConfig()

    log_file: str = ""
    """The log goes there instead of stderr."""

    record: str = ""
    """Every event and decision of the scheduler is written there, ids and numbers only, for
    ``headrace replay`` and ``headrace simulate --trace``; of worker N of several to ``FILE.N``."""

    record_max_bytes: Positive = 1 * GIB
    """Where such a recording ends: some ten million events."""

    tls: TlsConfig | None = None
    limits: HttpLimits = HttpLimits()
    http2: Http2Limits = Http2Limits()


class TenantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant is entitled to, where several have requests waiting."""

    share: Annotated[float, Meta(gt=0, le=1_000_000)] = 1.0
    """Its part of the instances' time is this over the shares of all who have work waiting."""

    priority_max: Levels = 0
    """The best level it may ask for: with 2 a request that says 1 is served as a 2. 0: any."""
