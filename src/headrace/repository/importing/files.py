"""Reading other people's configuration files: small, and with every mistake told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.repository.formats import FORMAT_OF, refusal

MAX_BYTES = 4 * 1024 * 1024
"""Hand-written."""


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        ConfigError: it cannot be read, is too large or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None


def read_json(path: Path) -> dict[str, Any]:
    """A file with one JSON object.

    Raises:
        ConfigError: as :func:`read_text`, or it is something else.
    """
    return json_object(read_text(path), str(path))


def json_object(text: str, where: str) -> dict[str, Any]:
    """One JSON object.

    Raises:
        ConfigError: it is something else.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not a JSON object")
    return value


def is_servable(path: Path) -> bool:
    """Whether the file is of a kind that is served without the code of another server."""
    return path.suffix.lower() in FORMAT_OF and path.suffix.lower() != ".py"


def why_not(path: Path, *, here: str) -> tuple[str, str]:
    """Why a model file is not served, and what to do; ``here`` is said of any other kind."""
    refused = refusal(path)
    if refused is not None:
        return refused.message, refused.hint
    return f"{path} {here}", "export the model to ONNX where it was trained"


def natural_version(version: object) -> str:
    """The version folder for what another server calls a version: its first number, or 1."""
    digits = str(version).strip().lstrip("v").partition(".")[0]
    return str(int(digits)) if digits.isdigit() and int(digits) > 0 else "1"
