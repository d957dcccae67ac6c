"""Whether a graph has a loop whose number of iterations its inputs decide.

Such a graph may run for ever on one request, however quick it was when it was measured, so it must
not run on the event loop.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from headrace.limits import MIB

_SEARCHED_BYTES = 512 * MIB
"""A larger file is not searched, and counts as one with a loop: a tenth of a second per 100 MiB
is for nothing where an execution takes longer than a hop to a thread in any case."""

_LOOPS = (b"\x22\x04Loop", b'type="Loop"', b'type="TensorIterator"')
"""``NodeProto.op_type`` of ONNX, and a layer of OpenVINO's XML. Bytes of a weight may look the
same, which costs a hop and nothing else."""


def may_be_endless(path: Path) -> bool:
    """Searches the file of the graph. Reads it; True where it cannot be read."""
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            if not 0 < size_bytes <= _SEARCHED_BYTES:
                return True
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return any(content.find(loop) >= 0 for loop in _LOOPS)
    except (OSError, ValueError):
        return True
