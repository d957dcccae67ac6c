"""Where a store is: the text a person writes, as a value.

========================================  ==================================================
``s3://BUCKET[/PREFIX]``                  a bucket of S3, or of what speaks like it
``https://HOST/PATH/[#sha256=HEX]``       a folder with a ``SHA256SUMS`` at its root
``http://HOST/PATH/#sha256=HEX``          the same; HEX is the digest of ``SHA256SUMS``
``https://HOST/…/model.onnx#sha256=HEX``  one file, which becomes a model
========================================  ==================================================

Plain http is accepted where a digest is given, because then whoever sits between cannot decide
what is served.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse

import msgspec

from headrace.errors import StoreError
from headrace.repository.versions import VERSION_FOLDER

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_DIGEST = re.compile(r"sha256=([0-9a-fA-F]{64})")
_SHAPES = "s3://BUCKET/PREFIX, https://HOST/FOLDER/ or https://HOST/PATH/model.onnx#sha256=HEX"


class StoreSpec(msgspec.Struct, frozen=True):
    """One store.

    Attributes:
        kind: ``s3``, ``folder`` or ``file``.
        place: the bucket, or the address without its fragment. It may hold credentials: for
            people there is :attr:`label`.
        prefix: of the keys in the bucket, without outer slashes.
        sha256: of ``SHA256SUMS``, or of the file; "" where none was given.
    """

    kind: str
    place: str
    prefix: str = ""
    sha256: str = ""

    def __repr__(self) -> str:
        return f"StoreSpec({self.label!r})"  # what is logged by accident has no password in it

    @property
    def label(self) -> str:
        """How errors and logs name it: without credentials and queries."""
        if self.kind == "s3":
            return f"s3://{self.place}/{self.prefix}".rstrip("/")
        parts = urllib.parse.urlsplit(self.place)
        host = parts.netloc.rpartition("@")[2]
        return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))

    @property
    def model_name(self) -> str:
        """What to call the model where the store is one model and not a folder of them."""
        path = self.prefix if self.kind == "s3" else urllib.parse.urlsplit(self.place).path
        parts = [urllib.parse.unquote(part) for part in path.split("/") if part]
        if self.kind == "file":
            stem = parts.pop().removesuffix(".onnx")
            if stem != "model":
                return stem
        while parts and VERSION_FOLDER.fullmatch(parts[-1]):  # of a version; its model is above
            parts.pop()
        default = self.place if self.kind == "s3" else "model"
        return parts[-1] if parts else default

    @property
    def folder_name(self) -> str:
        """A name for its folder in a cache: readable, and not that of another store."""
        digest = hashlib.sha256(self.label.encode()).hexdigest()[:12]
        return f"{re.sub(r'[^A-Za-z0-9-]+', '-', self.model_name)[:40].strip('-')}-{digest}"


def parse_store(spec: str) -> StoreSpec | None:
    """Reads what a person wrote; None where that is a path of this machine.

    Raises:
        StoreError: it begins like a store, and is none of the shapes above; says what is
            wrong with it.
    """
    scheme = spec.partition(":")[0].lower()
    if not spec.lower().startswith(("s3:", "http:", "https:")):
        return None
    if not spec.isprintable() or " " in spec:
        raise StoreError(f"this {scheme} address has characters that none may have", hint=_SHAPES)
    return _parse_s3(spec) if scheme == "s3" else _parse_web(spec, scheme)


def _parse_s3(spec: str) -> StoreSpec:
    rest = spec[len("s3:") :]
    bucket, _, prefix = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or not _BUCKET.fullmatch(bucket):
        raise StoreError(f"{spec!r} names no bucket", hint="s3://BUCKET or s3://BUCKET/PREFIX")
    prefix = prefix.strip("/")
    if {"", ".", ".."} & set(prefix.split("/")) and prefix:
        raise StoreError(f"{spec!r}: the prefix is no path", hint="s3://BUCKET/PREFIX")
    return StoreSpec(kind="s3", place=bucket, prefix=prefix)


def _parse_web(spec: str, scheme: str) -> StoreSpec:
    try:
        parts = urllib.parse.urlsplit(spec)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        raise StoreError(f"this {scheme} address names no host", hint=_SHAPES)
    is_folder = parts.path.endswith("/") or not parts.path
    place = urllib.parse.urlunsplit((scheme, parts.netloc, parts.path or "/", parts.query, ""))
    store = StoreSpec(kind="folder" if is_folder else "file", place=place)
    if scheme == "http" and parts.username is not None:
        raise StoreError(
            f"{store.label}: a password over http can be read on the way", hint="use https"
        )
    found = _DIGEST.fullmatch(parts.fragment)
    if parts.fragment and not found:
        raise StoreError(f"{store.label}: the fragment is not #sha256= and 64 hexadecimal digits")
    if not parts.fragment and (scheme == "http" or not is_folder):
        raise _undigested(store, scheme)
    if not is_folder and not parts.path.lower().endswith(".onnx"):
        raise StoreError(
            f"{store.label} is neither a folder nor an .onnx file",
            hint="the address of a folder ends with a slash",
        )
    return msgspec.structs.replace(store, sha256=found[1].lower() if found else "")


def _undigested(store: StoreSpec, scheme: str) -> StoreError:
    if store.kind == "file":
        return StoreError(
            f"{store.label} comes without a digest",
            hint="say which file you mean: …#sha256=HEX; the address of a folder ends with a slash",
        )
    return StoreError(
        f"{store.label} is {scheme}, where anybody on the way decides what is served",
        hint="use https, or give the digest of its SHA256SUMS: …/#sha256=HEX",
    )
