"""A bucket of S3, or of what speaks like it (MinIO, Ceph, R2), through boto3.

Who we are and where the bucket is, boto3 finds out as it does for everybody: ``AWS_*`` in the
environment, ``~/.aws``, the machine's own role; ``AWS_ENDPOINT_URL`` for other than Amazon.
Where it finds nobody to be, the bucket is asked without a signature, as a public one allows.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import msgspec

from headrace.errors import MissingExtra, StoreError
from headrace.repository.outbound import paced
from headrace.repository.stores.base import (
    CHANGED,
    CHUNK_BYTES,
    DENIED,
    MAX_FILES,
    MAX_SUMS_BYTES,
    NOT_FOUND,
    SUMS,
    TIMEOUT_S,
    UNREACHABLE,
    Body,
    RemoteFile,
)
from headrace.repository.stores.names import check_path
from headrace.repository.stores.spec import StoreSpec
from headrace.repository.stores.sums import parse_sums

_MD5 = re.compile(r"[0-9a-f]{32}")
_MD5_OF_PARTS = re.compile(r"[0-9a-f]{32}-([1-9][0-9]{0,4})")

_CODES = {
    "404": NOT_FOUND, "NoSuchKey": NOT_FOUND, "NoSuchBucket": NOT_FOUND,
    "401": DENIED, "403": DENIED, "AccessDenied": DENIED, "InvalidAccessKeyId": DENIED,
    "SignatureDoesNotMatch": DENIED, "ExpiredToken": DENIED, "InvalidToken": DENIED,
    "RequestTimeTooSkewed": DENIED, "AllAccessDisabled": DENIED,
    "412": CHANGED, "PreconditionFailed": CHANGED,
    "SlowDown": UNREACHABLE, "RequestTimeout": UNREACHABLE, "429": UNREACHABLE,
}  # fmt: skip

_HINTS = {
    NOT_FOUND: "check the bucket, the prefix, and AWS_ENDPOINT_URL",
    DENIED: "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; the server needs "
    "s3:ListBucket and s3:GetObject",
    CHANGED: "sync again when whoever writes it has finished",
    UNREACHABLE: "check the network, AWS_ENDPOINT_URL and AWS_REGION",
}


class S3Store:
    """A store in a bucket.

    Args:
        spec: of kind ``s3``.
        timeout_s: of silence, and for a connection.

    Raises:
        MissingExtra: boto3 is not installed.
        StoreError: what boto3 was told (a profile, an endpoint) is wrong.
    """

    def __init__(self, spec: StoreSpec, *, timeout_s: float = TIMEOUT_S) -> None:
        try:
            import boto3
            from botocore import exceptions
            from botocore.response import URLLib3ProtocolError, URLLib3ReadTimeoutError
        except ImportError:
            raise MissingExtra(spec.label, extra="s3", package="boto3") from None
        self.label = spec.label
        self._bucket = spec.place
        self._root = f"{spec.prefix}/" if spec.prefix else ""
        self._refusals: tuple[type[Exception], ...] = (exceptions.ClientError,)
        self._denials = (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
        )
        self._breaks = (
            exceptions.HTTPClientError,
            exceptions.ConnectionError,
            exceptions.IncompleteReadError,
            URLLib3ProtocolError,
            URLLib3ReadTimeoutError,
        )
        self._misunderstandings = (exceptions.BotoCoreError, ValueError)
        with self._translated(""):
            self._client: Any = _client(boto3.Session(), timeout_s)

    def list(self) -> list[RemoteFile]:
        """All objects below the prefix, held against its ``SHA256SUMS`` where it has one."""
        files: list[RemoteFile] = []
        with self._translated(""):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._root
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    path = item["Key"][len(self._root) :]
                    if path and not path.endswith("/"):  # markers that consoles make of folders
                        files.append(RemoteFile(path=path, size=item["Size"], tag=item["ETag"]))
                if len(files) > MAX_FILES:
                    raise StoreError(f"{self.label} holds more than {MAX_FILES:,} files")
        by_path = {file.path: file for file in files}
        if SUMS not in by_path:
            return files
        return [
            msgspec.structs.replace(by_path.get(path, RemoteFile(path=path)), sha256=sha256)
            for path, sha256 in self._sums(by_path[SUMS]).items()
        ]

    def describe(self, file: RemoteFile) -> RemoteFile:
        """HEAD: the checksum that the bucket keeps, or what the ETag tells."""
        with self._translated(file.path):
            head = self._client.head_object(**self._object(file.path), ChecksumMode="ENABLED")
        tag = head["ETag"]
        if file.tag and file.tag != tag:
            raise self._error(CHANGED, f"{self._name(file.path)} changed since it was listed")
        described = msgspec.structs.replace(file, size=head["ContentLength"], tag=tag)
        sha256 = file.sha256 or _sha256(head)
        if sha256:
            return msgspec.structs.replace(described, sha256=sha256)
        return self._with_md5(described, head)

    @contextmanager
    def open(self, file: RemoteFile, offset: int) -> Iterator[Body]:
        """GET with Range, and If-Match, so that another content is an error and no mixture."""
        wanted = {"Range": f"bytes={offset}-"} if offset else {}
        with self._translated(file.path):
            answer = self._client.get_object(**self._object(file.path), IfMatch=file.tag, **wanted)
            content = answer["Body"]
            try:
                begin = offset if "ContentRange" in answer else 0
                yield Body(begin, _pieces(content))
            finally:
                content.close()

    def _sums(self, file: RemoteFile) -> dict[str, str]:
        if file.size > MAX_SUMS_BYTES:
            raise StoreError(f"{SUMS} of {self.label} is larger than {MAX_SUMS_BYTES:,} bytes")
        with self._translated(SUMS):
            body = self._client.get_object(**self._object(SUMS), IfMatch=file.tag)["Body"]
            with closing(body):
                slow = partial(StoreError, code=UNREACHABLE)
                content = b"".join(paced(_pieces(body), self._name(SUMS), error=slow))
        return parse_sums(content, self.label)

    def _with_md5(self, file: RemoteFile, head: Mapping[str, Any]) -> RemoteFile:
        """What the ETag says, if it is one of content: encrypted objects have other ETags."""
        tag = file.tag.strip('"').lower()
        if head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head:
            return file
        if _MD5.fullmatch(tag):
            return msgspec.structs.replace(file, md5=tag)
        if not (parts := _MD5_OF_PARTS.fullmatch(tag)):
            return file
        part_bytes = self._part_bytes(file, int(parts[1]))
        return msgspec.structs.replace(file, md5=tag, part_bytes=part_bytes) if part_bytes else file

    def _part_bytes(self, file: RemoteFile, parts: int) -> int:
        """How large the parts of its upload were, if all but the last were equal; else 0."""
        sizes: list[int] = []
        for number in sorted({1, parts}):
            with self._translated(file.path):
                head = self._client.head_object(
                    **self._object(file.path), PartNumber=number, IfMatch=file.tag
                )
            if head.get("PartsCount", parts) != parts:
                return 0
            sizes.append(head["ContentLength"])
        fits = sizes[0] * (parts - 1) + sizes[-1] == file.size and sizes[-1] <= sizes[0]
        return sizes[0] if fits else 0

    def _object(self, path: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._root + check_path(path, self.label)}

    def _name(self, path: str) -> str:
        return f"{self.label}/{path}" if path else self.label

    def _error(self, code: str, message: str) -> StoreError:
        return StoreError(message, code=code, hint=_HINTS.get(code, ""))

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """boto3's errors as ours. Its texts hold addresses with keys; ours do not."""
        try:
            yield
        except self._refusals as error:
            answer: dict[str, Any] = getattr(error, "response", {})
            said = str(answer.get("Error", {}).get("Code", ""))
            status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            code = UNREACHABLE if status >= 500 else _CODES.get(said, "")
            raise self._error(code, f"{self._name(path)} answered {status} {said}") from None
        except self._denials as error:
            raise self._error(DENIED, f"{self._name(path)}: {type(error).__name__}") from None
        except self._breaks as error:
            raise self._error(
                UNREACHABLE, f"{self._name(path)} cannot be reached: {type(error).__name__}"
            ) from None
        except self._misunderstandings as error:
            raise StoreError(
                f"{self._name(path)} cannot be asked: {type(error).__name__}",
                hint="check AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL and the files in ~/.aws",
            ) from None


def _client(session: Any, timeout_s: float) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    settings: dict[str, Any] = {
        "connect_timeout": timeout_s,
        "read_timeout": timeout_s,
        "retries": {"total_max_attempts": 1},  # we try again ourselves, and say so
        "response_checksum_validation": "when_required",  # and verify ourselves
        "user_agent_extra": "headrace",
    }
    if session.get_credentials() is None:
        settings["signature_version"] = UNSIGNED
    region = session.region_name or "us-east-1"  # any will do where the endpoint is given
    return session.client("s3", config=Config(**settings), region_name=region)


def _pieces(body: Any) -> Iterator[bytes]:
    """A body as it arrives. ``iter_chunks`` would wait for whole chunks, and the silence that is
    borne begins again with each byte of them: a megabyte could take a year."""
    read: Callable[[int], bytes] = body._raw_stream.read1
    while piece := read(CHUNK_BYTES):
        yield piece


def _sha256(head: Mapping[str, Any]) -> str:
    """Of the whole content; one of parts has a dash, and is of their digests."""
    text = str(head.get("ChecksumSHA256", ""))
    if not text or "-" in text or head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return ""
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        return ""
    return digest.hex() if len(digest) == 32 else ""
