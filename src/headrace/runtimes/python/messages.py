"""What a server and the child process that holds a model say to each other.

A Unix ``SOCK_SEQPACKET`` pair: one message is one packet, so there is no framing, and the
end of either process is an empty packet to the other. Messages are msgpack, never pickle;
tensors do not pass here but through :mod:`headrace.runtimes.shared_tensors`.

::

    server                          child
      Start            ->                     once; then exactly one of
                       <-  Started, Refused     (Refused: it exits)
      Call             ->                     then, for every batch, exactly one of
                       <-  Returned, Raised
      end of file      ->                     it exits
"""

from __future__ import annotations

import socket
from typing import Any

import msgspec

from headrace.errors import InferenceFailed
from headrace.runtimes.base import ShapePolicy
from headrace.runtimes.python.native_start import NativeStart
from headrace.runtimes.python.options import PythonOptions
from headrace.runtimes.python.triton_start import TritonStart
from headrace.runtimes.shared_tensors import Parcel
from headrace.types import TensorSpec

MAX_MESSAGE_BYTES = 64 * 1024
"""A parcel takes about 30 bytes for each tensor, and the kernel's default buffer for a
packet is 208 KiB. Only errors come near it, so they are cut."""

MAX_TEXT = 16 * 1024
"""Characters of an error's message, or of its traceback, that are passed on."""


class Start(msgspec.Struct, tag=True, array_like=True):
    """Which model to load, and the environment to load it in."""

    model: str
    path: str
    options: PythonOptions
    pythonpath: str | None
    """The server's own PYTHONPATH: the child's was changed so that it finds what the server
    has imported, and programs that the model starts should not see that."""

    triton: TritonStart | None = None
    """Set where the file is one for Triton's Python backend."""

    native: NativeStart | None = None
    """Set where another runtime is to load the file."""


class Started(msgspec.Struct, tag=True, array_like=True):
    """Loaded; this is the signature, and where to write the first batch."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    next_segment: int
    max_batch_size: int = 0
    decoupled: bool = False
    axis_names: dict[str, tuple[str, ...]] = {}
    shape_policy: ShapePolicy = ShapePolicy()


class Refused(msgspec.Struct, tag=True, array_like=True):
    """Not loaded: the parts of a ModelLoadError."""

    message: str
    hint: str
    details: dict[str, Any]
    traceback: str
    code: str


class Call(msgspec.Struct, tag=True, array_like=True, gc=False):
    """One batch, and where to write the answer."""

    batch: Parcel
    next_segment: int


class Returned(msgspec.Struct, tag=True, array_like=True, gc=False):
    """The answer, and where to write the next batch."""

    answer: Parcel
    next_segment: int


class Raised(msgspec.Struct, tag=True, array_like=True, gc=False):
    """The parts of an error, and where to write the next batch. ``kind``: ``errors.kind_of``."""

    kind: str
    message: str
    hint: str
    details: dict[str, Any]
    traceback: str
    next_segment: int


ToChild = Start | Call
ToServer = Started | Refused | Returned | Raised


class Disconnected(Exception):
    """The other side is gone, or does not speak this protocol."""


class Channel:
    """One end of the pair. Owns the socket; one thread at a time sends or receives.

    Args:
        end: a connected, blocking ``SOCK_SEQPACKET`` socket.
        incoming: the union of messages that may arrive.
    """

    def __init__(self, end: socket.socket, incoming: Any) -> None:
        self._socket = end
        self._buffer = bytearray(MAX_MESSAGE_BYTES)
        self._view = memoryview(self._buffer)
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(incoming)
        self._encode = msgspec.msgpack.Encoder().encode

    def fileno(self) -> int:
        """The socket, for a selector."""
        return self._socket.fileno()

    def send(self, message: ToChild | ToServer) -> None:
        """Sends one message.

        Raises:
            InferenceFailed: it is larger than MAX_MESSAGE_BYTES: thousands of tensors.
            Disconnected: nobody is there any more.
        """
        packet = self._encode(message)
        if len(packet) > MAX_MESSAGE_BYTES:
            raise InferenceFailed(
                f"{type(message).__name__} takes {len(packet)} bytes, and a message to or from "
                f"a child process may have {MAX_MESSAGE_BYTES}"
            )
        try:
            self._socket.send(packet)
        except OSError as error:
            raise Disconnected(str(error)) from error

    def receive(self) -> Any:
        """Waits for one message.

        Raises:
            Disconnected: the other side is gone, or sent what is no message.
        """
        try:
            size = self._socket.recv_into(self._buffer)
            if size == 0:
                raise Disconnected("end of file")
            return self._decoder.decode(self._view[:size])
        except (OSError, msgspec.MsgspecError) as error:
            raise Disconnected(str(error)) from error

    def duplicate(self) -> socket.socket:
        """The same end once more: for whoever speaks another protocol on it from now on."""
        return self._socket.dup()

    def at_end(self) -> bool:
        """Whether the other side has hung up; does not wait."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def hang_up(self) -> None:
        """Ends the conversation for both sides; whoever waits in ``receive`` wakes up."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was faster

    def close(self) -> None:
        """Gives the socket back. Nobody may be in ``receive``."""
        self._socket.close()


def cut(text: str) -> str:
    """At most MAX_TEXT characters of ``text``: its end, where a traceback says most."""
    return text if len(text) <= MAX_TEXT else f"... {text[-MAX_TEXT:]}"
