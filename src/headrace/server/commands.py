"""What a running server can be told, as values that travel between its workers.

A :class:`Journal` is all that was told so far, without what a later command has made
meaningless: a worker that starts later catches up by carrying it out.
"""

from __future__ import annotations

from typing import Any

import msgspec


class LoadModel(msgspec.Struct, frozen=True, tag="load"):
    """Load a model, or load it again. ``config``: JSON text laid over its configuration.

    ``files``: contents that stand for files of its folder, by path inside it.
    """

    model: str
    config: str | None = None
    files: dict[str, bytes] = {}


class UnloadModel(msgspec.Struct, frozen=True, tag="unload"):
    """Unload every version; ``dependents``: of an ensemble's steps too."""

    model: str
    dependents: bool = False


class SetAliases(msgspec.Struct, frozen=True, tag="aliases"):
    """These names stand for these versions of a model from now on; ``why`` for its history."""

    model: str
    aliases: dict[str, str]
    why: str = ""


class RollBack(msgspec.Struct, frozen=True, tag="rollback"):
    """What the newest version replaced, and is still in memory, answers again."""

    model: str
    reason: str


class Pin(msgspec.Struct, frozen=True, tag="pin"):
    """Whether a model may leave memory to make room."""

    model: str
    pinned: bool


class ChangeTrace(msgspec.Struct, frozen=True, tag="trace"):
    """Settings of ``telemetry.trace``, of the server where ``model`` is ""."""

    model: str
    update: dict[str, Any]


class ChangeLog(msgspec.Struct, frozen=True, tag="log"):
    """Settings of ``telemetry.log_settings``."""

    update: dict[str, Any]


class RegisterRegion(msgspec.Struct, frozen=True, tag="register"):
    """Map ``/dev/shm/<key>`` under the name ``region``, for the user ``owner`` alone."""

    region: str
    key: str
    offset: int
    byte_size: int
    owner: int


class UnregisterRegion(msgspec.Struct, frozen=True, tag="unregister"):
    """Forget a region of the user ``owner``, or all of them where ``region`` is ""."""

    region: str
    owner: int


Command = (
    LoadModel
    | UnloadModel
    | SetAliases
    | RollBack
    | Pin
    | ChangeTrace
    | ChangeLog
    | RegisterRegion
    | UnregisterRegion
)

encode = msgspec.msgpack.Encoder().encode
decode: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


class Journal(msgspec.Struct):
    """See the module. In the order in which things were told."""

    commands: list[Command] = msgspec.field(default_factory=list)

    def record(self, command: Command) -> None:
        """Adds what was carried out everywhere."""
        if isinstance(command, ChangeTrace | ChangeLog):
            command = self._merged(command)
        self.commands = [old for old in self.commands if not _supersedes(command, old)]
        # Nothing is registered at a start, and nothing stands by to go back to.
        if not isinstance(command, UnregisterRegion | RollBack):
            self.commands.append(command)

    def _merged(self, command: ChangeTrace | ChangeLog) -> ChangeTrace | ChangeLog:
        """Settings add up, unless a model's are all taken back."""
        if not command.update:
            return command
        for old in self.commands:
            if isinstance(old, ChangeTrace | ChangeLog) and _supersedes(command, old):
                return msgspec.structs.replace(command, update=old.update | command.update)
        return command


def _supersedes(new: Command, old: Command) -> bool:
    if isinstance(new, LoadModel | UnloadModel):
        return isinstance(old, LoadModel | UnloadModel) and old.model == new.model
    if isinstance(new, SetAliases | Pin):
        return type(old) is type(new) and old.model == new.model
    if isinstance(new, RollBack):
        return False
    if isinstance(new, ChangeTrace):
        return isinstance(old, ChangeTrace) and old.model == new.model
    if isinstance(new, ChangeLog):
        return isinstance(old, ChangeLog)
    if not isinstance(old, RegisterRegion):
        return False
    return new.owner == old.owner and new.region in ("", old.region)
