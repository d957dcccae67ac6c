"""A folder of a web server, or one file of it.

The folder has a ``SHA256SUMS`` at its root; web servers agree on no other way to list one. Any
server does that answers GET; one that knows Range lets a broken download go on (RFC 9110, 14).
"""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus

import msgspec

from headrace.errors import PullError, StoreError
from headrace.repository.outbound import Outbound, paced
from headrace.repository.stores.base import (
    CHANGED,
    CHUNK_BYTES,
    DENIED,
    MAX_SUMS_BYTES,
    NOT_FOUND,
    SUMS,
    TIMEOUT_S,
    UNREACHABLE,
    UNSAFE,
    Body,
    RemoteFile,
)
from headrace.repository.stores.names import check_path
from headrace.repository.stores.spec import StoreSpec
from headrace.repository.stores.sums import parse_sums

_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)")
_BROKEN = (TimeoutError, http.client.HTTPException, ConnectionError, ssl.SSLError, socket.gaierror)
_CODES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: DENIED,
    HTTPStatus.FORBIDDEN: DENIED,
    HTTPStatus.NOT_FOUND: NOT_FOUND,
    HTTPStatus.GONE: NOT_FOUND,
    HTTPStatus.PRECONDITION_FAILED: CHANGED,
    HTTPStatus.REQUEST_TIMEOUT: UNREACHABLE,
    HTTPStatus.TOO_MANY_REQUESTS: UNREACHABLE,
}

_NO_HEAD = (HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.FORBIDDEN)
"""The last one from addresses that are signed for GET."""


class WebStore:
    """A store behind http or https.

    Args:
        spec: of kind ``folder`` or ``file``.
        redirect_hosts: that it may redirect to, beside its own.
        timeout_s: of silence.
    """

    def __init__(
        self,
        spec: StoreSpec,
        *,
        redirect_hosts: Sequence[str] = (),
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.label = spec.label
        self._spec = spec
        parts = urllib.parse.urlsplit(spec.place)
        self._authorization = _basic(parts)
        host = parts.netloc.rpartition("@")[2]
        self._place = urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))
        self._query = f"?{parts.query}" if parts.query else ""
        self._outbound = Outbound(redirect_hosts=redirect_hosts, timeout_s=timeout_s)

    def list(self) -> list[RemoteFile]:
        """What ``SHA256SUMS`` lists; for a single file, that."""
        if self._spec.kind == "file":
            name = urllib.parse.unquote(urllib.parse.urlsplit(self._place).path).rpartition("/")[2]
            return [RemoteFile(path=name, sha256=self._spec.sha256)]
        with self._answer(SUMS) as response:
            content = b"".join(self._up_to(response, MAX_SUMS_BYTES + 1))
            declared = response.headers.get("Content-Length", "")
        if len(content) > MAX_SUMS_BYTES:
            raise StoreError(f"{SUMS} of {self.label} is larger than {MAX_SUMS_BYTES:,} bytes")
        if declared.isdigit() and len(content) < int(declared):
            raise self._broke_off(SUMS, len(content), int(declared))
        sums = parse_sums(content, self.label, sha256=self._spec.sha256)
        return [RemoteFile(path=path, sha256=digest) for path, digest in sums.items()]

    def describe(self, file: RemoteFile) -> RemoteFile:
        """Its size and ETag, asked for with HEAD, or one byte where HEAD is not allowed."""
        try:
            with self._answer(file.path, method="HEAD") as response:
                headers, size = response.headers, response.headers.get("Content-Length", "")
        except _NotAllowed:
            with self._answer(file.path, {"Range": "bytes=0-0"}) as response:
                headers = response.headers
                span = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
                size = span[2] if span else headers.get("Content-Length", "")
        if not size.isdigit():
            raise StoreError(f"{self._name(file.path)} does not say how large it is")
        tag = headers.get("ETag", "")
        return msgspec.structs.replace(file, size=int(size), tag="" if tag[:2] == "W/" else tag)

    @contextmanager
    def open(self, file: RemoteFile, offset: int) -> Iterator[Body]:
        """GET, with Range where there is an offset, and If-Range where there is a strong ETag."""
        wanted = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and file.tag:
            wanted["If-Range"] = file.tag
        with self._answer(file.path, wanted) as response:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise StoreError(f"{self._name(file.path)} came encoded, which was not asked for")
            begin = 0
            if response.status == HTTPStatus.PARTIAL_CONTENT:
                span = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if not span or int(span[1]) != offset or span[2] not in ("*", str(file.size)):
                    raise self._changed(file)
                begin = offset
            elif response.headers.get("Content-Length", str(file.size)) != str(file.size):
                raise self._changed(file)
            yield Body(begin, self._chunks(response, file))

    def _chunks(self, response: http.client.HTTPResponse, file: RemoteFile) -> Iterator[bytes]:
        while True:
            try:
                chunk = response.read1(CHUNK_BYTES)
            except _BROKEN as error:
                raise self._silent(file.path, error) from None
            if not chunk:
                return
            yield chunk

    def _up_to(self, response: http.client.HTTPResponse, size: int) -> Iterator[bytes]:
        chunks = self._chunks(response, RemoteFile(path=SUMS))
        for chunk in paced(chunks, self.label, error=partial(StoreError, code=UNREACHABLE)):
            size -= len(chunk)
            yield chunk
            if size <= 0:
                return

    @contextmanager
    def _answer(
        self, path: str, headers: dict[str, str] | None = None, *, method: str = "GET"
    ) -> Iterator[http.client.HTTPResponse]:
        """What the server says, if it is the file; every error on the way is ours."""
        request = urllib.request.Request(  # noqa: S310 - parse_store admits http and https only
            self._address(path),
            method=method,
            headers={"User-Agent": "headrace", **(headers or {})},
        )
        if self._authorization:  # not sent on to where a redirect leads
            request.add_unredirected_header("Authorization", self._authorization)
        try:
            with self._outbound.open(request) as response:
                yield response
        except StoreError:
            raise
        except PullError as error:  # a redirect or an address that is refused
            raise StoreError(error.message, code=UNSAFE, hint=error.hint) from None
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(path, error.code, method) from None
        except urllib.error.URLError as error:
            raise self._silent(path, error.reason) from None
        except _BROKEN as error:
            raise self._silent(path, error) from None

    def _address(self, path: str) -> str:
        if self._spec.kind == "file":
            return self._place + self._query
        return self._place + urllib.parse.quote(check_path(path, self.label)) + self._query

    def _name(self, path: str) -> str:
        return self.label if self._spec.kind == "file" else self.label + path

    def _refused(self, path: str, status: int, method: str) -> StoreError:
        if method == "HEAD" and status in _NO_HEAD:
            return _NotAllowed(f"{self._name(path)} cannot be asked for its size")
        code = UNREACHABLE if status >= 500 else _CODES.get(status, "")
        hint = {DENIED: "credentials may be missing: https://USER:PASSWORD@HOST/"}.get(code, "")
        if path == SUMS and code == NOT_FOUND:
            hint = f"the folder needs the file {SUMS}; sha256sum writes it"
        return StoreError(
            f"{self._name(path)} answered {status} {http.client.responses.get(status, '')}",
            code=code,
            hint=hint,
        )

    def _silent(self, path: str, reason: object) -> StoreError:
        said = reason.strerror if isinstance(reason, OSError) else None
        if isinstance(reason, ssl.SSLCertVerificationError):  # no retry makes it a good one
            return StoreError(
                f"{self._name(path)}: the certificate is not trusted: {reason.verify_message}",
                hint="add the authority to this machine, or name its file in SSL_CERT_FILE",
            )
        return StoreError(
            f"{self._name(path)} cannot be reached: {said or reason or 'silence'}",
            code=UNREACHABLE,
            hint="check the address, the network and the proxy (https_proxy)",
        )

    def _broke_off(self, path: str, got: int, size: int) -> StoreError:
        return StoreError(
            f"{self._name(path)} broke off after {got:,} of {size:,} bytes", code=UNREACHABLE
        )

    def _changed(self, file: RemoteFile) -> StoreError:
        return StoreError(
            f"{self._name(file.path)} changed while it was fetched",
            code=CHANGED,
            hint="sync again when whoever writes it has finished",
        )


class _NotAllowed(StoreError):
    """HEAD is not; GET may be."""


def _basic(parts: urllib.parse.SplitResult) -> str:
    if parts.username is None:
        return ""
    words = (urllib.parse.unquote(word or "") for word in (parts.username, parts.password))
    return "Basic " + base64.b64encode(":".join(words).encode()).decode()
