"""Which ports a server listens on: one for everything, and further ones where they are wanted.

The main port and gRPC's answer everything, HTTP/1.1 and HTTP/2 and gRPC: which one it is, the first
bytes of a connection say. A port of its own for gRPC is for clients that expect one, as Triton's
do. The port for metrics answers metrics and health only, so that it can be open to scrapers.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec

from headrace.config import ServerConfig
from headrace.errors import ConfigError, HeadraceError
from headrace.server.sockets import bound_socket, listening_socket, reserve_port


def fields_of(server: ServerConfig) -> tuple[str, ...]:
    """The fields with a port that our own lanes listen on, the main one first.

    Raises:
        ConfigError: grpcio's server is to be used, and there is no port for it.
    """
    fields = ["port"]
    if server.grpc_server == "grpcio":
        if server.grpc_port is None:
            raise ConfigError(
                "grpcio's server needs a port of its own",
                hint="--grpc-port 8001 --grpc-server grpcio",
                field="server.grpc_port",
            )
    elif server.grpc_port is not None:
        fields.append("grpc_port")
    if server.metrics_port is not None:
        fields.append("metrics_port")
    _differ(server)
    return tuple(fields)


def _differ(server: ServerConfig) -> None:
    seen: dict[int, str] = {}
    for field in ("port", "grpc_port", "metrics_port"):
        port = getattr(server, field)
        if not port:
            continue
        if port in seen:
            one, other = seen[port].replace("_", "-"), field.replace("_", "-")
            raise ConfigError(
                f"--{one} and --{other} are both {port}",
                hint=f"the main port answers everything: leave --{other} out, or choose another",
                field=f"server.{field}",
                got=port,
            )
        seen[port] = field


def listen(server: ServerConfig) -> tuple[list[socket.socket], ServerConfig]:
    """Sockets that listen, and the configuration with the ports they have.

    Raises:
        AddressInUse, ConfigError: one cannot be had; none is kept then.
    """
    with ExitStack() as undo:
        listeners = []
        for field in fields_of(server):
            listener = listening_socket(server.host, getattr(server, field), field=field)
            undo.callback(listener.close)
            listeners.append(listener)
        undo.pop_all()
    server = _with_ports(server, fields_of(server), listeners)
    if server.grpc_server == "grpcio":  # it takes a number, and tells nobody which it chose
        try:
            with reserve_port(server.host, server.grpc_port or 0, "grpc_port") as placeholder:
                server = _with_ports(server, ["grpc_port"], [placeholder])
        except HeadraceError:
            for listener in listeners:
                listener.close()
            raise
    return listeners, server


def reserve(server: ServerConfig) -> tuple[list[socket.socket], ServerConfig]:
    """Holds the ports for workers that will share them. As :func:`listen`."""
    with ExitStack() as undo:
        held = []
        fields = fields_of(server)
        if server.grpc_server == "grpcio":
            fields += ("grpc_port",)
        for field in fields:
            placeholder = reserve_port(server.host, getattr(server, field), field)
            undo.callback(placeholder.close)
            held.append(placeholder)
        undo.pop_all()
    return held, _with_ports(server, fields, held)


def bind(server: ServerConfig) -> list[socket.socket]:
    """A worker's own sockets on reserved ports, not listening yet."""
    return [
        bound_socket(server.host, getattr(server, field), shared=True)
        for field in fields_of(server)
    ]


def announced(server: ServerConfig) -> str:
    """What there is besides the main port, for people; "" for nothing."""
    host = f"[{server.host}]" if ":" in server.host else server.host
    parts = [
        f", {what} on {host}:{port}"
        for what, port in (("gRPC", server.grpc_port), ("metrics", server.metrics_port))
        if port is not None
    ]
    return "".join(parts)


def _with_ports(
    server: ServerConfig, fields: Sequence[str], sockets: Sequence[socket.socket]
) -> ServerConfig:
    ports = [each.getsockname()[1] for each in sockets]
    return msgspec.structs.replace(server, **dict(zip(fields, ports, strict=True)))
