"""Serves any Python class or function as a model.

A model file needs no import from headrace::

    # model.py
    from typing import Annotated
    import numpy as np

    class Scorer:
        def load(self) -> None:                  # optional; runs once
            self.weights = np.load(...)

        def predict(
            self,
            image: Annotated[np.ndarray, "FP32[N,3,224,224]"],
            boost: list[float] | None = None,    # has a default: an optional input
        ) -> Annotated[np.ndarray, "FP32[N,10]"]:
            ...

**Which object.** The only class with a ``predict`` method (a class that another one
inherits from does not count), else the function ``predict``; ``runtime_options.entry``
names any other class, function, or object with ``predict``. A class is made without
arguments. Files beside the model are found through ``Path(__file__).parent`` and imported
with ``from . import helper`` (in a child process also with ``import helper``).

**A batch.** ``predict`` is given the rows of many requests at once, along the first axis,
one keyword argument for each input, and returns as many rows. What it was given is its own,
to change and to keep. ``load`` and ``predict`` may be ``async``: their event loop lives as
long as the model.

**Type hints give the signature.** Names come from the parameters:

=======================================  =====================================================
hint                                     means
=======================================  =====================================================
``Annotated[np.ndarray, "FP32[N,16]"]``  datatype and shape; a name or ``-1`` is a free
                                         dimension, and the first, the rows, must be free
``npt.NDArray[np.float32]``              that datatype with two free dimensions: a table.
                                         The hint does not tell the rank, and a table is what
                                         most are; write ``Annotated`` for any other
``np.ndarray[tuple[int, Literal[16]],    datatype and rank, as numpy's own typing has it
np.dtype[np.float32]]``
``list[str]``, ``list[bytes]``           BYTES[N], as text (UTF-8) or raw
``list[float]``, ``list[int]``,          FP64[N], INT64[N], BOOL[N]: what Python's numbers are
``list[bool]``
``list[list[float]]``                    one dimension more, and so on
``Annotated[list[float], "FP32[N]"]``    a list of that datatype
``X | None``, with a default             an optional input: predict's default where left out
=======================================  =====================================================

Datatypes are those of :mod:`headrace.types`; BF16 arrives as raw bits in ``uint16``.

**What it returns.** One of the hints above is an output named ``output``; ``tuple[A, B]`` is
``output_0``, ``output_1``; a ``TypedDict`` or ``NamedTuple`` names its outputs itself. Rows,
shape and kind of values are checked. Floats may be of another width than was said, integers
too where every value fits, and anything numpy can take is taken; other kinds are refused.

**Without hints**, or against them, ``runtime_options`` has ``inputs`` and ``outputs``, lists
of ``{name, datatype, shape}``.

**Where it runs.** ``isolation = "process"``, the default, gives each batch that may run at one
time a child process with a fresh interpreter. Python code can hold the interpreter lock for
as long as it likes, and a C extension can crash: in the server's own process either would
stop every other model too. Tensors pass through shared memory. A child that dies fails the
one batch it was running, and is started again after a pause that doubles (0.1 s to 30 s, see
:mod:`.supervisor`). Its output appears in the server's, with the model's name before each
line. ``isolation = "thread"`` saves the hop, for code that is short or releases the lock; it
then has one object for each batch at one time, and no folder of it is put on ``sys.path``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.runtimes.python.runtime import PythonRuntime

__all__ = ["PythonRuntime"]


def __getattr__(name: str) -> Any:
    # A child process imports this package too, and has no use for the server's side of it.
    if name == "PythonRuntime":
        from headrace.runtimes.python.runtime import PythonRuntime

        return PythonRuntime
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
