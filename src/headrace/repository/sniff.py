"""What the first bytes of a file say it is, for errors that explain themselves.

Recognition is only ever used to word a message: whether a file is accepted is decided by
reading it as the format it claims to be.
"""

from __future__ import annotations

from pathlib import Path

HEAD_BYTES = 512
"""Enough for every signature below; tar's stands at offset 257."""

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
    (b"PK\x03\x04", "a zip archive (PyTorch .pt files are zip archives with pickles inside)"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\xfd7zXZ\x00", "xz-compressed data"),
    (b"BZh", "bzip2-compressed data"),
    (b"\x28\xb5\x2f\xfd", "Zstandard-compressed data"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras .h5)"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy .npy file"),
    (b"\x7fELF", "a compiled program"),
    (b"%PDF-", "a PDF document"),
    (b"#!", "a script"),
)
_MARKUP: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML document"),
    (b"<net", "an OpenVINO model description"),
    (b"{", "JSON text"),
)


def describe_bytes(head: bytes) -> str:
    """Names what ``head``, the first :data:`HEAD_BYTES` of a file, looks like.

    Returns:
        A phrase with its article ("a zip archive"), or "" where nothing is recognised.
    """
    if not head:
        return "empty"
    for signature, what in _SIGNATURES:
        if head.startswith(signature):
            return what
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if head[4:8] == b"ORTM":
        return "a model in ONNX Runtime's own ORT format"
    if head[8:9] == b"{" and head[5:8] == b"\x00\x00\x00":
        return "a safetensors file"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return _describe_text(head)


def describe_file(path: Path) -> str:
    """As :func:`describe_bytes`, of a file that exists; "" where it cannot be read."""
    try:
        with path.open("rb") as file:
            return describe_bytes(file.read(HEAD_BYTES))
    except OSError:
        return ""


def _describe_text(head: bytes) -> str:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for prefix, what in _MARKUP:
        if start.startswith(prefix):
            return what
    if not head.strip(b"\x00"):
        return "nothing but zero bytes"
    if all(byte >= 0x20 or byte in b"\t\r\n\f" for byte in head):
        return "text"
    return ""
