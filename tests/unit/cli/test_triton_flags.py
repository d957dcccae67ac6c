"""Triton's command line: what it sets, what it says, what it refuses."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from headrace.cli import triton_flags
from headrace.cli.main import build_parser, main
from headrace.cli.serve import _load
from headrace.cli.triton_tables import FIELDS, REFUSED, REPEATED_REFUSED, WITHOUT_EFFECT
from headrace.config import ServerConfig
from headrace.errors import ConfigError


def parsed(*flags: str) -> argparse.Namespace:
    return build_parser(["serve"]).parse_args(["serve", *flags])


def server_of(*flags: str) -> ServerConfig:
    args = parsed(*flags)
    return _load(args, triton_flags.understand(args), {}).config.server


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No headrace.toml lies about."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--http-port=9000"], "port", 9000),
        (["--http-port", "9000"], "port", 9000),
        (["--http-address=0.0.0.0"], "host", "0.0.0.0"),
        (["--exit-timeout-secs=5"], "drain_timeout_s", 5.0),
        (["--model-control-mode=poll", "--repository-poll-secs=3"], "repository_poll_s", 3.0),
        (["--model-control-mode=explicit"], "model_control", "explicit"),
        (["--load-model=a", "--load-model=b"], "load_models", ("a", "b")),
        (["--strict-readiness=true"], "strict_readiness", True),
        (["--strict-readiness=0"], "strict_readiness", False),
        (["--exit-on-error=true"], "exit_on_error", True),
        (["--response-cache-byte-size=77"], "response_cache_bytes", 77),
        (["--cache-config=local,size=88"], "response_cache_bytes", 88),
        (["--metrics-config=summary_latencies=true"], "metrics_summaries", True),
        (["--metrics-config", "histogram_latencies=true"], "metrics_histograms", True),
    ],
)
def test_flags_set_the_field_that_means_the_same(
    flags: list[str], field: str, value: object
) -> None:
    assert getattr(server_of("m", *flags), field) == value


def test_traces() -> None:
    trace = server_of(
        "m", "--trace-config=level=TIMESTAMPS", "--trace-config", "level=tensors",
        "--trace-config=rate=5", "--trace-config=count=-1", "--trace-config=triton,file=/t",
        "--trace-config=triton,log-frequency=9", "--trace-config=mode=triton",
    ).trace  # fmt: skip
    assert (trace.level, trace.rate, trace.count) == (("TIMESTAMPS", "TENSORS"), 5, -1)
    assert (trace.file, trace.log_frequency) == ("/t", 9)


def test_the_largest_body() -> None:
    assert server_of("m", "--http-max-input-size=123").limits.max_body_bytes == 123


def test_our_own_flags_are_stronger() -> None:
    assert server_of("m", "--http-port=9000", "--port=9001").port == 9001


def test_a_triton_command_line_without_ports_means_tritons(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text("[server]\nworkers = 1\n")
    flags = [f"--model-repository={tmp_path}"]
    server = server_of(*flags)
    assert (server.port, server.grpc_port, server.metrics_port) == (8000, 8001, 8002)
    (tmp_path / "headrace.toml").write_text("[server]\nport = 7000\n")
    args = parsed(*flags, "--config", str(tmp_path / "headrace.toml"))
    loaded = _load(args, triton_flags.understand(args), {})
    assert loaded.config.server.port == 7000
    assert loaded.config.server.grpc_port == 8001
    (tmp_path / "headrace.toml").unlink()
    free = server_of(*flags, "--http-port=0", "--metrics-port=9002")
    assert (free.port, free.grpc_port, free.metrics_port) == (0, 0, 9002)
    closed = server_of(*flags, "--allow-grpc=false", "--allow-metrics=0")
    assert (closed.port, closed.grpc_port, closed.metrics_port) == (8000, None, None)
    assert server_of("m").grpc_port is None


def test_repositories_add_up_and_models_are_not_needed(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    args = parsed(f"--model-repository={tmp_path}", f"--model-store={tmp_path / 'b'}")
    understood = triton_flags.understand(args)
    paths = triton_flags.paths_of(args.models, understood)
    assert paths == (str(tmp_path), str(tmp_path / "b"))


@pytest.mark.parametrize("flag", [flag for flag in WITHOUT_EFFECT if "auto-complete" not in flag])
def test_what_has_no_effect_is_accepted_and_said(flag: str) -> None:
    (note,) = triton_flags.understand(parsed("m", flag, "1")).notes
    assert note.startswith(f"{flag} has no effect: ")


def test_nothing_is_said_of_flags_that_were_not_given() -> None:
    assert triton_flags.understand(parsed("m", "--port", "0")).notes == ()


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        (["--disable-auto-complete-config"], "--disable-auto-complete-config has no effect"),
        (["--backend-config=onnxruntime,x=1"], "--backend-config onnxruntime,x=1 has no effect"),
        (["--trace-config=opentelemetry,url=x"], "--trace-config opentelemetry,url=x has no"),
        (["--metrics-config=summary_quantiles=0.5:0.1"], "summary_quantiles has no effect"),
        (["--load-model=a"], "--load-model has no effect: --model-control-mode is not explicit"),
        (["--allow-http=false"], "--allow-http=false has no effect"),
        (["--http-address=0.0.0.0", "--grpc-address=::1"], "--grpc-address has no effect"),
    ],
)
def test_notes(flags: list[str], note: str) -> None:
    assert note in triton_flags.understand(parsed("m", *flags)).notes[0]


def test_an_address_that_is_the_servers_needs_no_word() -> None:
    args = parsed("m", "--http-address=0.0.0.0", "--grpc-address=0.0.0.0", "--allow-grpc=true")
    assert triton_flags.understand(args).notes == ()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grpc-use-ssl=true"], "--grpc-use-ssl is not understood"),
        (["--grpc-use-ssl-mutual=1"], "--grpc-use-ssl-mutual is not understood"),
        (["--http-restricted-api=health:k=v"], "--http-restricted-api is not understood"),
        (["--model-config-name=h100"], "--model-config-name is not understood"),
        (["--model-namespacing=true"], "--model-namespacing is not understood"),
        (["--load-model=*", "--load-model=a"], "cannot stand beside another"),
        (["--cache-config=redis,host=x"], "there is no cache 'redis'"),
        (["--cache-config=local,size=x"], "expected local,size=BYTES"),
        (["--metrics-config=summary_latencies"], "expected KEY=VALUE"),
        (["--metrics-config=summary_latencies=maybe"], "expected true or false"),
        (["--trace-config=rate=x"], "rate must be a whole number"),
        (["--log-info=maybe"], "expected true or false"),
        (["--log-verbose=much"], "expected a whole number"),
    ],
)
def test_what_must_not_be_lost_silently_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("*", r"\*")):
        triton_flags.understand(parsed("m", *flags))


@pytest.mark.parametrize("flag", ["--grpc-use-ssl=false", "--model-namespacing=false"])
def test_refused_flags_may_say_that_they_are_off(flag: str) -> None:
    triton_flags.understand(parsed("m", flag))


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ([], ""),
        (["--log-verbose=0"], ""),
        (["--log-verbose=1"], "debug"),
        (["--log-info=false"], "warning"),
        (["--log-info=false", "--log-warning=false"], "error"),
        (["--log-info=true"], ""),
    ],
)
def test_the_level_of_the_log(flags: list[str], level: str) -> None:
    assert triton_flags.understand(parsed("m", *flags)).log_level == level


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        (["--no-such-flag=1"], 2),
        (["--strict-readiness=maybe"], 2),
        (["--model-control-mode=sometimes"], 2),
        ([], 2),
        (["--model-repository=/no/such/folder"], 2),
    ],
)
def test_mistakes_end_the_command(flags: list[str], status: int) -> None:
    assert main(["serve", *flags]) == status


TRITONS = """
allow-client-shm allow-cpu-metrics allow-gpu-metrics allow-grpc allow-http allow-metrics
allow-sagemaker allow-vertex-ai backend-config=a,b=1 backend-directory buffer-manager-thread-count
cache-config=local,size=1 cache-directory cuda-memory-pool-byte-size cuda-virtual-address-size
enable-peer-access exit-on-error exit-timeout-secs grpc-address grpc-header-forward-pattern
grpc-http2-max-ping-strikes grpc-http2-max-pings-without-data
grpc-http2-min-recv-ping-interval-without-data grpc-infer-allocation-pool-size
grpc-infer-response-compression-level grpc-infer-thread-count grpc-keepalive-permit-without-calls
grpc-keepalive-time grpc-keepalive-timeout grpc-max-connection-age grpc-max-connection-age-grace
grpc-max-response-pool-size grpc-root-cert grpc-server-cert grpc-server-key grpc-use-ssl=false
grpc-use-ssl-mutual=false host-policy http-address http-header-forward-pattern http-max-input-size
http-port http-thread-count id load-model log-error log-file log-format=default log-info
log-verbose log-warning metrics-address metrics-config=a=1 metrics-interval-ms
min-supported-compute-capability model-control-mode=none model-load-gpu-limit
model-load-retry-count model-load-thread-count model-namespacing=false model-repository model-store
pinned-memory-pool-byte-size rate-limit rate-limit-resource repoagent-directory
repository-poll-secs response-cache-byte-size reuse-grpc-port reuse-http-port sagemaker-port
sagemaker-safe-port-range sagemaker-thread-count strict-model-config strict-readiness
trace-config=rate=1 trace-count trace-file trace-level=OFF trace-log-frequency trace-rate
vertex-ai-default-model vertex-ai-port vertex-ai-thread-count
"""
"""The flags of tritonserver with a value that it accepts; 1 where nothing is said."""


@pytest.mark.parametrize("flag", TRITONS.split())
def test_every_flag_of_tritonserver_is_known(flag: str) -> None:
    name, _, value = flag.partition("=")
    server_of("m", f"--{name}={value or 1}")


def test_no_flag_is_in_two_tables() -> None:
    tables = (FIELDS, WITHOUT_EFFECT, REFUSED, REPEATED_REFUSED)
    assert len({flag for table in tables for flag in table}) == sum(map(len, tables))
