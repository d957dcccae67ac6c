"""Ports on the loopback: taken, shared, refused."""

from __future__ import annotations

import socket

import pytest

from headrace.errors import AddressInUse, ConfigError
from headrace.server.sockets import listening_socket, reserve_port

HOST = "127.0.0.1"


def port_of(bound: socket.socket) -> int:
    port = bound.getsockname()[1]
    assert isinstance(port, int)
    return port


def test_port_zero_picks_a_free_one_and_listens() -> None:
    with listening_socket(HOST, 0) as listener:
        assert port_of(listener) > 0
        assert listener.getblocking() is False
        socket.create_connection(listener.getsockname()).close()


def test_workers_share_a_reserved_port() -> None:
    with reserve_port(HOST, 0) as reservation:
        port = port_of(reservation)
        with (
            listening_socket(HOST, port, shared=True) as first,
            listening_socket(HOST, port, shared=True) as second,
        ):
            assert port_of(first) == port_of(second) == port


def test_a_reservation_alone_accepts_nothing() -> None:
    with reserve_port(HOST, 0) as reservation, pytest.raises(ConnectionRefusedError):
        socket.create_connection(reservation.getsockname())


def test_a_reservation_keeps_its_port_while_no_worker_listens() -> None:
    with reserve_port(HOST, 0) as reservation:
        with pytest.raises(AddressInUse):
            listening_socket(HOST, port_of(reservation))
        with pytest.raises(AddressInUse):
            reserve_port(HOST, port_of(reservation))


def test_a_stranger_that_shares_its_port_is_noticed() -> None:
    """The kernel would let us join it: same user, both with SO_REUSEPORT."""
    with reserve_port(HOST, 0) as reservation:
        port = port_of(reservation)
        stranger = listening_socket(HOST, port, shared=True)
    with stranger, pytest.raises(AddressInUse, match=f"port {port} of {HOST}") as caught:
        reserve_port(HOST, port)
    assert "--port" in caught.value.hint


def test_a_port_with_connections_of_an_ended_server_can_be_taken_again() -> None:
    with listening_socket(HOST, 0) as listener:
        port = port_of(listener)
        client = socket.create_connection(listener.getsockname())
        listener.setblocking(True)
        served, _ = listener.accept()
        served.close()  # the side that closes first is the one that lingers in TIME_WAIT
        assert client.recv(1) == b""
        client.close()
    with reserve_port(HOST, port), listening_socket(HOST, port, shared=True) as again:
        assert port_of(again) == port


def test_an_ipv6_address_is_served_where_there_is_one() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 in this kernel")
    try:
        listener = listening_socket("::1", 0)
    except ConfigError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with listener:
        assert listener.family is socket.AF_INET6


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "x" * 300])
def test_a_host_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listening_socket(host, 0)
    assert host in str(caught.value)
    assert caught.value.details["field"] == "server.host"
