"""How a command reaches the other workers: one connection, one command, one answer.

Wire, over a Unix socket in a folder that only this user can enter: a 4-byte big-endian length
and so many bytes of msgpack, in both directions. The answer says how it went, as an error of
ours where it did not, so that the caller is told by whichever worker was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from headrace import errors
from headrace.errors import HeadraceError, ModelError
from headrace.server.commands import Command, decode, encode

MAX_COMMAND_BYTES = 1 << 31
"""A model that is sent as the content of a file has passed ``max_body_bytes`` before; this is
what protobuf can hold, and a length above it is not one of ours."""

COMMAND_TIMEOUT_S = 900.0
"""Loading a large model takes minutes; a worker that takes longer is given up on."""

_LENGTH = struct.Struct(">I")

_REBUILT = (
    errors.InvalidRequest,
    errors.ModelNotFound,
    errors.Unsupported,
    errors.ModelNotReady,
    errors.ModelLoadError,
    errors.ConfigError,
)


class Outcome(msgspec.Struct, frozen=True):
    """How a command went: "" or the name of the error's class, and its fields."""

    kind: str = ""
    message: str = ""
    code: str = ""
    hint: str = ""
    details: dict[str, Any] = {}

    def check(self) -> None:
        """Raises HeadraceError unless it went well."""
        if self.kind:
            known = {error.__name__: error for error in _REBUILT}
            error = known.get(self.kind, ModelError)
            raise error(self.message, code=self.code, hint=self.hint, **self.details)


def outcome_of(error: BaseException) -> Outcome:
    """What is told of an error."""
    if isinstance(error, HeadraceError):
        details = msgspec.to_builtins(error.details, enc_hook=str)
        return Outcome(type(error).__name__, error.message, error.code, error.hint, details)
    return Outcome("ModelError", f"{type(error).__name__}: {error}")


async def serve_commands(
    path: Path, carry_out: Callable[[Command], Awaitable[None]]
) -> asyncio.Server:
    """Carries out what comes through ``path``, until the server is closed.

    A socket left behind by a predecessor is replaced.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The asker is gone, or is none of us.
        with contextlib.suppress(OSError, EOFError, msgspec.DecodeError):
            command = decode.decode(await _receive(reader))
            try:
                await carry_out(command)
            except Exception as error:  # noqa: BLE001 - it is told, not lost
                outcome = outcome_of(error)
            else:
                outcome = Outcome()
            _send(writer, msgspec.msgpack.encode(outcome))
            await writer.drain()
        writer.close()

    path.unlink(missing_ok=True)  # noqa: ASYNC240 - one directory entry, before serving begins
    return await asyncio.start_unix_server(answer, path)


async def send_command(
    path: Path, command: Command, *, timeout_s: float = COMMAND_TIMEOUT_S
) -> Outcome | None:
    """Tells the worker behind ``path``; None where there is no worker, or none any more.

    Raises:
        TimeoutError: it did not answer.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                _send(writer, encode(command))
                await writer.drain()
                return msgspec.msgpack.decode(await _receive(reader), type=Outcome)
            finally:
                writer.close()
    except TimeoutError:
        raise
    except (OSError, EOFError):
        return None


def _send(writer: asyncio.StreamWriter, packet: bytes) -> None:
    writer.write(_LENGTH.pack(len(packet)))
    writer.write(packet)


async def _receive(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_COMMAND_BYTES:
        raise EOFError(f"a command of {length} bytes was announced")
    return await reader.readexactly(length)
