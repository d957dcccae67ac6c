"""HPACK: what is remembered means what it would mean if it were decoded."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.frontends.http2.faults import ConnectionFault, StreamFault
from headrace.frontends.http2.fields import HeaderDecoder, literal, read_request, status_block
from tests.unit.frontends.http2.bench import GET, block

_REQUEST = [(n.encode(), v.encode()) for n, v in GET]


def decoder(max_list_bytes: int = 65_536) -> HeaderDecoder:
    return HeaderDecoder(max_list_bytes)


def test_a_repeated_block_is_decoded_once() -> None:
    ours, encoder = decoder(), hpack.Encoder()
    blocks = [encoder.encode(GET) for _ in range(4)]
    first, second, third = (ours.request(sent) for sent in blocks[:3])
    assert first is not second, "the first changes the table"
    assert ours.remembered[blocks[3]] is third
    assert third.path == b"/x"


def test_what_refers_to_the_table_is_forgotten_when_the_table_changes() -> None:
    ours, encoder = decoder(), hpack.Encoder()
    ours.request(encoder.encode([*GET, ("x", "1")]))
    again = encoder.encode([*GET, ("x", "1")])
    ours.request(again)
    assert again in ours.remembered
    ours.request(encoder.encode([*GET, ("y", "2")]))
    assert not ours.remembered
    assert (b":authority", b"a") not in ours.decode(again), "the same bytes mean another field now"


def test_a_size_update_is_a_change() -> None:
    ours, encoder = decoder(), hpack.Encoder()
    ours.request(encoder.encode([*GET, ("x", "1")]))
    again = encoder.encode([*GET, ("x", "1")])
    ours.request(again)
    ours.request(b"\x20" + block(GET))
    assert again not in ours.remembered
    with pytest.raises(ConnectionFault):
        ours.request(again)


def test_memory_for_blocks_is_bounded() -> None:
    ours = decoder()
    for number in range(1000):
        ours.request(block([*GET, ("x", str(number))]))
    assert len(ours.remembered) <= 64
    ours.request(block([*GET, ("x", "y" * 5000)]))
    assert all(len(sent) < 5000 for sent in ours.remembered)


_NAMES = st.sampled_from(
    ["x", "y", "content-type", "accept", "grpc-timeout", "long-name-of-a-field"]
)
_VALUES = st.sampled_from(["", "1", "2", "application/grpc", "z" * 300])


@given(
    st.lists(st.lists(st.tuples(_NAMES, _VALUES), max_size=4), max_size=12),
    st.booleans(),
    st.sampled_from([4096, 200, 0]),
)
def test_every_encoders_blocks_mean_what_it_meant(requests, huffman: bool, table: int) -> None:
    encoder, ours = hpack.Encoder(), decoder()
    encoder.header_table_size = table
    for fields in requests:
        sent = encoder.encode([*GET, *fields], huffman=huffman)
        got = ours.remembered.get(sent) or ours.request(sent)
        assert got.headers == [(n.encode(), v.encode()) for n, v in fields]
        if sent in ours.remembered:
            assert ours.remembered[sent] is got


def test_a_bomb_is_not_blown_up() -> None:
    """Four kilobytes in the table, and a byte for each time it is named."""
    ours = decoder()
    ours.request(block(GET) + b"\x40\x01x" + b"\x7f\xa1\x1d" + b"y" * 3872)
    with pytest.raises(ConnectionFault) as caught:
        ours.request(block(GET) + b"\xbe" * 10_000)
    assert caught.value.limit == "max_header_list_bytes"


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_a_fault(sent: bytes) -> None:
    ours = decoder()
    try:
        ours.request(sent)
    except (ConnectionFault, StreamFault):
        return


_FIELD = st.tuples(
    st.from_regex(r"[a-z0-9-]{1,200}", fullmatch=True), st.text("abc XYZ\t%~", max_size=20_000)
)


@given(st.lists(_FIELD, max_size=5), st.sampled_from([100, 200, 204, 404, 431, 503]))
def test_what_we_encode_means_the_same_to_others(fields: list[tuple[str, str]], code: int) -> None:
    sent = status_block(code) + b"".join(literal(n.encode(), v.encode()) for n, v in fields)
    read = hpack.Decoder(max_header_list_size=10**6).decode(sent)
    assert [(str(n), str(v)) for n, v in read] == [(":status", str(code)), *fields]


def test_a_content_length_is_read() -> None:
    assert read_request(_REQUEST).length == -1
    assert read_request([*_REQUEST, (b"content-length", b"12")]).length == 12
    assert read_request([*_REQUEST, *[(b"content-length", b"12")] * 2])
