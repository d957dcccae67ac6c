"""What OpenVINO says, as a person needs it: without its source lines, with a hint."""

from __future__ import annotations

import re
from pathlib import Path

_ORIGIN = re.compile(r"^(?:Exception from \S+|Check '.*' failed at \S+|FrontEnd API failed .*):$")
_KIND = re.compile(r"^(?:ParameterMismatch|NotFound|Unexpected|NotImplemented): ")

_ELSEWHERE = 'OpenVINO cannot run this model: set runtime = "onnxruntime"'
_HINTS = (
    # What the text contains -> what to do. The first that fits is used.
    ("No conversion rule", _ELSEWHERE),
    ("Unsupported data type", _ELSEWHERE),
    ("dynamic rank", "export the model with a shape for every input, -1 where it is free"),
    ("outside the base directory", "keep external weights inside the model's own folder"),
    (
        "externally stored data",
        "this file holds only the graph: put the weight file that it names beside it",
    ),
    ("bin file", "put the whole .bin file of the same name beside the .xml"),
    ("Unsupported property", "take it out of runtime_options.properties"),
    ("property key", "correct it in runtime_options.properties"),
    ("is not registered", 'correct runtime_options.device; "CPU" is always there'),
    ("Cannot load library", "install the driver of runtime_options.device, or use CPU"),
)


def useful(error: Exception) -> str:
    """OpenVINO's message in one line, without its source locations."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = " ".join(_KIND.sub("", line) for line in lines if line and not _ORIGIN.match(line))
    return told or type(error).__name__


def load_hint(text: str, path: Path) -> str:
    """What to do about a model that could not be loaded."""
    if not path.is_file():
        return f"there is no file {path.name} in its folder; check the path"
    for sign, hint in _HINTS:
        if sign in text:
            return hint
    size = path.stat().st_size
    return f"the file ({size:,} bytes) is another format or is cut short: fetch it again"
