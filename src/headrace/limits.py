"""What one connection may cost, with the bound, the default, and the reason for the default.

Also importable from ``headrace.config``.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Workers = Annotated[int, Meta(ge=0, le=1024)]
"""Threads or processes. More than any machine has cores; each takes memory before it is used."""

Rows = Annotated[int, Meta(ge=0, le=65_536)]
"""Rows of one batch. Models gain nothing far below, and each is checked, copied and split."""

Waiting = Annotated[int, Meta(ge=0, le=1_000_000)]
"""Requests that wait, at some kilobytes each."""

Levels = Annotated[int, Meta(ge=0, le=100)]
"""Levels of priority, each with a queue of its own."""

Runs = Annotated[int, Meta(ge=1, le=10_000)]
"""Times that a warm-up request is run before a model is ready."""

SEVERAL = Meta(max_length=100)
"""Items of a list of which each is work or a model of its own."""

MANY = Meta(max_length=10_000)
"""Items of a list that describes a model, such as its inputs."""

Shape = Annotated[tuple[int, ...], Meta(max_length=32)]
"""Of a tensor; numpy takes no more dimensions in some versions."""

Seconds = Annotated[float, Meta(gt=0, le=86_400)]

LOAD_TIMEOUT_S = 1800.0
TRIAL_TIMEOUT_S = 120.0
"""Defaults of ``server.load_timeout_s`` and ``server.trial_timeout_s``."""

METRIC_LABEL = r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*\Z"
"""A label name of Prometheus; those that begin with two underscores are its own."""

MetricLabel = Annotated[str, Meta(pattern=rf"^(?!(le|quantile)\Z){METRIC_LABEL}")]
"""Of series that may be histograms or summaries."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


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

    max_inputs: Positive = 1024
    """Inputs in one request. A table model has one for each column; few have hundreds."""

    max_outputs: Positive = 1024
    """Outputs that one request asks for."""

    max_parameters: Positive = 256
    """Parameters of a request, or of one tensor; known ones are about a dozen."""

    max_name_length: Positive = 4096
    """Characters of a request's id and of names in it, where a request is larger than 64 KiB."""

    max_rank: Annotated[int, Meta(ge=1, le=64)] = 32
    """Dimensions of a tensor; numpy's own limit is 64, ONNX models have up to 8."""

    max_values: Positive = 1_000_000
    """JSON values in one body that become one object each: rows of V1 and generate requests, texts,
    parameters. Numbers of V2 tensors do not count. Also elements of a gRPC request's integer
    contents, and values of a V1 or generate answer. A million are a tenth of a second of work, or
    six images of 224x224 in V1."""

    max_strings: Positive = 100_000
    """Elements of a request's BYTES tensors. Each becomes an object, however short:
    25 ms of work."""

    max_compression_ratio: Positive = 200
    """Bytes after decompression for each byte before, beyond the first MiB. Text is at 3 to 20,
    sparse tensors at 100; gzip's own maximum is 1030, which only one repeated pattern reaches."""

    max_answer_bytes: Positive = 128 * MIB
    """Largest answer: 8 million floats as JSON, 32 million as binary data. Twice the body, and
    twice the answers that one HTTP/2 connection holds."""

    max_memory_bytes: NotNegative = 0
    """Of one worker process: request bodies, also inflated, from their first byte to the end of
    the answer, and answers until the socket has taken them. One client address gets half at most
    (all clients on this machine are one). What does not fit is refused with 503. 0: a quarter of
    the memory that the server may use, divided by the workers; at least eight times
    ``max_body_bytes``, if that is not more than half of the memory."""

    max_unsent_bytes: Positive = 64 * MIB
    """Of the answers of one HTTP/1.1 connection that are expected, or not read by the client;
    while there is more, its further pipelined requests wait. As in HTTP/2."""


class Http2Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one HTTP/2 connection may cost, beside what ``HttpLimits`` says for both."""

    max_concurrent_streams: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    """Requests under way on one connection; more are refused, and clients send them again.
    nginx says 128, Go 250; a gRPC client has one connection for all its threads."""

    max_message_bytes: Positive = 64 * MIB
    """Largest gRPC message, also after decompression: as ``max_body_bytes``."""

    stream_window_bytes: Annotated[int, Meta(ge=65_535, le=2**31 - 1)] = 1 * MIB
    """What a client may send on one stream before it hears from us: a gigabit for 8 ms."""

    connection_window_bytes: Annotated[int, Meta(ge=65_535, le=2**31 - 1)] = 16 * MIB
    """The same for all streams of a connection together."""

    max_buffered_bytes: Positive = 256 * MIB
    """Of messages that are not complete yet, in one connection: four of the largest."""

    max_header_list_bytes: Positive = 64 * KIB
    """A request's header fields decoded, 32 bytes for each included: what a few bytes of HPACK
    may stand for (a bomb). More ends the connection; above ``max_header_bytes`` the request
    alone is refused."""

    max_continuations: NotNegative = 16
    """CONTINUATION frames after one HEADERS; a list of 32 KiB fits into two."""

    max_control_frames: Positive = 4096
    """SETTINGS, PING, PRIORITY, WINDOW_UPDATE and empty frames beyond those that ordinary
    traffic has; every request and every frame with data allows four more."""

    max_resets: Positive = 512
    """Streams that the client cancels beyond those that it lets end (rapid reset,
    CVE-2023-44487). A client that hedges every request stays below."""

    max_unsent_bytes: Positive = 64 * MIB
    """Of answers that wait for the client's window or its socket; while there is more, new
    requests are refused, and clients send them again."""
