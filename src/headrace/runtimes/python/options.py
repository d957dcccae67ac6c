"""What ``runtime_options`` of a Python model may say, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from headrace.errors import ModelLoadError
from headrace.limits import MIB, NotNegative, Positive, Seconds


class TensorOption(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output, said in the configuration instead of in a type hint."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


class PythonOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of the Python runtime; all may be left out."""

    entry: str = ""
    """Name of the class, function or object in the model file. "": the only class with a
    ``predict`` method, else the function ``predict``."""

    isolation: Literal["process", "thread"] = "process"
    """``process``: a child process for each execution at one time. ``thread``: inside the
    server, cheaper by the hop, but what holds the interpreter lock holds up every request
    of every model, and what crashes takes the server with it. Wins over the model's own
    ``isolation``."""

    inputs: tuple[TensorOption, ...] | None = None
    """Overrides the type hints of the parameters."""

    outputs: tuple[TensorOption, ...] | None = None
    """Overrides the type hint of the return value."""

    start_timeout_s: Seconds = 300.0
    """From the start of a child to the end of its ``load``: imports and tens of gigabytes
    of weights from a cold disk fit."""

    restart_delay_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 0.1
    """Pause before a child that died is started again; doubles with every death in a row."""

    max_shared_bytes: Positive = 1024 * MIB
    """Largest batch, and largest answer, in shared memory. A mistake in a shape should end
    one batch and not the machine."""

    max_memory_bytes: NotNegative = 0
    """Private memory of one child; what it allocates beyond fails there (``MemoryError``). 0: no
    limit of its own."""

    environment: tuple[str, ...] = ()
    """Names of environment variables that children are given although they look like a secret, or
    are settings of the server: ``["HF_TOKEN"]``."""


def isolation_of(options: Mapping[str, Any], wanted: str) -> str:
    """Where a Python model runs: as its own ``isolation`` says, else as the model's does."""
    return str(options.get("isolation") or ("thread" if wanted == "thread" else "process"))


def parse_options(options: Mapping[str, Any], *, model: str) -> PythonOptions:
    """Checks ``Artifact.options`` of ``model``.

    Raises:
        ModelLoadError: an unknown option, or a value out of its bounds.
    """
    try:
        return msgspec.convert(dict(options), PythonOptions)
    except msgspec.ValidationError as error:
        known = ", ".join(PythonOptions.__struct_fields__)
        raise ModelLoadError(
            f"runtime_options of {model!r}: {error}",
            hint=f"the options of a Python model are: {known}",
        ) from error
