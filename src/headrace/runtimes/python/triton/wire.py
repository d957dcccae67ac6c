"""What the server and the child of a Triton model say to each other, after its start.

One packet is one message, msgpack, and the bytes of its tensors: behind it where they are few,
else in a memory file of their own whose descriptor travels along (unix(7), SCM_RIGHTS). Such a
file has one writer, one reader and no name; it is gone when the last array on it is. A message
that is too long for a packet is at the end of such a file itself.

::

    server                          child
      Execute          ->                     one at a time
                       <-  Answer*              of any request, at any time
                       <-  Executed             execute() is over; what it returned
      Cancel           ->                     nobody waits for this request any more
                       <-  HostCall             the model calls another model
      HostAnswer*      ->
                       <-  HostCancel           it waits for that no more
                       <-  Measured*            a metric of the model's own has changed
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

from headrace.errors import InferenceFailed
from headrace.runtimes.python.messages import Disconnected
from headrace.types import DTYPE_OF

MAX_INLINE_BYTES = 48 * 1024
"""Copying so much through the socket costs less than making, sending and mapping a file."""

_MAX_PACKET_BYTES = 192 * 1024
"""Linux's default buffer of a socket takes a packet of 208 KiB."""

_RIGHTS_BYTES = socket.CMSG_LEN(array.array("i").itemsize)
_BUFFERS_AT_ONCE = 512  # of the 1024 that the kernel takes
_ALIGNMENT = 64
_OBJECT = np.dtype(object)
_HEAD_BYTES = 4
_MAX_HEAD_BYTES = _MAX_PACKET_BYTES - MAX_INLINE_BYTES - _HEAD_BYTES
_LENGTH_BYTES = 8
_IN_FILE = (0).to_bytes(_HEAD_BYTES, "little")
"""In place of a message's length: it is in the file, and its length is the rest of the packet."""


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
    """One answer of another model; ``final``: the last. ``code`` as in :class:`Answer`."""

    call: int
    outputs: tuple[TensorInfo, ...]
    error: str | None
    final: bool
    code: int = 0
    parameters: dict[str, Any] = {}


class Answer(msgspec.Struct, tag=True, array_like=True):
    """One answer to ``key``, or (``outputs`` and ``error`` None) only the end of its answers.

    ``code`` is TRITONSERVER_Error_Code, as ``TritonError`` has it.
    """

    key: int
    outputs: tuple[TensorInfo, ...] | None
    error: str | None
    final: bool
    code: int = 0
    parameters: dict[str, Any] = {}


class HostCall(msgspec.Struct, tag=True, array_like=True):
    """The model asks another one. ``question``: "infer", or "ready"."""

    call: int
    question: str
    model: str
    version: str
    request: RequestInfo


class HostCancel(msgspec.Struct, tag=True, array_like=True):
    """The model does not wait for the answers to ``call`` any more."""

    call: int


class Measured(msgspec.Struct, tag=True, array_like=True):
    """One series of the model's own metrics, as it is now.

    ``counts`` and ``bounds`` are those of a histogram's buckets, ``value`` is its sum.
    """

    family: str
    kind: str
    description: str
    labels: dict[str, str]
    value: float
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


class Executed(msgspec.Struct, tag=True, array_like=True):
    """``execute`` returned; ``error`` and ``traceback`` if it raised.

    ``answers`` are those that it returned. ``again``: requests that are to be run again; nothing
    more is said of them now. ``measured``: what it has changed.
    """

    error: str
    traceback: str
    again: tuple[int, ...] = ()
    answers: tuple[Answer, ...] = ()
    measured: tuple[Measured, ...] = ()


ToChild = Execute | Cancel | HostAnswer
ToServer = Answer | Executed | HostCall | HostCancel | Measured


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
    """One end of the socket. Any thread sends; one at a time receives. Owns the socket.

    Args:
        end: a connected, blocking ``SOCK_SEQPACKET`` socket.
        incoming: the union of messages that may arrive.
        max_bytes: of the tensors of one message that is sent.
    """

    def __init__(self, end: socket.socket, incoming: Any, *, max_bytes: int) -> None:
        self._socket = end
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Any = msgspec.msgpack.Decoder(incoming).decode
        self._buffer = bytearray(_MAX_PACKET_BYTES)

    def send(self, message: Any, outbox: Outbox | None = None) -> None:
        """Sends one message with its tensors.

        Raises:
            Disconnected: nobody is there any more.
            InferenceFailed: its tensors are larger than max_bytes, or there is no memory.
        """
        head = self._encode(message)
        tensors = [] if outbox is None else outbox.buffers
        size = 0 if outbox is None else outbox.size
        if size > self._max_bytes:
            raise InferenceFailed(
                f"tensors of {size} bytes, and max_shared_bytes is {self._max_bytes}",
                hint="raise max_shared_bytes in runtime_options",
            )
        long = len(head) > _MAX_HEAD_BYTES
        if not long and size <= MAX_INLINE_BYTES:
            if len(tensors) > _BUFFERS_AT_ONCE:
                tensors = [b"".join(tensors)]
            self._send([len(head).to_bytes(_HEAD_BYTES, "little"), head, *tensors])
            return
        file = _file_of([*tensors, head] if long else tensors)
        try:
            if long:
                self._send([_IN_FILE, len(head).to_bytes(_LENGTH_BYTES, "little")], file)
            else:
                self._send([len(head).to_bytes(_HEAD_BYTES, "little"), head], file)
        finally:
            os.close(file)

    def _send(self, parts: list[Any], file: int = -1) -> None:
        rights: list[Any] = []
        if file >= 0:
            content = array.array("i", [file]).tobytes()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, content)]
        try:
            with self._lock:
                self._socket.sendmsg(parts, rights)
        except OSError as error:
            raise Disconnected(str(error)) from error

    def fileno(self) -> int:
        """The socket, for a :class:`.watch.Watch`."""
        return self._socket.fileno()

    def receive(self, *, wait: bool = True) -> tuple[Any, Any] | None:
        """One message, and the buffer with its tensors; None: there is none, and no wait.

        Raises:
            Disconnected: the other side is gone, or sent what is no message.
        """
        how = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        try:
            size, ancillary, flags, _ = self._socket.recvmsg_into(
                [self._buffer], _RIGHTS_BYTES, how
            )
            if not size:
                raise Disconnected("end of file")
            file = next((array.array("i", rights)[0] for _, _, rights in ancillary), -1)
            mapped = None if file < 0 else _mapped(file)
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise Disconnected("a packet that is too large, or a file that did not arrive")
            view = memoryview(self._buffer)
            length = int.from_bytes(view[:_HEAD_BYTES], "little")
            if length:
                end = _HEAD_BYTES + length
                message = self._decode(view[_HEAD_BYTES:end])
                return message, bytearray(view[end:size]) if mapped is None else mapped
            if mapped is None:
                raise Disconnected("no message")
            length = int.from_bytes(view[_HEAD_BYTES:size], "little")
            return self._decode(mapped[len(mapped) - length :]), mapped
        except BlockingIOError:
            return None
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise Disconnected(str(error)) from error

    def hang_up(self) -> None:
        """Ends the conversation for both sides."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was faster

    def close(self) -> None:
        """Gives the socket back. Only after :meth:`hang_up`, which ends a send under way."""
        with self._lock:  # whoever sends must not meet another one's descriptor of this number
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


def fitting(array: np.ndarray, datatype: str, expected: str) -> np.ndarray | None:
    """``array`` as an output of the datatype that was declared.

    The width of floats may differ, and that of integers where every value fits; bits in
    ``uint16`` are BF16 too. None: it is of another kind.
    """
    if datatype == expected or (datatype, expected) == ("UINT16", "BF16"):
        return array
    target = DTYPE_OF[expected]
    kinds = array.dtype.kind + target.kind
    if "BF16" in (datatype, expected):
        return None
    if kinds == "ff":
        with np.errstate(over="ignore"):  # to infinity, as arithmetic of that width would
            return array.astype(target)
    if kinds in ("ii", "iu", "ui", "uu"):
        limits = np.iinfo(target)
        if not array.size or (limits.min <= array.min() and array.max() <= limits.max):
            return array.astype(target)
    return None


def to_bytes(data: np.ndarray) -> bytes:
    """BYTES elements, each with its length in four bytes before it, little-endian.

    As Triton has it, what is not ``bytes`` is sent as its text.
    """
    parts: list[bytes] = []
    for element in data.ravel().tolist():
        is_raw = isinstance(element, bytes | bytearray | memoryview)
        content = bytes(element) if is_raw else str(element).encode()
        parts.append(len(content).to_bytes(4, "little"))
        parts.append(content)
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


def _file_of(buffers: list[Any]) -> int:
    """A memory file with these bytes.

    Raises:
        InferenceFailed: there is no memory, or no descriptor, for it.
    """
    file = -1
    try:
        file = os.memfd_create("headrace-tensors", os.MFD_CLOEXEC)
        _write_all(file, buffers)
    except OSError as error:
        if file >= 0:
            os.close(file)
        raise InferenceFailed(f"tensors cannot be passed on: {error}") from error
    return file


def _write_all(file: int, buffers: list[Any]) -> None:
    os.ftruncate(file, sum(map(len, buffers)))
    first = 0
    while first < len(buffers):
        written = os.writev(file, buffers[first : first + _BUFFERS_AT_ONCE])
        while first < len(buffers) and written >= len(buffers[first]):
            written -= len(buffers[first])
            first += 1
        if written:
            buffers[first] = memoryview(buffers[first])[written:]


def _mapped(file: int) -> mmap.mmap:
    try:
        return mmap.mmap(file, os.fstat(file).st_size)
    finally:
        os.close(file)
