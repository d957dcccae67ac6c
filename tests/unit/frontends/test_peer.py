"""Which addresses are loopback, and what transports and grpcio say of a connection."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from headrace.frontends.peer import (
    Address,
    Peer,
    is_loopback,
    peer_of,
    peer_of_grpcio,
)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.255.3.4", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("128.0.0.1", False),
        ("0.0.0.0", False),
        ("fe80::1%eth0", False),
        ("localhost", False),
        ("", False),
        ("/run/headrace.sock", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    assert Peer(local=Address(host, 1)).on_loopback is expected


def test_an_unknown_address_counts_as_loopback() -> None:
    assert Peer().on_loopback


class Transport(asyncio.BaseTransport):
    def __init__(self, connection: socket.socket) -> None:
        super().__init__(
            {"peername": connection.getpeername(), "sockname": connection.getsockname()}
        )


def test_both_ends_of_a_tcp_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0] as there:
            found = peer_of(Transport(there))
            assert found.remote == client.getsockname()
    assert found.local == ("127.0.0.1", port)
    assert found.on_loopback


def test_a_unix_socket_is_no_loopback_address() -> None:
    """A browser cannot connect to one, so the host that is asked for does not matter."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        found = peer_of(Transport(ours))
    assert found == Peer(Address("", None), Address("", None))
    assert not found.on_loopback


@pytest.mark.parametrize(
    ("text", "remote", "on_loopback"),
    [
        ("ipv4:127.0.0.1:5000", ("127.0.0.1", 5000), True),
        ("ipv4:192.0.2.7:5000", ("192.0.2.7", 5000), False),
        ("ipv6:%5B::1%5D:5000", ("::1", 5000), True),
        ("ipv6:[2001:db8::1]:5000", ("2001:db8::1", 5000), False),
        ("unix:/run/socket", ("/run/socket", None), False),
        ("unknown", None, True),
        ("ipv4:127.0.0.1", None, True),
    ],
)
def test_what_grpcio_says(text: str, remote: Any, on_loopback: bool) -> None:
    found = peer_of_grpcio(text)
    assert found.remote == remote
    assert found.on_loopback is on_loopback
