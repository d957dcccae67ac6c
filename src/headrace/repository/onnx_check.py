"""Reads an ONNX file before a runtime does, and refuses the ones that would hurt.

Runtimes parse with C++ libraries that trust sizes, follow paths and nest without end.
This reader walks the protobuf bytes over a memory map, skips tensor data without touching
it, and needs neither the ``onnx`` package nor a second copy of the weights: milliseconds
for a model of 100 MB.

Message numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (IR version 13).
Where protobuf would merge a message that appears twice, this reader refuses it: no encoder
writes that, and two readers that disagree about a file are how checks are avoided.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from pathlib import Path

import msgspec

from headrace.errors import ModelLoadError
from headrace.repository import protobuf as pb
from headrace.repository.onnx_tensors import TensorLedger
from headrace.repository.onnx_values import OnnxValue, read_value
from headrace.repository.protobuf import LENGTH, VARINT, Buffer, FieldBudget
from headrace.repository.sniff import HEAD_BYTES, describe_bytes

MAX_DEPTH = 32
"""Graphs inside graphs (If, Loop, Scan). Real models nest two or three deep; protobuf's
own limit of 100 messages allows 33."""

MAX_FIELDS = 5_000_000
"""A transformer has some 10,000; five million take a few seconds to read. The values in the
lists of an attribute do not count (see ``_LISTS``)."""

Span = tuple[int, int]

# The lists of an attribute, one field for each value: floats (7), ints (8), strings (9). A
# tree ensemble keeps its nodes in them, millions of values, and none of them can do harm.
# Possessive quantifiers (++) do not backtrack, so the time is linear.
_SHORT_STRINGS = b"|".join(b"\\x%02x.{%d}" % (size, size) for size in range(0x80))
_LISTS = re.compile(
    rb"(?:\x3d.{4}|\x40[\x80-\xff]{0,9}+[\x00-\x7f]|\x4a(?:" + _SHORT_STRINGS + rb"))++",
    re.DOTALL,
)


class OnnxSummary(msgspec.Struct, frozen=True):
    """What an ONNX file says of itself.

    Attributes:
        ir_version: version of the file format.
        opsets: operator domain ("" is ``ai.onnx``) -> version it was written for.
        producer: name and version of the exporter, "" where it did not say.
        inputs, outputs: in the model's order; inputs with a default value (initialisers of
            old files) are left out.
        operators: ``domain::Op`` (``Op`` for ``ai.onnx``) -> how often, subgraphs included.
        weight_bytes: what all tensors take once loaded.
        external_files: path relative to the folder -> bytes on disk.
        file_bytes: size of the file itself.
    """

    ir_version: int
    opsets: dict[str, int]
    producer: str
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    operators: dict[str, int]
    weight_bytes: int
    external_files: dict[str, int]
    file_bytes: int


def check_onnx(path: Path, folder: Path) -> OnnxSummary:
    """Reads ``path`` and makes sure a runtime may.

    Args:
        path: the model file.
        folder: what its external data may not leave.

    Raises:
        ModelLoadError: the file is not an ONNX model, is cut off, claims more than it
            holds, nests too deep, or names data outside ``folder``. Nothing else is ever
            raised for a bad file.
    """
    descriptor = _open(path)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise ModelLoadError(f"{path} is empty", hint="the copy or download did not finish")
        with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as buffer:
            return _check(buffer, path, folder)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror}", path=str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelLoadError(f"{path} is not a regular file", path=str(path))
    return descriptor


def _check(buffer: Buffer, path: Path, folder: Path) -> OnnxSummary:
    try:
        return _ModelReader(buffer, path, folder).read()
    except pb.WireError as error:
        looks_like = describe_bytes(bytes(buffer[:HEAD_BYTES]))
        said = f"it looks like {looks_like}" if looks_like else str(error)
        raise ModelLoadError(
            f"{path} is not an ONNX model, or is cut off: {said}",
            hint=_HINTS.get(looks_like, "fetch or export it again; `.onnx` is the file to give"),
            path=str(path),
        ) from None


_HINTS = {
    "a Git LFS pointer, not the file it points to": "run `git lfs pull` where it came from",
    "a web page": "the download answered with a page, perhaps a login; fetch it again",
}


class _ModelReader:
    """One walk over one file. Every method takes the span of the message it reads."""

    def __init__(self, buffer: Buffer, path: Path, folder: Path) -> None:
        self._buffer = buffer
        self._path = path
        self._budget = FieldBudget(MAX_FIELDS)
        self._tensors = TensorLedger(buffer, self._budget, path, folder)
        self._operators: dict[tuple[bytes, bytes], int] = {}

    def read(self) -> OnnxSummary:
        ir_version = 0
        producer = ["", ""]
        opsets: dict[str, int] = {}
        graph: Span | None = None
        for number, wire, value, stop in self._fields((0, len(self._buffer))):
            if number == 1 and wire == VARINT:
                ir_version = value
            elif wire != LENGTH:
                continue
            elif number in (2, 3):
                producer[number - 2] = pb.text(self._buffer, value, stop)
            elif number == 7:
                if graph is not None:
                    raise self._refuse("it holds two graphs")
                graph = (value, stop)
            elif number == 8:
                domain, version = self._opset((value, stop))
                opsets[domain] = version
            elif number == 20:
                self._training((value, stop))
            elif number == 25:
                self._function((value, stop))
        if graph is None:
            raise pb.WireError("there is no graph in it", len(self._buffer))
        inputs, outputs = self._main_graph(graph)
        self._tensors.finish(len(self._buffer))
        return OnnxSummary(
            ir_version=pb.signed(ir_version),
            opsets=opsets,
            producer=" ".join(filter(None, producer)),
            inputs=inputs,
            outputs=outputs,
            operators=self._operator_counts(),
            weight_bytes=self._tensors.weight_bytes,
            external_files=self._tensors.external_files,
            file_bytes=len(self._buffer),
        )

    def _main_graph(self, span: Span) -> tuple[tuple[OnnxValue, ...], tuple[OnnxValue, ...]]:
        inputs: list[OnnxValue] = []
        outputs: list[OnnxValue] = []
        for number, wire, value, stop in self._fields(span):
            if wire == LENGTH and number in (11, 12):
                described = read_value(self._buffer, value, stop, self._budget)
                (inputs if number == 11 else outputs).append(described)
        defaults = self._graph(span, depth=0)
        if not outputs:
            raise self._refuse("its graph has no outputs")
        return tuple(entry for entry in inputs if entry.name not in defaults), tuple(outputs)

    def _graph(self, span: Span, *, depth: int) -> set[str]:
        """Checks a ``GraphProto`` and returns the names of its initialisers."""
        if depth > MAX_DEPTH:
            raise self._refuse(f"its graphs are nested more than {MAX_DEPTH} deep")
        names: set[str] = set()
        for number, wire, value, stop in self._fields(span):
            if wire != LENGTH:
                continue
            if number == 1:
                self._node((value, stop), depth=depth)
            elif number == 5:
                names.add(self._tensors.add(value, stop))
            elif number == 15:
                self._tensors.add_sparse(value, stop)
        return names

    def _node(self, span: Span, *, depth: int) -> None:
        operator = domain = b""
        for number, wire, value, stop in self._fields(span):
            if wire != LENGTH:
                continue
            if number == 5:
                self._attribute((value, stop), depth=depth)
            elif number == 4:
                operator = bytes(self._buffer[value : min(stop, value + 256)])
            elif number == 7:
                domain = bytes(self._buffer[value : min(stop, value + 256)])
        key = (domain, operator)
        self._operators[key] = self._operators.get(key, 0) + 1

    def _attribute(self, span: Span, *, depth: int) -> None:
        seen: set[int] = set()
        for number, wire, value, stop in self._fields(span, skip=_LISTS):
            if wire != LENGTH:
                continue
            if number in (5, 6, 22):  # t, g, sparse_tensor: at most one of each
                if number in seen:
                    raise self._refuse("an attribute holds a value twice")
                seen.add(number)
            if number in (5, 10):
                self._tensors.add(value, stop)
            elif number in (6, 11):
                self._graph((value, stop), depth=depth + 1)
            elif number in (22, 23):
                self._tensors.add_sparse(value, stop)

    def _function(self, span: Span) -> None:
        for number, wire, value, stop in self._fields(span):
            if wire == LENGTH and number == 7:
                self._node((value, stop), depth=1)
            elif wire == LENGTH and number == 11:
                self._attribute((value, stop), depth=1)

    def _training(self, span: Span) -> None:
        for number, wire, value, stop in self._fields(span):
            if wire == LENGTH and number in (1, 2):
                self._graph((value, stop), depth=1)

    def _opset(self, span: Span) -> tuple[str, int]:
        domain, version = "", 0
        for number, wire, value, stop in self._fields(span):
            if number == 1 and wire == LENGTH:
                domain = pb.text(self._buffer, value, stop)
            elif number == 2 and wire == VARINT:
                version = pb.signed(value)
        return ("" if domain == "ai.onnx" else domain), version

    def _operator_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for (domain, operator), count in sorted(self._operators.items()):
            name = operator.decode(errors="replace")
            if domain not in (b"", b"ai.onnx"):
                name = f"{domain.decode(errors='replace')}::{name}"
            counts[name] = counts.get(name, 0) + count
        return counts

    def _fields(self, span: Span, *, skip: re.Pattern[bytes] | None = None) -> pb.Fields:
        return pb.fields(self._buffer, span[0], span[1], self._budget, skip=skip)

    def _refuse(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"{self._path}: {what}", path=str(self._path))
