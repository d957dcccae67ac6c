"""Do the tensors of an ONNX file hold what they claim, and nothing outside their folder?

A runtime allocates what ``dims`` say before it looks at the data, and opens whatever path
``external_data`` names. Both are checked here first, in Python integers, which do not
overflow. Layout: ``TensorProto`` in https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
and https://github.com/onnx/onnx/blob/main/docs/ExternalData.md.
"""

from __future__ import annotations

import stat
from pathlib import Path

from headrace.errors import ModelLoadError
from headrace.repository import protobuf as pb
from headrace.repository.protobuf import LENGTH, VARINT, Buffer, FieldBudget

GIB = 1 << 30

MAX_WEIGHT_BYTES = 256 * GIB
"""All tensors of one model together: a 70-billion-parameter model in 16 bits is 140 GB."""

MAX_EXPANSION = 100
"""How many times the bytes on disk the tensors may claim once unpacked, above
:data:`EXPANSION_FLOOR_BYTES`. Sparse tensors and tensors that share one stretch of an
external file may honestly claim more than is there; a pruned layer is 90 to 99 % zeros."""

EXPANSION_FLOOR_BYTES = 64 * 1024 * 1024

MAX_RANK = 64
"""Dimensions of one tensor; NumPy's own limit is 64."""

ELEMENT_BITS: dict[int, int] = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64,
    14: 64, 15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""``TensorProto.DataType`` -> bits of one element. STRING (8) has no fixed size."""

STRING = 8

_DIMS, _DATA_TYPE, _STRING_DATA, _NAME, _RAW_DATA = 1, 2, 6, 8, 9
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_EXTERNAL = 1

# Field of values -> bytes of one value; 0 for varints, which take 1 to 10.
_VALUE_BYTES: dict[int, int] = {4: 4, 5: 0, 7: 0, 10: 8, 11: 0}
# Data types whose values are stored in pairs (real, imaginary).
_COMPLEX = frozenset({14, 15})


class _Tensor:
    """What one ``TensorProto`` says, in numbers."""

    __slots__ = (
        "data_type", "dims", "external", "location", "name", "raw_bytes", "strings", "values",
    )  # fmt: skip

    def __init__(self) -> None:
        self.name = ""
        self.data_type = 0
        self.dims: list[int] = []
        self.raw_bytes = -1
        self.strings = 0
        # field -> (bytes of packed data, number of values that stand alone)
        self.values: dict[int, tuple[int, int]] = {}
        self.external: list[tuple[str, str]] = []
        self.location = 0


class TensorLedger:
    """Checks tensors one by one and adds up what they claim.

    Attributes:
        weight_bytes: what all tensors take in memory once loaded.
        external_files: path relative to the folder -> size in bytes.
    """

    def __init__(self, buffer: Buffer, budget: FieldBudget, path: Path, folder: Path) -> None:
        self._buffer = buffer
        self._budget = budget
        self._path = path
        self._folder = folder
        self._real_folder = folder.resolve()
        self.weight_bytes = 0
        self.external_files: dict[str, int] = {}

    def add(self, start: int, end: int) -> str:
        """Checks the ``TensorProto`` in ``buffer[start:end]`` and returns its name.

        Raises:
            ModelLoadError: its size, its data or its external file are not what they claim.
            WireError: it is not a message at all.
        """
        tensor = self._read(start, end)
        self._claim(tensor.name, self._data_bytes(tensor))
        return tensor.name

    def add_sparse(self, start: int, end: int) -> None:
        """Checks a ``SparseTensorProto``: its two tensors, and its size when made dense.

        Raises:
            ModelLoadError: as :meth:`add`.
            WireError: as :meth:`add`.
        """
        dims: list[int] = []
        name = ""
        bits = 0
        for number, wire, value, stop in pb.fields(self._buffer, start, end, self._budget):
            if number in (1, 2) and wire == LENGTH:
                part = self._read(value, stop)
                self._claim(part.name, self._data_bytes(part))
                if number == 1:
                    name, bits = part.name, ELEMENT_BITS.get(part.data_type, 8)
            elif number == 3:
                dims.extend(self._dims(wire, value, stop))
        self._claim(name, _bytes_of(self._count(name, dims), bits))

    def finish(self, file_bytes: int) -> None:
        """Compares all claims with the bytes that are really there.

        Raises:
            ModelLoadError: the model would unpack to far more than it holds.
        """
        on_disk = file_bytes + sum(self.external_files.values())
        if self.weight_bytes > EXPANSION_FLOOR_BYTES + MAX_EXPANSION * on_disk:
            raise self._refuse(
                f"its tensors claim {self.weight_bytes:,} bytes, the files hold {on_disk:,}"
            )

    def _read(self, start: int, end: int) -> _Tensor:
        tensor = _Tensor()
        buffer = self._buffer
        for number, wire, value, stop in pb.fields(buffer, start, end, self._budget):
            if number == _DIMS:
                tensor.dims.extend(self._dims(wire, value, stop))
            elif number == _RAW_DATA and wire == LENGTH:
                if tensor.raw_bytes >= 0:
                    raise self._refuse(f"tensor {tensor.name!r} has its data twice")
                tensor.raw_bytes = stop - value
            elif number == _NAME and wire == LENGTH:
                tensor.name = pb.text(buffer, value, stop)
            elif number == _DATA_TYPE and wire == VARINT:
                tensor.data_type = value
            elif number in _VALUE_BYTES:
                packed, single = tensor.values.get(number, (0, 0))
                if wire == LENGTH:
                    tensor.values[number] = (packed + stop - value, single)
                else:
                    tensor.values[number] = (packed, single + 1)
            elif number == _STRING_DATA and wire == LENGTH:
                tensor.strings += 1
            elif number == _EXTERNAL_DATA and wire == LENGTH:
                tensor.external.append(self._entry(value, stop))
            elif number == _DATA_LOCATION and wire == VARINT:
                tensor.location = value
        return tensor

    def _dims(self, wire: int, value: int, stop: int) -> list[int]:
        if wire == VARINT:
            return [pb.signed(value)]
        if wire != LENGTH:
            raise pb.WireError("a dimension is not a whole number", value)
        if stop - value > MAX_RANK * pb.MAX_VARINT_BYTES:
            raise self._refuse(f"a tensor has more than {MAX_RANK} dimensions")
        return [pb.signed(number) for number in pb.packed_varints(self._buffer, value, stop)]

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        key = value = ""
        for number, wire, at, stop in pb.fields(self._buffer, start, end, self._budget):
            if wire == LENGTH and number == 1:
                key = pb.text(self._buffer, at, stop)
            elif wire == LENGTH and number == 2:
                value = pb.text(self._buffer, at, stop)
        return key, value

    def _count(self, name: str, dims: list[int]) -> int:
        if len(dims) > MAX_RANK:
            raise self._refuse(f"tensor {name!r} has {len(dims)} dimensions")
        count = 1
        for size in dims:
            if size < 0:
                raise self._refuse(f"tensor {name!r} has a negative dimension: {dims}")
            count *= size
        return count

    def _claim(self, name: str, size: int) -> None:
        self.weight_bytes += size
        if self.weight_bytes > MAX_WEIGHT_BYTES:
            raise self._refuse(
                f"with tensor {name!r} its tensors claim {self.weight_bytes:,} bytes; "
                f"the limit is {MAX_WEIGHT_BYTES:,}"
            )

    def _data_bytes(self, tensor: _Tensor) -> int:
        """The size of the tensor in memory, once it agrees with the data that is there."""
        count = self._count(tensor.name, tensor.dims)
        external = tensor.location == _EXTERNAL or bool(tensor.external)
        kinds = external + (tensor.raw_bytes >= 0) + (tensor.strings > 0) + len(tensor.values)
        if kinds > 1:
            raise self._refuse(f"tensor {tensor.name!r} says in {kinds} ways where its data is")
        if tensor.data_type == STRING:
            if external or tensor.raw_bytes >= 0 or tensor.strings != count:
                raise self._disagrees(tensor, f"{count:,} strings", f"{tensor.strings:,}")
            return 0
        bits = ELEMENT_BITS.get(tensor.data_type)
        if bits is None:
            raise self._refuse(f"tensor {tensor.name!r} has the unknown type {tensor.data_type}")
        size = _bytes_of(count, bits)
        if external:
            self._check_external(tensor, size)
        elif tensor.values:
            self._check_values(tensor, count, bits)
        elif max(tensor.raw_bytes, 0) != size:
            got = f"{max(tensor.raw_bytes, 0):,}"
            raise self._disagrees(tensor, f"{size:,} bytes", got)
        return size

    def _check_values(self, tensor: _Tensor, count: int, bits: int) -> None:
        ((field, (packed, single)),) = tensor.values.items()
        expected = count * 2 if tensor.data_type in _COMPLEX else count
        if bits < 8:
            expected = _bytes_of(count, bits)  # sub-byte types: one value holds one byte's worth
        width = _VALUE_BYTES[field]
        fits = (
            packed + single * width == expected * width
            if width
            else expected - single <= packed <= (expected - single) * pb.MAX_VARINT_BYTES
        )
        if not fits:
            got = f"{single:,} and {packed:,} bytes of them" if single else f"{packed:,} bytes"
            raise self._disagrees(tensor, f"{expected:,} values", got)

    def _check_external(self, tensor: _Tensor, size: int) -> None:
        keys = [key for key, _ in tensor.external]
        told = dict(tensor.external)
        if len(keys) != len(told) or not told.get("location"):
            raise self._refuse(f"tensor {tensor.name!r} does not say in which one file its data is")
        offset = self._number(tensor, told, "offset", 0)
        held = self._external_size(tensor.name, told["location"])
        length = self._number(tensor, told, "length", size)
        if length != size:
            raise self._disagrees(tensor, f"{size:,} bytes", f"{length:,}")
        if offset + length > held:
            raise self._refuse(
                f"tensor {tensor.name!r} wants bytes {offset:,} to {offset + length:,} of "
                f"{told['location']!r}, which has {held:,}",
                hint="the file is cut off or belongs to another model; fetch it again",
            )

    def _number(self, tensor: _Tensor, told: dict[str, str], key: str, default: int) -> int:
        text = told.get(key, "")
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 19):
            raise self._refuse(f"tensor {tensor.name!r}: {key} {text[:40]!r} is not a number")
        return int(text)

    def _external_size(self, name: str, location: str) -> int:
        """The size of an external file that may be opened.

        Hard links are refused as well as links that leave the folder: a second name of a
        file elsewhere looks like a file in here, so an unpacked archive could make the
        runtime read (and an embedding model answer with) what the operator never put here.
        """
        if location in self.external_files:
            return self.external_files[location]
        where = f"tensor {name!r} keeps its data in {location[:200]!r}"
        if "\x00" in location or "\\" in location or Path(location).is_absolute():
            raise self._refuse(f"{where}, which is not a path inside the model's folder")
        try:
            real = (self._folder / location).resolve(strict=True)
            info = real.stat()
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "a loop of links"
            raise self._refuse(
                f"{where}, which cannot be read: {reason}",
                hint=f"put the file that came with the model into {self._folder}",
            ) from None
        if not real.is_relative_to(self._real_folder):
            raise self._refuse(f"{where}, which is outside the model's folder {self._folder}")
        if not stat.S_ISREG(info.st_mode):
            raise self._refuse(f"{where}, which is not a regular file")
        if info.st_nlink > 1:
            raise self._refuse(
                f"{where}, which has {info.st_nlink} names (hard links)",
                hint="make a copy of the folder that shares nothing: cp -r FOLDER NEW_FOLDER",
            )
        self.external_files[location] = info.st_size
        return info.st_size

    def _disagrees(self, tensor: _Tensor, expected: str, got: str) -> ModelLoadError:
        return self._refuse(
            f"tensor {tensor.name!r} of shape {tensor.dims} needs {expected}, but has {got}"
        )

    def _refuse(self, what: str, *, hint: str = "") -> ModelLoadError:
        return ModelLoadError(f"{self._path}: {what}", hint=hint, path=str(self._path))


def _bytes_of(count: int, bits: int) -> int:
    return -(-count * bits // 8)
