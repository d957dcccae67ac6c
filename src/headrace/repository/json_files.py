"""Reads the small JSON files that come with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from headrace.errors import ModelLoadError

MAX_JSON_BYTES = 16 * 1024 * 1024
"""A config.json is a few KiB; with a hundred thousand labels a few MiB."""


def read_json(path: Path) -> Any:
    """The parsed file, or None where there is none.

    Raises:
        ModelLoadError: it cannot be read, is not JSON, or larger than MAX_JSON_BYTES.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelLoadError(f"{path} has {size:,} bytes; the limit is {MAX_JSON_BYTES:,}")
        return msgspec.json.decode(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelLoadError(
            f"{path} is not JSON: {error}", hint="fetch it again, or restore it from the original"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """As :func:`read_json` for a JSON object; {} where there is no file."""
    value = read_json(path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} holds a {type(value).__name__}; expected an object")
    return value
