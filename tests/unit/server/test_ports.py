"""Which ports a configuration means, and that they are held or given back."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from headrace.config import ServerConfig
from headrace.errors import AddressInUse, ConfigError
from headrace.server import ports

HOST = "127.0.0.1"


@contextmanager
def taken() -> Iterator[int]:
    with socket.create_server((HOST, 0)) as other:
        yield other.getsockname()[1]


def numbers(server: ServerConfig) -> list[int | None]:
    return [server.port, server.grpc_port, server.metrics_port]


def close(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()


@pytest.mark.parametrize(
    ("more", "count"), [({}, 1), ({"grpc_port": 0}, 2), ({"grpc_port": 0, "metrics_port": 0}, 3)]
)
def test_every_port_that_is_wanted_listens(more: dict[str, int], count: int) -> None:
    listeners, server = ports.listen(ServerConfig(port=0, **more))
    try:
        there = [number for number in numbers(server) if number is not None]
        assert len(set(there)) == count
        assert 0 not in there
        for number in there:
            socket.create_connection((HOST, number)).close()
    finally:
        close(listeners)


@pytest.mark.parametrize("more", [{}, {"grpc_server": "grpcio"}])
def test_if_one_cannot_be_had_none_is_kept(more: dict[str, str]) -> None:
    with taken() as port:
        for take in (ports.listen, ports.reserve):
            with socket.create_server((HOST, 0)) as other:
                main = other.getsockname()[1]
            server = ServerConfig(port=main, grpc_port=port, **more)
            with pytest.raises(AddressInUse, match=str(port)):
                take(server)
            socket.create_server((HOST, main)).close()


def test_workers_listen_on_what_was_reserved() -> None:
    held, server = ports.reserve(ServerConfig(port=0, grpc_port=0, metrics_port=0, workers=2))
    try:
        for number in numbers(server):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((HOST, number or 0))
        for _ in range(2):
            bound = ports.bind(server)
            assert [each.getsockname()[1] for each in bound] == numbers(server)
            close(bound)
    finally:
        close(held)


def test_the_port_of_grpcio_is_known_before_it_listens() -> None:
    config = ServerConfig(port=0, grpc_port=0, grpc_server="grpcio")
    listeners, server = ports.listen(config)
    close(listeners)
    assert len(listeners) == 1
    assert server.grpc_port
    with socket.create_server((HOST, server.grpc_port)):  # left to grpcio
        pass
    held, server = ports.reserve(config)
    close(held)
    assert [each.fileno() for each in held] == [-1, -1]
    assert server.grpc_port


def test_grpcio_needs_a_port_of_its_own() -> None:
    with pytest.raises(ConfigError, match="a port of its own"):
        ports.listen(ServerConfig(port=0, grpc_server="grpcio"))


@pytest.mark.parametrize(
    ("server", "text"),
    [
        (ServerConfig(), ""),
        (ServerConfig(grpc_port=8001), ", gRPC on 127.0.0.1:8001"),
        (ServerConfig(host="::1", metrics_port=8002), ", metrics on [::1]:8002"),
        (
            ServerConfig(grpc_port=1, metrics_port=2),
            ", gRPC on 127.0.0.1:1, metrics on 127.0.0.1:2",
        ),
    ],
)
def test_what_is_announced(server: ServerConfig, text: str) -> None:
    assert ports.announced(server) == text


def test_two_of_its_own_ports_must_differ() -> None:
    with pytest.raises(ConfigError, match="--port and --grpc-port are both 8123"):
        ports.fields_of(ServerConfig(port=8123, grpc_port=8123))


def test_the_hint_names_the_flag_of_the_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        with pytest.raises(AddressInUse) as caught:
            ports.listen(ServerConfig(port=0, metrics_port=taken))
    assert "--metrics-port" in caught.value.hint
