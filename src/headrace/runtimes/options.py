"""``runtime_options`` of one model, checked against what a runtime understands."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from headrace.errors import ModelLoadError
from headrace.runtimes.base import Artifact

_Options = TypeVar("_Options", bound=msgspec.Struct)


def read_options(artifact: Artifact, kind: type[_Options], runtime: str) -> _Options:
    """The artifact's options as ``kind``, a frozen struct that forbids unknown fields.

    Raises:
        ModelLoadError: an option is unknown, or has a value of the wrong kind; the options
            that exist are listed.
    """
    try:
        return msgspec.convert(dict(artifact.options), kind)
    except msgspec.ValidationError as error:
        raise ModelLoadError(
            f"runtime_options of model '{artifact.name}', as read by {runtime}: {error}",
            hint=f"{runtime} has the options {', '.join(kind.__struct_fields__)}",
            model=artifact.name,
        ) from error
