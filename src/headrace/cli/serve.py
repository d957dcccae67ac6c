"""``headrace serve``: one file, one folder or a repository, on one port."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.loading import LoadedConfig, cache_folder, config_file, explain, load_config

if TYPE_CHECKING:
    from headrace.config import Config

_EPILOG = """\
examples:
  headrace serve model.onnx                      one file, nothing to configure
  headrace serve ./models --workers 2            a repository: <model>/<version>/<file>
  headrace serve ./minilm --port 0               a Hugging Face folder, any free port
  headrace serve model.onnx --show-config        every setting and where it comes from
"""

_FLAGS: dict[str, str] = {
    "host": "server.host",
    "port": "server.port",
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
    parser.add_argument("models", nargs="+", help="model file, model folder or repository")
    parser.add_argument("--name", default="", help="what to call the model (one model only)")
    parser.add_argument("--config", help="configuration file (default: headrace.toml if there)")
    parser.add_argument("--show-config", action="store_true", help="print settings and stop")
    parser.add_argument("--log-format", choices=["auto", "text", "json"], default="auto")
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], default="info"
    )
    parser.add_argument("--access-log", action="store_true", help="one log line per request")
    server = parser.add_argument_group("server")
    server.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    server.add_argument("--port", type=int, help="port (default: 8000; 0: any free one)")
    server.add_argument("--workers", type=int, help="processes that share the port (default: 1)")
    server.add_argument("--tls-certificate", help="PEM file: serve HTTPS")
    server.add_argument("--tls-key", help="PEM file of the certificate's key")
    server.add_argument("--drain-timeout-s", type=float, help="grace for requests at the end")
    server.add_argument(
        "--readiness-grace-s", type=float, help="unready for so long before the port closes"
    )
    server.add_argument("--cache-dir", help="built graphs and measurements are kept here")
    models = parser.add_argument_group("models (measured at load unless said)")
    models.add_argument("--runtime", help="auto, onnxruntime, openvino, python, null")
    models.add_argument("--task", help="auto, tensor, text-embedding, tabular, ...")
    models.add_argument("--instances", type=int, help="executions of a model at one time")
    models.add_argument("--threads", type=int, help="threads inside one execution")
    models.add_argument("--max-batch-size", type=int, help="rows in one execution; 1: no batching")
    models.add_argument("--max-batch-tokens", type=int, help="rows x longest in one execution")
    models.add_argument("--max-queue-size", type=int, help="requests that may wait for a model")
    models.add_argument("--timeout-s", type=float, help="a request is answered 504 after so long")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    loaded = _load(args, os.environ)
    if args.show_config:
        print(explain(loaded))
        return 0
    from headrace.telemetry import logs

    logs.configure(format=args.log_format, level=args.log_level, access=args.access_log)
    if loaded.config.server.workers > 1:
        return _serve_with_workers(args, loaded.config)
    return _serve_alone(args, loaded.config)


def _load(args: argparse.Namespace, env: Mapping[str, str]) -> LoadedConfig:
    flags = {field: getattr(args, flag) for flag, field in _FLAGS.items()}
    names = {field: "--" + flag.replace("_", "-") for flag, field in _FLAGS.items()}
    file = config_file(args.config, env, Path())
    return load_config(file, env, flags, flag_names=names)


def _serve_alone(args: argparse.Namespace, config: Config) -> int:
    from headrace.engine.opening import Openings
    from headrace.repository.layout import scan
    from headrace.server.sockets import listening_socket

    found = scan([Path(path) for path in args.models], config=config, name=args.name)
    listener = listening_socket(config.server.host, config.server.port)
    openings = Openings(found.models, cache_folder(config, os.environ))
    # The models are on their way: time to import what will serve them.
    import uvloop

    from headrace.server.app import serve

    url = address(config, listener.getsockname()[1])

    async def main() -> int:
        return await serve(config, found, listener, openings=openings, announce=_announcement(url))

    return uvloop.run(main())


def _serve_with_workers(args: argparse.Namespace, config: Config) -> int:
    import logging

    import msgspec

    from headrace.repository.layout import scan
    from headrace.server.link import Roster
    from headrace.server.processes import Supervisor, run_workers
    from headrace.server.sockets import reserve_port
    from headrace.server.worker import WorkerSpec

    # A mistake in the paths is told here, once, and not by every worker.
    scan([Path(path) for path in args.models], config=config, name=args.name)
    placeholder = reserve_port(config.server.host, config.server.port)
    port = placeholder.getsockname()[1]
    server = msgspec.structs.replace(config.server, port=port)
    spec = WorkerSpec(
        msgspec.structs.replace(config, server=server),
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
            for line in _announcement(address(config, port)):
                log.info("%s", line)

    with placeholder:
        supervisor = Supervisor(
            config.server.workers,
            spec.command,
            stop_timeout_s=server.drain_timeout_s + server.readiness_grace_s + 10.0,
            on_roster=on_roster,
        )
        return run_workers(supervisor)


def address(config: Config, port: int) -> str:
    """The URL a person on this machine can open."""
    host = config.server.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - for display
    if ":" in shown and not shown.startswith("["):
        shown = f"[{shown}]"
    return f"{'https' if config.server.tls else 'http'}://{shown}:{port}"


def _announcement(url: str) -> tuple[str, ...]:
    return (f"ready on {url} (try it: {url}/docs)",)
