"""How this room tries a graph out: it is handed something that can run one.

Repositories know files, runtimes know how to compute, and neither knows the other; who
composes them (``cli/graph_trial.py``) passes the one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

Execute = Callable[[Path, Mapping[str, np.ndarray]], Sequence[np.ndarray]]
"""``execute(model.onnx, {input: array})`` -> one array for each output, in their order.

Arrays are as in :mod:`headrace.types`: BYTES are ``object`` arrays of ``bytes``.
"""
