"""Where ``headrace pull`` fetches from: the text a person writes, as a value.

===============================  ========================================================
``pypi:NAME==VERSION[/GLOB]``    a wheel, through the user's own pip and index
``npm:NAME@VERSION[/GLOB]``      a tarball, through the user's own npm and registry
``https://HOST/PATH``            a wheel, zip, tarball or single file
``file:PATH`` or ``PATH``        the same, on this machine
===============================  ========================================================

A version is required: what a package holds changes between versions, and weights have been
seen to vanish from them. A fetched file is data: it is never installed, built or imported.
"""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

import msgspec

from headrace.errors import PullError

_PYPI_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_PYPI_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_NPM_NAME = re.compile(r"(?:@[a-z0-9~][a-z0-9._~-]*/)?[a-z0-9~][a-z0-9._~-]*", re.IGNORECASE)
_NPM_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(?:[-+][0-9A-Za-z.+-]+)?")
_SHAPES = "pypi:NAME==VERSION, npm:NAME@VERSION, https://…, or a path"


class Source(msgspec.Struct, frozen=True):
    """One thing to fetch.

    Attributes:
        kind: ``pypi``, ``npm``, ``url`` or ``file``.
        name: of the package; the address; or the path.
        version: of the package, "" for the others.
        glob: the part after the version, "" where there is none.
    """

    kind: str
    name: str
    version: str = ""
    glob: str = ""

    @property
    def label(self) -> str:
        """How provenance names it: without credentials, queries or this machine's folders."""
        if self.kind == "pypi":
            return f"pypi:{self.name}=={self.version}"
        if self.kind == "npm":
            return f"npm:{self.name}@{self.version}"
        if self.kind == "file":
            return f"file:{Path(self.name).name}"
        parts = urllib.parse.urlsplit(self.name)
        host = parts.netloc.rpartition("@")[2]
        return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))

    @property
    def is_immutable(self) -> bool:
        """Whether the same text always means the same bytes: registries never replace a version."""
        return self.kind in ("pypi", "npm")

    @property
    def model_name(self) -> str:
        """What to call the folder where nobody says."""
        if self.kind in ("pypi", "npm"):
            return self.name.rpartition("/")[2]
        path = urllib.parse.urlsplit(self.name).path if self.kind == "url" else self.name
        name = Path(urllib.parse.unquote(path)).name
        for suffix in (".tar.gz", ".tgz", ".tar", ".zip"):
            name = name.removesuffix(suffix)
        if name.endswith(".whl"):  # NAME-VERSION-TAGS.whl, with no dash inside NAME
            name = name.partition("-")[0]
        return Path(name).stem if name.endswith(".onnx") else name


class Fetched(msgspec.Struct, frozen=True):
    """What a source delivered: one file, and what the registry calls it."""

    path: Path
    name: str


def parse_source(spec: str) -> Source:
    """Reads what a person wrote.

    Raises:
        PullError: it is none of the shapes above; says which part is wrong.
    """
    scheme, colon, rest = spec.partition(":")
    if not colon or scheme.lower() == "file":
        return _parse_file(spec if not colon else rest)
    if scheme == "pypi":
        return _parse_package("pypi", rest, "==", _PYPI_NAME, _PYPI_VERSION)
    if scheme == "npm":
        return _parse_package("npm", rest, "@", _NPM_NAME, _NPM_VERSION)
    if scheme.lower() in ("http", "https"):
        return _parse_url(spec)
    if Path(spec).exists():
        return Source(kind="file", name=spec)
    raise PullError(f"{spec!r}: cannot fetch from {scheme!r}", hint=f"say {_SHAPES}")


def _parse_file(text: str) -> Source:
    if text.startswith("//"):  # file:///absolute/path
        parts = urllib.parse.urlsplit("file:" + text)
        if parts.netloc not in ("", "localhost"):
            raise PullError(f"file:{text} names a host; only this machine's files can be read")
        text = urllib.parse.unquote(parts.path)
    if not text or "\x00" in text:
        raise PullError(f"{text!r} is not a path", hint=f"say {_SHAPES}")
    return Source(kind="file", name=text)


def _parse_package(
    kind: str, text: str, separator: str, name_rule: re.Pattern[str], version_rule: re.Pattern[str]
) -> Source:
    at = text.find(separator, 1)  # npm scopes begin with an @
    example = f"{kind}:{text[:at] if at > 0 else text or 'NAME'}{separator}VERSION"
    if at < 0:
        raise PullError(
            f"{kind}:{text} names no version",
            hint=f"say {example}: what a package holds changes between versions",
        )
    name = text[:at]
    version, _, glob = text[at + len(separator) :].partition("/")
    if not name_rule.fullmatch(name):
        raise PullError(f"{name!r} cannot be the name of a package", hint=f"say {_SHAPES}")
    if not version_rule.fullmatch(version):
        raise PullError(f"{version!r} is not one exact version", hint=f"say {example}")
    return Source(kind=kind, name=name, version=version, glob=glob)


def _parse_url(spec: str) -> Source:
    try:
        parts = urllib.parse.urlsplit(spec)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or not spec.isprintable() or " " in spec:
        raise PullError(f"{spec!r} is not an address", hint="https://HOST/PATH/model.onnx")
    if not Path(parts.path).name:
        raise PullError(f"{spec!r} names no file", hint="https://HOST/PATH/model.onnx")
    return Source(kind="url", name=spec)
