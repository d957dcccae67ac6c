"""The rules for heads by themselves: they hold whatever a parser lets through."""

from __future__ import annotations

import pytest

from headrace.frontends import refusals
from headrace.frontends.heads import Head, may_be_remembered, read_head
from headrace.frontends.refusals import Refusal

HOST = (b"Host", b"a")


def read(*fields: tuple[bytes, bytes], version: str = "1.1", stays: bool = True) -> Head | Refusal:
    return read_head(b"POST", b"/x", list(fields), version, stays=stays)


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ([], refusals.HOST_MISSING),
        ([HOST, HOST], refusals.HOST_REPEATED),
        ([(b"Host", b"a b")], refusals.HOST_MALFORMED),
        ([(b"Host", b"a/b")], refusals.HOST_MALFORMED),
        ([(b"Host", b"a@b")], refusals.HOST_MALFORMED),
        ([HOST, (b"Content-Length", b"1"), (b"content-length", b"1")], refusals.LENGTH_REPEATED),
        ([HOST, (b"Content-Length", b"")], refusals.LENGTH_MALFORMED),
        ([HOST, (b"Content-Length", b"+1")], refusals.LENGTH_MALFORMED),
        ([HOST, (b"Content-Length", b"1_0")], refusals.LENGTH_MALFORMED),
        ([HOST, (b"Content-Length", b"-0")], refusals.LENGTH_MALFORMED),
        ([HOST, (b"Content-Length", b"1 1")], refusals.LENGTH_MALFORMED),
        ([HOST, (b"Content-Length", b"9" * 21)], refusals.LENGTH_MALFORMED),
        ([HOST, (b"Content-Length", b"9" * 5000)], refusals.LENGTH_MALFORMED),
        (
            [HOST, (b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")],
            refusals.LENGTH_AND_CHUNKED,
        ),
        ([HOST, (b"Transfer-Encoding", b"gzip, chunked")], refusals.UNKNOWN_CODING),
        ([HOST, (b"Transfer-Encoding", b"")], refusals.UNKNOWN_CODING),
        ([HOST, (b"Expect", b"x")], refusals.BAD_EXPECTATION),
    ],
)
def test_refused(fields: list[tuple[bytes, bytes]], refusal: Refusal) -> None:
    assert read(*fields) is refusal


@pytest.mark.parametrize("version", ["", "0.9", "1.2", "2.0", "3.0"])
def test_other_versions_are_refused(version: str) -> None:
    assert read(HOST, version=version) is refusals.BAD_VERSION


def test_http_1_0_needs_no_host_and_has_no_chunks() -> None:
    assert isinstance(read(version="1.0"), Head)
    assert read((b"Transfer-Encoding", b"chunked"), version="1.0") is refusals.CHUNKED_IN_1_0


@pytest.mark.parametrize(
    ("version", "stays", "plain"),
    [("1.1", True, True), ("1.1", False, False), ("1.0", True, False), ("1.0", False, False)],
)
def test_plain_is_http_1_1_that_stays(version: str, stays: bool, plain: bool) -> None:
    head = read(HOST, version=version, stays=stays)
    assert isinstance(head, Head)
    assert head.plain is plain
    assert head.keep_alive is stays


def test_of_a_repeated_field_the_last_counts_and_all_are_kept() -> None:
    head = read(HOST, (b"A", b"1"), (b"a", b"2 \t"))
    assert isinstance(head, Head)
    assert head.headers[b"a"] == b"2"
    assert head.raw_headers == [HOST, (b"A", b"1"), (b"a", b"2 \t")]


def remembered(raw: bytes, *fields: tuple[bytes, bytes]) -> bool:
    head = read(*fields)
    assert isinstance(head, Head)
    return may_be_remembered(raw, head)


def test_only_bytes_that_are_this_head_and_nothing_else_are_remembered() -> None:
    whole = b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n"
    assert remembered(whole, HOST)
    assert not remembered(b"\r\n" + whole, HOST)
    assert not remembered(whole.replace(b"Host", b"A: b\r\nHost"), HOST)
    assert not remembered(whole.replace(b"\r\nHost", b"\nHost"), HOST)
    assert not remembered(whole[:-2], HOST)
    assert not remembered(b"POS", HOST)
    assert not remembered(b"POST /x HTTP/1.1\r\nHost: " + b"a" * 5000 + b"\r\n\r\n", HOST)
