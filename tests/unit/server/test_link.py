"""The worker's end of the line, against a supervisor's end that the test holds."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from headrace.errors import ModelLoadError
from headrace.server.link import (
    MAX_MESSAGE_BYTES,
    Failed,
    Ready,
    Roster,
    Seat,
    SupervisorLink,
    decode_worker_message,
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, SupervisorLink]]:
    supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.set_inheritable(worker.fileno(), True)
    link = SupervisorLink(Seat(index=0, count=1, run_dir="/x", channel_fd=worker.detach()))
    with supervisor:
        supervisor.settimeout(10)
        yield supervisor, link
    link.close()


def heard(supervisor: socket.socket) -> Ready | Failed | None:
    return decode_worker_message(supervisor.recv(MAX_MESSAGE_BYTES))


def test_each_message_arrives_as_one(ends: tuple[socket.socket, SupervisorLink]) -> None:
    supervisor, link = ends
    link.ready()
    link.failed(ModelLoadError("cut short", hint="fetch it again"))
    assert heard(supervisor) == Ready()
    assert heard(supervisor) == Failed("cut short", "model_load_error", "fetch it again")


def test_an_error_that_is_not_ours_keeps_its_name(
    ends: tuple[socket.socket, SupervisorLink],
) -> None:
    supervisor, link = ends
    link.failed(ValueError("odd"))
    assert heard(supervisor) == Failed("ValueError: odd")


@pytest.mark.parametrize("character", ["x", "é", "\x00", "\U0001f30a"])
def test_a_long_reason_is_cut_and_still_one_message(
    ends: tuple[socket.socket, SupervisorLink], character: str
) -> None:
    supervisor, link = ends
    link.failed(ModelLoadError(character * 100_000, hint="h" * 100_000))
    message = heard(supervisor)
    assert isinstance(message, Failed)
    assert message.message.startswith(character * 1000)


async def test_rosters_are_followed_until_the_supervisor_is_gone(
    ends: tuple[socket.socket, SupervisorLink],
) -> None:
    supervisor, link = ends
    rosters: list[Roster] = []
    expected = [Roster(count=2, ready=1, restarts=0), Roster(count=2, ready=2, restarts=0)]
    supervisor.send(msgspec.json.encode(expected[0]))
    supervisor.send(b"a newer word")
    supervisor.send(msgspec.json.encode(expected[1]))
    supervisor.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(10):
        await link.follow(rosters.append)
    assert rosters == expected


async def test_a_supervisor_that_is_gone_is_no_error(
    ends: tuple[socket.socket, SupervisorLink],
) -> None:
    supervisor, link = ends
    supervisor.close()
    link.ready()
    async with asyncio.timeout(10):
        await link.follow()


def test_children_of_the_worker_do_not_inherit_the_line() -> None:
    supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = worker.detach()
    os.set_inheritable(fd, True)
    link = SupervisorLink(Seat(index=0, count=1, run_dir="/x", channel_fd=fd))
    assert not os.get_inheritable(fd)
    link.close()
    assert supervisor.recv(1) == b""
    supervisor.close()
