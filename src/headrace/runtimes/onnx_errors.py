"""What ONNX Runtime says, as a person needs it: without its source lines, with a hint."""

from __future__ import annotations

import re
from pathlib import Path

_NUMBER = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_LOAD_PREFIX = re.compile(r"^Load model from \S+ failed: ?")
# "file.cc:45 const T* ns::f(const X&, int) const [with T = Y] ", and "file.cc:45 CamelCase ".
_ORIGIN = re.compile(
    r"\S+\.(?:cc|h|cpp):\d+ "
    r"(?:[^()\[\]]*?\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])?|\w+) "
)
_ADVICE = re.compile(r"Please fix either the inputs/outputs or the model\.")

_HINTS = (
    # What the text contains -> what to do. The first that fits is used.
    ("escapes model directory", "keep external weights inside the model's own folder"),
    ("Absolute path not allowed", "name external weights relative to the model's own folder"),
    (
        "External data path",
        "this file holds only the graph: put the weight file that it names beside it",
    ),
    ("IR version", "upgrade onnxruntime, or save the model with an older IR version"),
    ("opset", "upgrade onnxruntime, or export the model with a lower opset version"),
    (
        "is not a registered function/op",
        "the model uses a custom operator; export it with operators of ONNX only",
    ),
    (
        "No Op registered",
        "upgrade onnxruntime, or export the model with a lower opset version",
    ),
    (
        "Could not find an implementation",
        "this ONNX Runtime has no kernel for that datatype; convert the model to FP32",
    ),
    ("File doesn't exist", "check the path"),
)
_NOT_A_MODEL = ("rotobuf parsing failed", "No graph was found")
_LFS_POINTER = b"version https://git-lfs"


def useful(error: Exception) -> str:
    """ONNX Runtime's message in one line, without error numbers and source locations."""
    text = " ".join(str(error).split())
    for noise in (_NUMBER, _LOAD_PREFIX, _ORIGIN, _ADVICE):
        text = noise.sub("", text)
    return text.strip() or type(error).__name__


def load_hint(text: str, path: Path) -> str:
    """What to do about a model that could not be loaded; reads at most a line of the file."""
    if any(sign in text for sign in _NOT_A_MODEL):
        return _not_a_model(path)
    return next((hint for sign, hint in _HINTS if sign in text), "")


def _not_a_model(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
        size = path.stat().st_size
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    if head == _LFS_POINTER:
        return "the file is a Git LFS pointer and not the model: run 'git lfs pull'"
    return f"the file ({size:,} bytes) is not an ONNX model or is cut short: fetch it again"
