"""Whose a loopback connection is, by the kernel's table; and whose must not be believed."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from headrace.frontends import socket_owner
from headrace.frontends.peer import Address, Peer
from headrace.frontends.socket_owner import user_of

OTHER_UID = 54321


def peer_of(accepted: socket.socket) -> Peer:
    remote, local = accepted.getpeername(), accepted.getsockname()
    return Peer(Address(*remote[:2]), Address(*local[:2]))


@contextlib.contextmanager
def connection(host: str, *, dual: bool = False) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end and the client's; ``dual``: the server's is an IPv6 socket in any case."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(socket.AF_INET6 if dual else family) as listener:
        if dual:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::" if dual else host, 0))
        listener.listen()
        with socket.socket(family) as client:
            client.connect((host, listener.getsockname()[1]))
            accepted, _ = listener.accept()
            with accepted:
                yield accepted, client


@pytest.mark.parametrize(
    ("host", "dual"),
    [("127.0.0.1", False), ("127.0.0.9", False), ("::1", False)]
    + [(host, True) for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1")],
)
def test_a_connection_of_this_process(host: str, dual: bool) -> None:
    with connection(host, dual=dual) as (accepted, _):
        assert user_of(peer_of(accepted)) == os.getuid()


def test_a_client_that_has_left_is_nobody() -> None:
    """The kernel keeps its end for a while, and may say that it is root's."""
    with connection("127.0.0.1") as (accepted, client):
        peer = peer_of(accepted)
        client.close()
        assert user_of(peer) is None


def test_what_is_not_a_loopback_connection_is_nobodys() -> None:
    with connection("127.0.0.1") as (accepted, _):
        remote, local = peer_of(accepted).remote, peer_of(accepted).local
        assert remote is not None
        assert local is not None
        for peer in (
            Peer(),
            Peer(remote),
            Peer(None, local),
            Peer(Address("/run/socket", None), Address("/run/socket", None)),
            Peer(Address(remote.host, 1), local),
            Peer(local, remote),  # the other direction is the server's own end
            Peer(Address("192.0.2.1", 5), Address("192.0.2.2", 8000)),
            Peer(remote, Address(local.host, None)),
        ):
            expected = os.getuid() if peer == Peer(local, remote) else None
            assert user_of(peer) == expected


def test_a_listener_on_the_clients_port_is_not_the_client() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        host, port = listener.getsockname()
        assert user_of(Peer(Address(host, port), Address(host, 9))) is None


def test_a_user_without_a_number_here_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_owner, "_unnamed_users", lambda: (os.getuid(),))
    with connection("127.0.0.1") as (accepted, _):
        assert user_of(peer_of(accepted)) is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_connection_of_another_user() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                os.close(tell)
                os.setuid(OTHER_UID)
                client = socket.socket()
                client.connect(address)
                os.read(told, 1)  # until the parent has looked
            os._exit(0)
        accepted, _ = listener.accept()
        with accepted:
            assert user_of(peer_of(accepted)) == OTHER_UID
        os.close(tell)
        os.close(told)
        os.waitpid(child, 0)
