"""A file by its address, or by its path.

https only: without it whoever sits between decides what is served. Plain http is accepted
where a SHA-256 of the file is given, because then they cannot.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO

from headrace.errors import PullError
from headrace.repository.expected import CHUNK_BYTES
from headrace.repository.sniff import HEAD_BYTES, describe_bytes
from headrace.repository.sources import Fetched, Source

TIMEOUT_S = 30.0
"""Of silence. A download that makes progress may take as long as it needs."""

MAX_DOWNLOAD_BYTES = 64 * 1024**3


def fetch_url(source: Source, folder: Path, *, has_digest: bool) -> Fetched:
    """Downloads the file into ``folder``.

    Args:
        source: of kind ``url``.
        folder: where it goes, under the last part of the address.
        has_digest: whether the bytes will be checked, which is what makes http acceptable.

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
    opener = urllib.request.build_opener(NoDowngrade())
    request = urllib.request.Request(source.name, headers={"User-Agent": "headrace-pull"})  # noqa: S310 - parse_source admits http and https only
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
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


class NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to something weaker."""

    def redirect_request(  # noqa: PLR0917 - the base class's signature
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to follow with; raises PullError where it would be a weaker one."""
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https":
            raise PullError(f"{req.host} redirects from https to something weaker")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(response: http.client.HTTPResponse, path: Path, label: str) -> None:
    head = response.read(HEAD_BYTES)
    if describe_bytes(head) == "a web page":
        raise PullError(f"{label} answered with a web page, not a file", hint="a login, perhaps")
    declared = response.headers.get("Content-Length", "")
    received = len(head)
    with path.open("xb") as file:
        file.write(head)
        while chunk := response.read(CHUNK_BYTES):
            received += len(chunk)
            if received > MAX_DOWNLOAD_BYTES:
                raise PullError(f"{label} is larger than {MAX_DOWNLOAD_BYTES:,} bytes")
            file.write(chunk)
    if declared.isdigit() and received != int(declared):
        raise PullError(f"{label} broke off after {received:,} of {int(declared):,} bytes")
