"""What the server and the child of a Triton model say to each other, after its start.

One packet is one message, msgpack, and the bytes of its tensors: behind it where they are few,
else in a memory file of their own whose descriptor travels along (unix(7), SCM_RIGHTS). Such a
file has one writer, one reader and no name; it is gone when the last array on it is.

::

    server                          child
      Execute          ->                     one at a time
                       <-  Answer*              of any request, at any time
                       <-  Executed             execute() is over
      Cancel           ->                     nobody waits for this request any more
                       <-  HostCall             the model calls another model
      HostAnswer*      ->
      end of file      ->                     finalize(), and it exits
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np

from headrace.runtimes.python.messages import Disconnected
from headrace.types import DTYPE_OF

MAX_INLINE_BYTES = 48 * 1024
"""Copying so much through the socket costs less than making, sending and mapping a file."""

_MAX_PACKET_BYTES = 192 * 1024
"""Linux's default buffer of a socket takes a packet of 208 KiB."""

_ALIGNMENT = 64
_OBJECT = np.dtype(object)
_HEAD_BYTES = 4


class TensorInfo(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One tensor in the bytes of a message. BYTES elements have their lengths before them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class RequestInfo(msgspec.Struct, array_like=True):
    """One request, without the bytes of its tensors. ``flags``: 1 sequence start, 2 its end."""

    key: int
    id: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...] | None
    parameters: dict[str, Any]
    sequence_id: int | str
    flags: int
    priority: int
    timeout_us: int


class Execute(msgspec.Struct, tag=True, array_like=True):
    """Run these."""

    requests: list[RequestInfo]


class Cancel(msgspec.Struct, tag=True, array_like=True):
    """Nobody waits for ``key`` any more."""

    key: int


class HostAnswer(msgspec.Struct, tag=True, array_like=True):
    """One answer of another model. ``error`` "": there is none; ``final``: the last."""

    call: int
    outputs: tuple[TensorInfo, ...]
    error: str
    final: bool


class Answer(msgspec.Struct, tag=True, array_like=True):
    """One answer to ``key``, or (``outputs`` None) only the end of its answers."""

    key: int
    outputs: tuple[TensorInfo, ...] | None
    error: str
    final: bool


class Executed(msgspec.Struct, tag=True, array_like=True):
    """``execute`` returned; ``error`` and ``traceback`` if it raised.

    ``again``: requests that are to be run again; nothing more is said of them now.
    """

    error: str
    traceback: str
    again: tuple[int, ...] = ()


class HostCall(msgspec.Struct, tag=True, array_like=True):
    """The model asks another one. ``question``: "infer", or "ready"."""

    call: int
    question: str
    model: str
    version: str
    request: RequestInfo


ToChild = Execute | Cancel | HostAnswer
ToServer = Answer | Executed | HostCall


class Outbox:
    """Puts tensors into the bytes of one message."""

    def __init__(self) -> None:
        self._buffers: list[Any] = []
        self.size = 0

    def add(self, name: str, datatype: str, data: np.ndarray) -> TensorInfo:
        """A tensor of the message."""
        content = to_bytes(data) if data.dtype == _OBJECT else np.ascontiguousarray(data)
        size = len(content) if isinstance(content, bytes) else content.nbytes
        padding = -self.size % _ALIGNMENT
        if padding:
            self._buffers.append(bytes(padding))
        offset = self.size + padding
        if size:
            self._buffers.append(
                content if isinstance(content, bytes) else content.reshape(-1).view(np.uint8).data
            )
        self.size = offset + size
        return TensorInfo(name, datatype, tuple(data.shape), offset, size)

    @property
    def buffers(self) -> list[Any]:
        """What was added, in order."""
        return self._buffers


class Line:
    """One end of the socket. Any thread sends; one receives. Owns the socket."""

    def __init__(self, end: socket.socket, incoming: Any) -> None:
        self._socket = end
        self._lock = threading.Lock()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Any = msgspec.msgpack.Decoder(incoming).decode
        self._buffer = bytearray(_MAX_PACKET_BYTES)

    def send(self, message: Any, outbox: Outbox | None = None) -> None:
        """Sends one message with its tensors.

        Raises:
            Disconnected: nobody is there any more, or the message itself is too large.
        """
        head = self._encode(message)
        if len(head) + MAX_INLINE_BYTES > _MAX_PACKET_BYTES:
            raise Disconnected(f"a message of {len(head)} bytes")
        parts = [len(head).to_bytes(_HEAD_BYTES, "little"), head]
        try:
            if outbox is None or outbox.size <= MAX_INLINE_BYTES:
                if outbox is not None:
                    parts += outbox.buffers
                with self._lock:
                    self._socket.sendmsg(parts)
                return
            file = os.memfd_create("headrace-tensors", os.MFD_CLOEXEC)
            try:
                _write_all(file, outbox.buffers)
                rights = array.array("i", [file])
                with self._lock:
                    self._socket.sendmsg(
                        parts, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())]
                    )
            finally:
                os.close(file)
        except OSError as error:
            raise Disconnected(str(error)) from error

    def receive(self) -> tuple[Any, Any]:
        """Waits for one message: the message, and the buffer with its tensors.

        Raises:
            Disconnected: the other side is gone, or sent what is no message.
        """
        try:
            size, ancillary, _, _ = self._socket.recvmsg_into(
                [self._buffer], socket.CMSG_LEN(array.array("i").itemsize)
            )
            if not size:
                raise Disconnected("end of file")
            end = _HEAD_BYTES + int.from_bytes(self._buffer[:_HEAD_BYTES], "little")
            message = self._decode(memoryview(self._buffer)[_HEAD_BYTES:end])
            for _, _, rights in ancillary:
                return message, _mapped(array.array("i", rights)[0])
            return message, bytearray(memoryview(self._buffer)[end:size])
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise Disconnected(str(error)) from error

    def hang_up(self) -> None:
        """Ends the conversation for both sides."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was faster

    def close(self) -> None:
        """Gives the socket back."""
        self._socket.close()


def read_tensor(info: TensorInfo, buffer: Any) -> np.ndarray:
    """The array of a tensor: a view, and writable; BYTES are ``bytes`` in an object array.

    Raises:
        Disconnected: it does not lie in the buffer.
    """
    if info.offset + info.size > len(buffer):
        raise Disconnected("a tensor outside of its message")
    if info.datatype == "BYTES":
        return from_bytes(memoryview(buffer)[info.offset : info.offset + info.size], info.shape)
    dtype = DTYPE_OF[info.datatype]
    count = prod(info.shape)
    if count * dtype.itemsize != info.size:
        raise Disconnected("a tensor of another size than its shape")
    if not count:
        return np.empty(info.shape, dtype)
    return np.frombuffer(buffer, dtype, count, info.offset).reshape(info.shape)


def to_bytes(data: np.ndarray) -> bytes:
    """BYTES elements, each with its length in four bytes before it, little-endian."""
    parts: list[bytes] = []
    for element in data.ravel():
        content = element.encode() if isinstance(element, str) else bytes(element)
        parts += (len(content).to_bytes(4, "little"), content)
    return b"".join(parts)


def from_bytes(content: Any, shape: Sequence[int]) -> np.ndarray:
    """The reverse."""
    elements: list[bytes] = []
    position, end = 0, len(content)
    while position < end:
        length = int.from_bytes(content[position : position + 4], "little")
        elements.append(bytes(content[position + 4 : position + 4 + length]))
        position += 4 + length
    made = np.empty(len(elements), _OBJECT)
    made[:] = elements
    return made.reshape(tuple(shape))


def _write_all(file: int, buffers: list[Any]) -> None:
    total = sum(map(len, buffers))
    os.ftruncate(file, total)
    written = 0
    while buffers:
        written = os.writev(file, buffers[:512])
        while buffers and written >= len(buffers[0]):
            written -= len(buffers[0])
            buffers = buffers[1:]
        if written:
            buffers = [memoryview(buffers[0])[written:], *buffers[1:]]


def _mapped(file: int) -> mmap.mmap:
    try:
        return mmap.mmap(file, os.fstat(file).st_size)
    finally:
        os.close(file)
