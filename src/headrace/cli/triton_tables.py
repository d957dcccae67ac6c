"""Triton's flags as tables: what sets a field, what has no effect and why, what is refused."""

from __future__ import annotations

from collections.abc import Mapping

FIELDS: Mapping[str, tuple[str, str]] = {
    "--http-port": ("server.port", "NUMBER"),
    "--http-address": ("server.host", "TEXT"),
    "--exit-timeout-secs": ("server.drain_timeout_s", "SECONDS"),
    "--repository-poll-secs": ("server.repository_poll_s", "SECONDS"),
    "--strict-readiness": ("server.strict_readiness", "BOOL"),
    "--exit-on-error": ("server.exit_on_error", "BOOL"),
    "--response-cache-byte-size": ("server.response_cache_bytes", "NUMBER"),
    "--http-max-input-size": ("server.limits.max_body_bytes", "NUMBER"),
    "--log-file": ("server.log_file", "TEXT"),
    "--trace-file": ("server.trace.file", "TEXT"),
    "--trace-rate": ("server.trace.rate", "NUMBER"),
    "--trace-count": ("server.trace.count", "NUMBER"),
    "--trace-log-frequency": ("server.trace.log_frequency", "NUMBER"),
}
"""Flag -> the field it sets, and what it takes."""

_LANE = "connections are served by one event loop, without threads or pools of their own"
_PINGS = "pings are answered and limited by the HTTP/2 lane's own rules"
_CPU = "models run on the CPU"
_MEASURED = "it is decided by measurement"
_NO_LIBRARIES = "backends are part of this server; no libraries are loaded"
_OTHER_CLOUD = "the V2 protocol is all that is spoken; a gateway can translate"

WITHOUT_EFFECT: Mapping[str, str] = {
    "--id": "the server is called headrace",
    "--disable-auto-complete-config": "what config.pbtxt leaves out is read from the model",
    "--strict-model-config": "what config.pbtxt leaves out is read from the model",
    "--reuse-http-port": "--workers shares the port between processes",
    "--reuse-grpc-port": "--workers shares the port between processes",
    "--http-thread-count": _LANE,
    "--http-header-forward-pattern": "headers do not become parameters of requests",
    "--grpc-header-forward-pattern": "headers do not become parameters of requests",
    "--grpc-infer-thread-count": _LANE,
    "--grpc-infer-allocation-pool-size": _LANE,
    "--grpc-max-response-pool-size": _LANE,
    "--grpc-infer-response-compression-level": "answers over gRPC are not compressed",
    "--grpc-keepalive-time": _PINGS,
    "--grpc-keepalive-timeout": _PINGS,
    "--grpc-keepalive-permit-without-calls": _PINGS,
    "--grpc-http2-max-pings-without-data": _PINGS,
    "--grpc-http2-min-recv-ping-interval-without-data": _PINGS,
    "--grpc-http2-max-ping-strikes": _PINGS,
    "--grpc-max-connection-age": "a connection lives as long as it is used",
    "--grpc-max-connection-age-grace": "a connection lives as long as it is used",
    "--grpc-server-cert": "TLS is set with --tls-certificate and --tls-key",
    "--grpc-server-key": "TLS is set with --tls-certificate and --tls-key",
    "--grpc-root-cert": "clients are not asked for certificates",
    "--allow-sagemaker": _OTHER_CLOUD,
    "--sagemaker-port": _OTHER_CLOUD,
    "--sagemaker-safe-port-range": _OTHER_CLOUD,
    "--sagemaker-thread-count": _OTHER_CLOUD,
    "--allow-vertex-ai": _OTHER_CLOUD,
    "--vertex-ai-port": _OTHER_CLOUD,
    "--vertex-ai-thread-count": _OTHER_CLOUD,
    "--vertex-ai-default-model": _OTHER_CLOUD,
    "--allow-gpu-metrics": _CPU,
    "--allow-cpu-metrics": "they cost nothing until somebody asks",
    "--metrics-interval-ms": "metrics are collected when somebody asks",
    "--rate-limit": "models share the cores as they are asked",
    "--rate-limit-resource": "models share the cores as they are asked",
    "--pinned-memory-pool-byte-size": _CPU,
    "--cuda-memory-pool-byte-size": _CPU,
    "--cuda-virtual-address-size": _CPU,
    "--min-supported-compute-capability": _CPU,
    "--model-load-gpu-limit": _CPU,
    "--enable-peer-access": _CPU,
    "--cache-directory": _NO_LIBRARIES,
    "--backend-directory": _NO_LIBRARIES,
    "--repoagent-directory": _NO_LIBRARIES,
    "--buffer-manager-thread-count": "tensors are handed on without copies",
    "--model-load-thread-count": _MEASURED,
    "--model-load-retry-count": "a file that cannot be read once is broken, and said so",
    "--host-policy": _CPU,
    "--allow-client-shm": "shared memory is for clients on this machine, and always on",
}
"""Flag -> why it changes nothing."""

_TLS = "say --tls-certificate and --tls-key: they hold for HTTP and gRPC"
_GUARD = "put a proxy before the server, or leave the flag out to open every route"

REFUSED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "--grpc-use-ssl": (("false", "0", "off"), _TLS),
    "--grpc-use-ssl-mutual": (("false", "0", "off"), _TLS),
    "--model-namespacing": (("false", "0", "off"), "a model's name must be unique"),
    "--model-config-name": ((), "copy the configuration that is meant to config.pbtxt"),
}
"""Flag -> the values that are harmless, and what to say instead of any other."""

REPEATED_REFUSED: Mapping[str, str] = {
    "--http-restricted-api": _GUARD,
    "--grpc-restricted-protocol": _GUARD,
}
"""The same for flags that may be given several times and have no harmless value."""
