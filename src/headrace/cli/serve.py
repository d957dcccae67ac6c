"""``headrace serve``: one file, one folder or a repository, on one port."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.artifacts import private_folder
from headrace.cli import triton_flags
from headrace.errors import ConfigError, MissingExtra
from headrace.loading import LoadedConfig, cache_folder, config_file, explain, load_config

if TYPE_CHECKING:
    from headrace.config import Config
    from headrace.repository.base import ScanResult

Fetch = Callable[[], None]

_EPILOG = """\
examples:
  headrace serve model.onnx                      one file, nothing to configure
  headrace serve s3://bucket/models              fetched, verified, then served
  headrace serve ./models --watch                new versions are served as they come
  headrace serve ./models --workers 2            a repository: <model>/<version>/<file>
  headrace serve ./minilm --port 0               a Hugging Face folder, any free port
  headrace serve model.onnx --show-config        every setting and where it comes from
  headrace serve --model-repository=/models      Triton's command line works too
"""

_FLAGS: dict[str, str] = {
    "host": "server.host",
    "port": "server.port",
    "grpc_port": "server.grpc_port",
    "metrics_port": "server.metrics_port",
    "grpc_server": "server.grpc_server",
    "workers": "server.workers",
    "drain_timeout_s": "server.drain_timeout_s",
    "readiness_grace_s": "server.readiness_grace_s",
    "runtime": "defaults.runtime",
    "task": "defaults.task",
    "instances": "defaults.instances",
    "threads": "defaults.threads",
    "max_batch_size": "defaults.batching.max_batch_size",
    "max_batch_tokens": "defaults.batching.max_batch_tokens",
    "max_queue_size": "defaults.queue.max_queue_size",
    "timeout_s": "defaults.queue.timeout_s",
    "slo": "defaults.slo.p99",
    "record": "server.record",
    "memory_budget": "server.memory_budget",
    "cache_dir": "cache_dir",
    "tls_certificate": "server.tls.certificate",
    "tls_key": "server.tls.key",
}
"""Flags -> the configuration field each one sets."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve models over HTTP",
        description="Serves models over the Open Inference Protocol and the OpenAI API.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models", nargs="*", help="model file, model folder, repository, or store of them"
    )
    parser.add_argument("--name", default="", help="what to call the model (one model only)")
    parser.add_argument("--config", help="configuration file (default: headrace.toml if there)")
    parser.add_argument("--show-config", action="store_true", help="print settings and stop")
    parser.add_argument(
        "--log-format",
        choices=["auto", "text", "json"],
        type=lambda text: {"default": "auto", "ISO8601": "auto"}.get(text, text),  # Triton's
        default="auto",
    )
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="default: info"
    )
    parser.add_argument("--access-log", action="store_true", help="one log line per request")
    server = parser.add_argument_group("server")
    server.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    server.add_argument("--port", type=int, help="port (default: 8000; 0: any free one)")
    server.add_argument("--grpc-port", type=int, help="a further port for gRPC (default: none)")
    server.add_argument("--metrics-port", type=int, help="a further port for /metrics")
    server.add_argument("--grpc-server", help="headrace (default), or grpcio on --grpc-port")
    server.add_argument("--workers", type=int, help="processes that share the port (default: 1)")
    server.add_argument("--tls-certificate", help="PEM file: serve HTTPS")
    server.add_argument("--tls-key", help="PEM file of the certificate's key")
    server.add_argument("--drain-timeout-s", type=float, help="grace for requests at the end")
    server.add_argument(
        "--readiness-grace-s", type=float, help="unready for so long before the port closes"
    )
    server.add_argument(
        "--watch", action="store_true", help="look at the repository every second; load by command"
    )
    server.add_argument("--memory-budget", metavar="SIZE", help='models leave to keep it: "4GiB"')
    server.add_argument("--record", help="write every event and decision of the scheduler there")
    server.add_argument("--cache-dir", help="built graphs and measurements are kept here")
    models = parser.add_argument_group("models (measured at load unless said)")
    models.add_argument("--runtime", help="auto, onnxruntime, openvino, python, null")
    models.add_argument("--task", help="auto, tensor, text-embedding, tabular, ...")
    models.add_argument("--instances", type=int, help="executions of a model at one time")
    models.add_argument("--threads", type=int, help="threads inside one execution")
    models.add_argument("--max-batch-size", type=int, help="rows in one execution; 1: no batching")
    models.add_argument("--max-batch-tokens", type=int, help="rows x longest in one execution")
    models.add_argument("--max-queue-size", type=int, help="requests that may wait for a model")
    models.add_argument("--slo", metavar="TIME", help='answers are wanted within it: "50ms"')
    models.add_argument("--timeout-s", type=float, help="a request is answered 504 after so long")
    triton_flags.add_flags(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    triton = triton_flags.understand(args)
    loaded = _load(args, triton, os.environ)
    if args.show_config:
        print(explain(loaded))
        return 0
    from headrace.server.stopping import run_until_stopped

    return run_until_stopped(lambda: _serve(args, triton, loaded.config))


def _serve(args: argparse.Namespace, triton: triton_flags.Understood, config: Config) -> int:
    from headrace.telemetry import logs

    args.models = triton_flags.paths_of(args.models, triton)
    args.log_level = args.log_level or triton.log_level or "info"
    logs.configure(format=args.log_format, level=args.log_level, access=args.access_log)
    _check_early(config)
    private_folder(cache_folder(config, os.environ))
    if config.server.log_file:
        logs.log_to(config.server.log_file)
    triton_flags.tell(triton, config.server)
    if config.server.workers > 1:
        return _serve_with_workers(args, config)
    return _serve_alone(args, config)


def _check_early(config: Config) -> None:
    """What would otherwise be found out only after the models are loaded.

    Raises:
        ConfigError: the traces could not be written.
        MissingExtra: grpcio's server is wanted, and is not installed.
    """
    server = config.server
    if server.trace.file:
        path = Path(server.trace.file)
        is_new = not path.exists()
        try:
            path.open("ab").close()
            if is_new:
                path.unlink()  # an empty file is no list of traces
        except OSError as error:
            raise ConfigError(
                f"cannot write the traces to {server.trace.file}: {error.strerror}",
                hint="--trace-file names a file in a folder that can be written",
                field="server.trace.file",
            ) from None
    if server.grpc_server == "grpcio" and find_spec("grpc") is None:
        raise MissingExtra("--grpc-server grpcio", extra="grpc", package="grpcio")


def _load(
    args: argparse.Namespace, triton: triton_flags.Understood, env: Mapping[str, str]
) -> LoadedConfig:
    own = {field: getattr(args, flag) for flag, field in _FLAGS.items()}
    if args.watch:
        own["server.model_control"] = "watch"
    names = {field: "--" + flag.replace("_", "-") for flag, field in _FLAGS.items()}
    flags = triton.fields | {field: value for field, value in own.items() if value is not None}
    file = config_file(args.config, env, Path())
    loaded = load_config(file, env, flags, flag_names=names | triton.names)
    ports = triton_flags.default_ports(triton, loaded.config.server, loaded.origins)
    if not ports:
        return loaded
    names = names | triton.names | dict.fromkeys(ports, "--model-repository")
    return load_config(file, env, flags | ports, flag_names=names)


def _serve_alone(args: argparse.Namespace, config: Config) -> int:
    import msgspec

    from headrace.engine.opening import Openings
    from headrace.repository.layout import scan
    from headrace.server import ports

    paths, fetch = _places(args, config)
    found = scan(paths, config=config, name=args.name)
    _tell_notes(found)
    listeners, server = ports.listen(config.server)
    config = msgspec.structs.replace(config, server=server)
    # With a budget each waits for its room; lazy ones wait for somebody who asks.
    eager = [m for m in found.models if m.config.residency.load == "eager"]
    openings = Openings(
        [] if config.memory_budget_bytes else eager,
        cache_folder(config, os.environ),
        config.compiled_cache_bytes,
        config.server.parallel_loads,
    )
    # The models are on their way: time to import what will serve them.
    import uvloop

    from headrace.server.app import serve

    async def main() -> int:
        return await serve(
            config,
            found,
            listeners,
            openings=openings,
            announce=_announcement(config),
            paths=paths,
            name=args.name,
            fetch=fetch,
        )

    return uvloop.run(main())


def _serve_with_workers(args: argparse.Namespace, config: Config) -> int:
    import contextlib
    import logging

    import msgspec

    from headrace.repository.layout import scan
    from headrace.server import ports
    from headrace.server.link import Roster
    from headrace.server.processes import Supervisor, run_workers
    from headrace.server.stopping import END_GRACE_S, end_within
    from headrace.server.worker import WorkerSpec

    # A mistake in the paths is told here, once, and not by every worker.
    found = scan(_places(args, config)[0], config=config, name=args.name)
    _tell_notes(found)
    held, server = ports.reserve(config.server)
    config = msgspec.structs.replace(config, server=server)
    spec = WorkerSpec(
        config,
        tuple(args.models),
        args.name,
        args.log_format,
        args.log_level,
        args.access_log,
    )
    log = logging.getLogger("headrace.server")
    announced = False

    def on_roster(roster: Roster) -> None:
        nonlocal announced
        log.info("%d of %d workers ready", roster.ready, roster.count)
        if roster.ready == roster.count and not announced:
            announced = True
            for line in _announcement(config):
                log.info("%s", line)

    stop_timeout_s = server.drain_timeout_s + server.readiness_grace_s + 10.0
    end_within(stop_timeout_s + END_GRACE_S)
    with contextlib.ExitStack() as reserved:
        for placeholder in held:
            reserved.enter_context(placeholder)
        supervisor = Supervisor(
            config.server.workers,
            spec.command,
            stop_timeout_s=stop_timeout_s,
            worker_timeout_s=server.worker_timeout_s,
            environment=spec.environment(),
            on_roster=on_roster,
        )
        return run_workers(supervisor)


def _places(args: argparse.Namespace, config: Config) -> tuple[list[Path], Fetch | None]:
    """The paths that were given, and what brings them up to date where stores are among them.

    What the stores hold is fetched first.
    """
    from headrace.repository.stores.spec import parse_store

    if not any(map(parse_store, args.models)):
        return [Path(path) for path in args.models], None
    from headrace.repository.mirrors import Mirrors  # and with it an HTTP client

    mirrors = Mirrors(
        args.models,
        cache_folder(config, os.environ),
        config.store_cache_bytes,
        config.store_redirect_hosts,
    )
    mirrors.fetch(first=True)
    return mirrors.paths, mirrors.fetch


def _tell_notes(found: ScanResult) -> None:
    import logging

    for note in found.notes:
        logging.getLogger("headrace.repository").warning("%s", note)


def address(config: Config, port: int) -> str:
    """The URL a person on this machine can open."""
    host = config.server.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - for display
    if ":" in shown and not shown.startswith("["):
        shown = f"[{shown}]"
    return f"{'https' if config.server.tls else 'http'}://{shown}:{port}"


def _announcement(config: Config) -> tuple[str, ...]:
    from headrace.server import ports

    url = address(config, config.server.port)
    return (f"ready on {url} (try it: {url}/docs){ports.announced(config.server)}",)
