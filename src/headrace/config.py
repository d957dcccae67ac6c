"""Every setting as a frozen value with a bound, a default, and the reason for the default.

Pure: reading files, environment and flags is ``loading.py``'s job, so that a configuration
can be made in a test, a notebook or the simulator without any of them.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]

KIB = 1024
MIB = 1024 * KIB


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one HTTP connection may cost. Full means a typed refusal, never a silent drop."""

    max_body_bytes: Positive = 64 * MIB
    """Largest request body, also after decompression. 64 MiB holds a batch of 100
    224x224 float images; nginx says 1 MiB, Triton has no limit."""

    max_header_bytes: Positive = 32 * KIB
    """Request line and all headers together. Apache and nginx end at 8 KiB a line and
    32 KiB in all; long bearer tokens fit."""

    max_headers: Positive = 100
    """Number of header fields; Apache's and Node's own limit is 100 or more."""

    max_connections: Positive = 10_000
    """Open connections of one worker process; below the usual file-descriptor limit."""

    max_pipelined: Positive = 16
    """Requests of one connection that may be under way; above it reading pauses, so
    nothing is lost and memory stays bounded."""

    header_timeout_s: Seconds = 10.0
    """From the first byte of a request to the end of its headers (slow-loris)."""

    body_timeout_s: Seconds = 60.0
    """From the end of the headers to the end of the body; 64 MiB at 10 Mbit/s."""

    idle_timeout_s: Seconds = 75.0
    """A keep-alive connection without a request; a little more than the 60 s that load
    balancers keep theirs, so that it is the balancer that closes first."""

    write_timeout_s: Seconds = 60.0
    """A client that does not read its answer for so long is disconnected."""


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certificate chain and key in PEM; through the standard library's ``ssl``."""

    certificate: str
    """File with the server's certificate, and those that lead to a root, in that order."""

    key: str
    """File with the certificate's private key, without a pass phrase."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to listen and how many processes."""

    host: str = "127.0.0.1"
    """Loopback unless told otherwise: nothing is exposed by accident."""

    port: Port = 8000
    """Triton's HTTP port, so that its clients' defaults work; 0 picks a free one."""

    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Processes that share the port. One is enough until the event loop is the limit."""

    drain_timeout_s: Seconds = 30.0
    """How long SIGTERM waits for requests in flight; Kubernetes' default grace is 30 s."""

    readiness_grace_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    """How long readiness is false before the port closes, for balancers that poll."""

    preprocess_threads: NotNegative = 0
    """Threads for tokenisation and image decoding; 0 = number of cores."""

    tls: TlsConfig | None = None
    limits: HttpLimits = HttpLimits()


class BatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests of one model may be put together. 0 = measured at load."""

    max_batch_size: NotNegative = 0
    """Rows in one execution. 0: the smallest size whose measured cost per row is near the
    best. 1 switches batching off."""

    max_batch_tokens: NotNegative = 0
    """For models with a length: rows x longest row, padding included. 0: measured."""


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may wait."""

    max_queue_size: Positive = 4096
    """Requests waiting for one model. At 1 ms each the last would wait 4 s, which nobody
    does; beyond it the answer is 503 with Retry-After."""

    timeout_s: Seconds = 60.0
    """A request without a timeout of its own is answered 504 after so long."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. Everything has a measured or detected default; everything can be said.

    The same fields stand in ``[models.NAME]`` of ``headrace.toml`` and in ``model.toml``
    inside a model's folder.
    """

    runtime: str = "auto"
    """``auto`` measures the installed runtimes that can run the format and keeps the
    faster; or ``onnxruntime``, ``openvino``, ``python``, ``null``."""

    task: str = "auto"
    """``auto`` detects it from the folder; or a name of ``tasks/registry.py``."""

    versions: str = "latest"
    """``latest``, ``latest:N``, ``all``, or numbers: ``"1,3"``."""

    instances: NotNegative = 0
    """Executions of this model at one time. 0 = number of cores for runtimes that can
    share one copy of the weights, 1 for the rest."""

    threads: NotNegative = 0
    """Threads inside one execution; 0 = cores / instances, at least 1."""

    batching: BatchConfig = BatchConfig()
    queue: QueueConfig = QueueConfig()

    allow_nonfinite: bool = True
    """False refuses NaN and infinity in floating-point inputs with a 400. True because
    NaN is how tree models spell "missing"."""

    runtime_options: dict[str, Any] = {}
    """Handed to the runtime as they are."""

    task_options: dict[str, Any] = {}
    """Handed to the task as they are (column names, labels, pooling, max_tokens ...)."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of ``headrace.toml``."""

    server: ServerConfig = ServerConfig()
    defaults: ModelConfig = ModelConfig()
    """Applies to every model; a model's own table overrides field by field."""

    models: dict[str, ModelConfig] = {}
    cache_dir: str = ""
    """For built graphs and measured profiles. "" = ``$XDG_CACHE_HOME/headrace``; safe to
    delete at any time."""
