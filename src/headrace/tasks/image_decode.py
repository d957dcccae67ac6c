"""Bytes that claim to be an image -> pixels, without trusting a word they say.

Only five decoders are ever tried. The size is read from the header and checked before a
pixel is unpacked, so a small file that unfolds to gigabytes costs nothing.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from types import ModuleType
from typing import TYPE_CHECKING

from headrace.errors import InvalidRequest, MissingExtra, PayloadTooLarge

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
)

_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"\0\0\x01\0", "an icon"),
    (b"<svg", "an SVG drawing"),
    (b"<", "HTML or XML"),
    (b"{", "JSON"),
    (b"[", "JSON"),
)

_EXIF_ORIENTATION = 0x0112
_TURN = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Exif orientation -> what undoes it (Exif 2.32, tag 0x0112; Pillow turns left)."""

_DATA_URL = re.compile(rb"data:[\w.+/-]*(?:;[\w.+-]+=[\w.+-]*)*;base64,", re.ASCII)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{16}[A-Za-z0-9+/=\s]*")
_PEEK = 256  # bytes looked at to tell base64 from anything else: the rest is only decoded


def open_image(data: bytes, index: int, max_pixels: int) -> Image:
    """Reads the header. Nothing is decoded yet.

    Accepts the file's own bytes, or its base64 or ``data:`` URL, which is what a client
    without the binary extension can put into JSON; no image file looks like either.

    Raises:
        InvalidRequest: not one of :data:`FORMATS`; says what it looks like.
        PayloadTooLarge: more than ``max_pixels``.
        MissingExtra: Pillow is not installed.
    """
    pil = require_pillow()
    data = _undo_base64(data)
    try:
        image: Image = pil.open(io.BytesIO(data), formats=FORMATS)
    except (pil.DecompressionBombError, pil.DecompressionBombWarning):
        raise _too_large(index, "more pixels than Pillow itself would open", max_pixels) from None
    # Decoders fed hostile bytes raise whatever the parser trips over (struct.error,
    # SyntaxError, KeyError ...); all of it means the same to the caller.
    except Exception as error:  # noqa: BLE001
        raise _unreadable(data, index, error) from None
    if image.width * image.height > max_pixels:
        raise _too_large(index, f"{image.width} x {image.height} pixels", max_pixels)
    return image


def load_pixels(image: Image, data: bytes, index: int, *, at_least: int) -> Image:
    """Decodes what :func:`open_image` opened, upright, as Exif says the camera was held.

    A JPEG is unpacked at a half, a quarter or an eighth of its size where that still
    leaves ``at_least`` pixels each way: a photo from a phone costs a tenth of the time.

    Raises:
        InvalidRequest: cut off or corrupt.
    """
    try:
        image.draft(None, (at_least, at_least))
        image.load()
    except Exception as error:  # noqa: BLE001 - as in open_image: the decoders' own business
        raise _unreadable(_undo_base64(data), index, error) from None

    return _upright(image)


def looks_like(data: bytes) -> str:
    """What the first bytes suggest, in words: "a JPEG", "JSON", "text", "empty" ..."""
    if not data:
        return "empty"
    image = _image_kind(data)
    if image:
        return f"a {image}"
    start = data[:64]
    for magic, name in _OTHERS:
        if start.lstrip().startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return "a HEIC or AVIF image, or a video"
    if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in start):
        return f"text that begins {start[:24].decode()!r}"
    return f"bytes that begin {data[:8].hex(' ')}"


def require_pillow() -> ModuleType:
    """``PIL.Image``.

    Raises:
        MissingExtra: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("image classification", extra="image", package="pillow") from None
    return Image


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - broken metadata of a good picture: show it as it lies
        return image
    name = _TURN.get(orientation)
    return image.transpose(Transpose[name]) if name else image


def _image_kind(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), "")


def _undo_base64(data: bytes) -> bytes:
    if _image_kind(data):
        return data
    url = _DATA_URL.match(data[:_PEEK])
    if not url and not _BASE64.fullmatch(data[:_PEEK]):
        return data
    body = data[url.end() :] if url else data
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        return data


def _unreadable(data: bytes, index: int, error: Exception) -> InvalidRequest:
    seems = looks_like(data)
    kind = _image_kind(data)
    if kind:
        message = f"image {index} is a {kind}, but cannot be read: it is cut off or corrupt"
        reason = f"the decoder says: {str(error)[:120] or type(error).__name__}"
    else:
        message = f"image {index} is not an image but {seems} ({len(data)} bytes)"
        reason = f"send the bytes of a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
    return InvalidRequest(message, hint=reason, input="image", index=index, looks_like=seems)


def _too_large(index: int, what: str, max_pixels: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"image {index} has {what}; max_pixels is {max_pixels}",
        hint="send a smaller image; the model sees only a few hundred pixels across",
        index=index,
        limit=max_pixels,
    )
