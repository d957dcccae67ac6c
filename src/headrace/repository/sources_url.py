"""A file by its address, or by its path.

https only: without it whoever sits between decides what is served. Plain http is accepted
where a SHA-256 of the file is given, because then they cannot.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from headrace.errors import PullError
from headrace.repository.expected import CHUNK_BYTES
from headrace.repository.outbound import Outbound, paced
from headrace.repository.sniff import HEAD_BYTES, describe_bytes
from headrace.repository.sources import Fetched, Source

TIMEOUT_S = 30.0
"""Of silence. A download that makes progress may take as long as it needs."""

MAX_DOWNLOAD_BYTES = 64 * 1024**3


def fetch_url(
    source: Source, folder: Path, *, has_digest: bool, redirect_hosts: Sequence[str] = ()
) -> Fetched:
    """Downloads the file into ``folder``.

    Args:
        source: of kind ``url``.
        folder: where it goes, under the last part of the address.
        has_digest: whether the bytes will be checked, which is what makes http acceptable.
        redirect_hosts: see :class:`~headrace.repository.outbound.Outbound`.

    Raises:
        PullError: not https, unreachable, refused, cut off, a web page instead of a file, or
            too large.
    """
    parts = urllib.parse.urlsplit(source.name)
    name = Path(urllib.parse.unquote(parts.path)).name
    if parts.scheme.lower() != "https" and not has_digest:
        raise PullError(
            f"{source.label} is not https",
            hint="use https, or say what you expect with --sha256",
        )
    outbound = Outbound(redirect_hosts=redirect_hosts, timeout_s=TIMEOUT_S)
    request = urllib.request.Request(source.name, headers={"User-Agent": "headrace-pull"})  # noqa: S310 - parse_source admits http and https only
    try:
        with outbound.open(request) as response:
            _receive(response, folder / name, source.label)
    except urllib.error.HTTPError as error:
        raise PullError(f"{source.label} answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise PullError(
            f"{source.label} cannot be reached: {error.reason}",
            hint="check the address, the network and the proxy (https_proxy)",
        ) from None
    except (TimeoutError, http.client.HTTPException, ConnectionError) as error:
        raise PullError(f"{source.label}: the download broke off: {error or 'silence'}") from None
    return Fetched(path=folder / name, name=name)


def fetch_file(source: Source) -> Fetched:
    """The file itself, which is already on this machine.

    Raises:
        PullError: it does not exist, or is not a file.
    """
    path = Path(source.name)
    if path.is_dir():
        raise PullError(f"{path} is a folder", hint=f"serve it as it is: headrace serve {path}")
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise PullError(f"{path} {what}", hint="give a wheel, a zip, a tarball or a model file")
    return Fetched(path=path, name=path.name)


def _receive(response: http.client.HTTPResponse, path: Path, label: str) -> None:
    chunks = paced(iter(partial(response.read1, CHUNK_BYTES), b""), label)
    head = b""
    while len(head) < HEAD_BYTES and (chunk := next(chunks, b"")):
        head += chunk
    if describe_bytes(head) == "a web page":
        raise PullError(f"{label} answered with a web page, not a file", hint="a login, perhaps")
    declared = response.headers.get("Content-Length", "")
    received = len(head)
    with path.open("xb") as file:
        file.write(head)
        for chunk in chunks:
            received += len(chunk)
            if received > MAX_DOWNLOAD_BYTES:
                raise PullError(f"{label} is larger than {MAX_DOWNLOAD_BYTES:,} bytes")
            file.write(chunk)
    if declared.isdigit() and received != int(declared):
        raise PullError(f"{label} broke off after {received:,} of {int(declared):,} bytes")
