"""Commands reach every worker, once, in one order, and those that come later as well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.errors import InvalidRequest, ModelError
from headrace.server.channel import Outcome, outcome_of, send_command, serve_commands
from headrace.server.commands import ChangeLog, Command, LoadModel, UnloadModel
from headrace.server.fellows import Alone, Fellows, control_path
from headrace.server.link import Seat


class Worker:
    """One worker's side: what it was told, and what it refuses."""

    def __init__(self, folder: Path, index: int, count: int) -> None:
        self.told: list[Command] = []
        self.refuses: str = ""
        seat = Seat(index=index, count=count, run_dir=str(folder), channel_fd=-1)
        self.fellows = Fellows(seat, self._carry_out)

    async def _carry_out(self, command: Command) -> None:
        await asyncio.sleep(0)
        if isinstance(command, LoadModel) and command.model == self.refuses:
            raise InvalidRequest(f"failed to load '{command.model}'", code="broken", model="m")
        self.told.append(command)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[list[Worker]]:
    workers = [Worker(tmp_path, index, 3) for index in range(3)]
    for worker in workers:
        await worker.fellows.join()
    yield workers
    for worker in workers:
        await worker.fellows.leave()


async def test_whoever_is_asked_all_carry_it_out(workers: list[Worker]) -> None:
    story: list[Command] = [LoadModel("a"), UnloadModel("a"), ChangeLog({"log_info": False})]
    for worker, command in zip(workers, story, strict=True):
        await worker.fellows.tell_all(command)
    assert [worker.told for worker in workers] == [story] * 3


async def test_all_in_one_order(workers: list[Worker]) -> None:
    commands = [LoadModel(f"m{number}") for number in range(12)]
    await asyncio.gather(
        *(workers[number % 3].fellows.tell_all(command) for number, command in enumerate(commands))
    )
    assert len(workers[0].told) == len(commands)
    assert workers[0].told == workers[1].told == workers[2].told


async def test_a_mistake_that_shows_at_once_reaches_nobody_else(workers: list[Worker]) -> None:
    for worker in workers:
        worker.refuses = "a"
    with pytest.raises(InvalidRequest, match="failed to load 'a'"):
        await workers[1].fellows.tell_all(LoadModel("a"))
    await workers[1].fellows.tell_all(LoadModel("b"))
    assert [worker.told for worker in workers] == [[LoadModel("b")]] * 3


async def test_what_a_sibling_refuses_is_told_as_its_own_error(workers: list[Worker]) -> None:
    workers[2].refuses = "a"
    with pytest.raises(InvalidRequest) as caught:
        await workers[0].fellows.tell_all(LoadModel("a"))
    error = caught.value
    assert (error.message, error.code) == ("failed to load 'a'", "broken")
    assert error.details == {"model": "m"}


async def test_who_comes_later_catches_up_and_misses_nothing_after(
    workers: list[Worker], tmp_path: Path
) -> None:
    await workers[2].fellows.leave()
    for command in (LoadModel("a"), LoadModel("b"), UnloadModel("a")):
        await workers[0].fellows.tell_all(command)
    assert workers[2].told == []
    successor = Worker(tmp_path, 2, 3)
    await successor.fellows.join()
    assert successor.told == [LoadModel("b"), UnloadModel("a")]
    await workers[1].fellows.tell_all(LoadModel("c"))
    assert successor.told[-1] == LoadModel("c")
    await successor.fellows.leave()


async def test_what_cannot_be_repeated_does_not_keep_a_worker_from_starting(
    workers: list[Worker], tmp_path: Path
) -> None:
    await workers[2].fellows.leave()
    await workers[0].fellows.tell_all(LoadModel("a"))
    await workers[0].fellows.tell_all(LoadModel("b"))
    successor = Worker(tmp_path, 2, 3)
    successor.refuses = "a"
    await successor.fellows.join()
    assert successor.told == [LoadModel("b")]
    await successor.fellows.leave()


async def test_a_server_alone_carries_out_what_it_is_told(tmp_path: Path) -> None:
    worker = Worker(tmp_path, 0, 1)
    alone = Alone(worker._carry_out)
    await alone.join()
    await alone.tell_all(LoadModel("a"))
    await alone.leave()
    assert worker.told == [LoadModel("a")]


async def test_a_worker_that_does_not_answer_is_given_up_on(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def hang(_: Command) -> None:
        await never.wait()

    path = control_path(tmp_path, 0)
    server = await serve_commands(path, hang)
    with pytest.raises(TimeoutError):
        await send_command(path, LoadModel("a"), timeout_s=0.02)
    never.set()
    server.close()


async def test_a_place_without_a_worker_is_passed_over(tmp_path: Path) -> None:
    assert await send_command(control_path(tmp_path, 0), LoadModel("a")) is None


async def test_bytes_that_are_no_command_end_the_connection_only(tmp_path: Path) -> None:
    worker = Worker(tmp_path, 0, 1)
    path = control_path(tmp_path, 0)
    server = await serve_commands(path, worker._carry_out)
    for junk in (b"\xff\xff\xff\xff", b"\0\0\0\x02\xc1\xc1", b"\0\0"):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(junk)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    assert await send_command(path, LoadModel("a")) == Outcome()
    server.close()


def test_an_error_that_was_not_foreseen_is_the_servers() -> None:
    with pytest.raises(ModelError, match="KeyError: 'x'"):
        outcome_of(KeyError("x")).check()
