"""Compressed bodies: whole, within the limit, or refused with a reason."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.frontends.decompress import decompress
from headrace.frontends.refusals import BAD_ENCODING, BODY_TOO_LARGE, Refusal


def refusal_of(body: bytes, encoding: bytes, max_bytes: int = 1000) -> Refusal:
    refusal = decompress(body, encoding, max_bytes)
    assert isinstance(refusal, Refusal), refusal
    return refusal


@given(
    data=st.binary(max_size=300),
    way=st.sampled_from([(b"gzip", gzip.compress), (b"deflate", zlib.compress)]),
    spare=st.integers(0, 5),
)
def test_what_was_compressed_comes_back(data: bytes, way, spare: int) -> None:
    encoding, compress = way
    assert decompress(compress(data), encoding, len(data) + spare) == data


@pytest.mark.parametrize("encoding", [b"gzip", b"x-gzip", b" GZIP ", b"GzIp"])
def test_the_names_of_gzip(encoding: bytes) -> None:
    assert decompress(gzip.compress(b"x"), encoding, 10) == b"x"


@pytest.mark.parametrize("encoding", [b"", b"identity", b"Identity"])
def test_identity_is_nothing(encoding: bytes) -> None:
    assert decompress(b"as it is", encoding, 10) == b"as it is"


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, gzip", b"gzip;q=1", b"\xff"])
def test_others_are_refused(encoding: bytes) -> None:
    assert refusal_of(b"x", encoding) is BAD_ENCODING


@given(data=st.binary(min_size=1, max_size=300), encoding=st.sampled_from([b"gzip", b"deflate"]))
def test_one_byte_more_than_the_limit_is_refused(data: bytes, encoding: bytes) -> None:
    compress = gzip.compress if encoding == b"gzip" else zlib.compress
    assert refusal_of(compress(data), encoding, len(data) - 1) is BODY_TOO_LARGE


def test_several_members_are_one_body() -> None:
    body = gzip.compress(b"a") + gzip.compress(b"") + gzip.compress(b"b")
    assert decompress(body, b"gzip", 2) == b"ab"
    assert refusal_of(body, b"gzip", 1) is BODY_TOO_LARGE


def test_thousands_of_empty_members_are_refused() -> None:
    assert "gzip members" in refusal_of(gzip.compress(b"") * 10_000, b"gzip").message


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
def test_a_body_cut_short_is_refused(encoding: bytes) -> None:
    whole = (gzip.compress if encoding == b"gzip" else zlib.compress)(b"some text, some text")
    for end in range(len(whole)):
        assert refusal_of(whole[:end], encoding).status == 400


@given(st.binary(max_size=100), st.sampled_from([b"gzip", b"deflate"]))
def test_noise_is_refused_or_read_but_never_raises(noise: bytes, encoding: bytes) -> None:
    outcome = decompress(noise, encoding, 1000)
    assert isinstance(outcome, bytes) or outcome.status in (400, 413)


@pytest.mark.parametrize("tail", [b"x", b"\0", b"\x1f\x8b"])
def test_bytes_behind_the_body_are_refused(tail: bytes) -> None:
    assert refusal_of(gzip.compress(b"a") + tail, b"gzip").status == 400
    assert refusal_of(zlib.compress(b"a") + tail, b"deflate").status == 400


def test_a_bomb_costs_no_memory() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    assert len(bomb) < 60_000
    tracemalloc.start()
    try:
        assert refusal_of(bomb, b"gzip", 1_000_000) is BODY_TOO_LARGE
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000
