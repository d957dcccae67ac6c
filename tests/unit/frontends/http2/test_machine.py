"""What the protocol forbids, and the code that says so; what it allows, and nothing happens."""

from __future__ import annotations

import pytest
from hyperframe.frame import GoAwayFrame, PingFrame, RstStreamFrame, SettingsFrame

from headrace.frontends.http2 import frames
from headrace.frontends.http2.frames import PREFACE, frame, settings
from tests.unit.frontends.http2.bench import (
    END_HEADERS,
    END_STREAM,
    GET,
    HELLO,
    POST,
    Http2Bench,
    block,
    data,
    headers,
    ping,
    request,
    rst,
    window,
)

PROTOCOL, FLOW, CLOSED, SIZE, COMPRESSION = 0x1, 0x3, 0x5, 0x6, 0x9
PADDED, PRIORITY = frames.PADDED, frames.WITH_PRIORITY


def setting(identifier: int, value: int) -> bytes:
    return settings({identifier: value})


CONNECTION: dict[str, tuple[bytes, int]] = {
    # RFC 9113 section 4.2, 4.3
    "a frame above MAX_FRAME_SIZE": (frame(frames.DATA, 0, 1, b"x" * 65_537), SIZE),
    "no HPACK": (frame(frames.HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"), COMPRESSION),
    "an index beyond the table": (frame(frames.HEADERS, END_HEADERS, 1, b"\xfe"), COMPRESSION),
    "a table larger than allowed": (
        frame(frames.HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f"),
        COMPRESSION,
    ),
    "three size updates": (frame(frames.HEADERS, END_HEADERS, 1, b"\x20\x20\x20"), COMPRESSION),
    "a size update after a field": (
        frame(frames.HEADERS, END_HEADERS, 1, b"\x82\x20"),
        COMPRESSION,
    ),
    # 5.1: idle streams
    "DATA on an idle stream": (data(1, b"x"), PROTOCOL),
    "DATA on stream 0": (data(0, b"x"), PROTOCOL),
    "DATA on a stream of ours": (data(2, b"x"), PROTOCOL),
    "RST_STREAM on an idle stream": (rst(1), PROTOCOL),
    "RST_STREAM on stream 0": (rst(0), PROTOCOL),
    "WINDOW_UPDATE on an idle stream": (window(1, 1), PROTOCOL),
    "HEADERS on stream 0": (request(0), PROTOCOL),
    "5.1.1: an even stream": (request(2), PROTOCOL),
    "5.1.1: a stream below the last": (request(5) + request(3), CLOSED),
    # 6.1, 6.2: padding
    "padding without a length": (headers(1) + data(1, b"", PADDED), PROTOCOL),
    "padding as long as the payload": (headers(1) + data(1, b"\x04abc", PADDED), PROTOCOL),
    "padding longer than HEADERS": (
        frame(frames.HEADERS, END_HEADERS | PADDED, 1, b"\x50" + block(GET)),
        PROTOCOL,
    ),
    "HEADERS too short for its priority": (
        frame(frames.HEADERS, END_HEADERS | PRIORITY, 1, b"\0\0\0"),
        SIZE,
    ),
    "6.3: PRIORITY on stream 0": (frame(frames.PRIORITY, 0, 0, b"\0\0\0\3\0"), PROTOCOL),
    "6.4: a long RST_STREAM": (
        headers(1) + frame(frames.RST_STREAM, 0, 1, b"\0\0\0\0\0"),
        SIZE,
    ),
    # 6.5: SETTINGS
    "SETTINGS on a stream": (frame(frames.SETTINGS, 0, 1), PROTOCOL),
    "SETTINGS of five bytes": (frame(frames.SETTINGS, 0, 0, b"12345"), SIZE),
    "an acknowledgement with a payload": (
        frame(frames.SETTINGS, frames.ACK, 0, b"\0\3\0\0\0\1"),
        SIZE,
    ),
    "ENABLE_PUSH 2": (setting(frames.ENABLE_PUSH, 2), PROTOCOL),
    "INITIAL_WINDOW_SIZE 2^31": (setting(frames.INITIAL_WINDOW_SIZE, 2**31), FLOW),
    "MAX_FRAME_SIZE 16383": (setting(frames.MAX_FRAME_SIZE, 16_383), PROTOCOL),
    "MAX_FRAME_SIZE 2^24": (setting(frames.MAX_FRAME_SIZE, 2**24), PROTOCOL),
    "6.6: PUSH_PROMISE": (frame(frames.PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2"), PROTOCOL),
    "6.7: PING on a stream": (ping(stream_id=1), PROTOCOL),
    "6.7: PING of seven bytes": (ping(b"1234567"), SIZE),
    "6.8: GOAWAY on a stream": (frame(frames.GOAWAY, 0, 1, b"\0" * 8), PROTOCOL),
    "6.8: a short GOAWAY": (frame(frames.GOAWAY, 0, 0, b"\0" * 7), SIZE),
    # 6.9: windows
    "WINDOW_UPDATE of nothing": (window(0, 0), PROTOCOL),
    "WINDOW_UPDATE of three bytes": (frame(frames.WINDOW_UPDATE, 0, 0, b"\0\0\1"), SIZE),
    "a connection window above 2^31-1": (window(0, 2**31 - 1), FLOW),
    "6.9.2: a stream window above 2^31-1 by SETTINGS": (
        headers(1) + window(1, 2**30) + setting(frames.INITIAL_WINDOW_SIZE, 2**31 - 1),
        FLOW,
    ),
    # 6.10: CONTINUATION
    "CONTINUATION of nothing": (frame(frames.CONTINUATION, END_HEADERS, 1, b""), PROTOCOL),
    "CONTINUATION after the end": (
        request(1) + frame(frames.CONTINUATION, END_HEADERS, 1, b""),
        PROTOCOL,
    ),
    "CONTINUATION of another stream": (
        headers(1, flags=0) + frame(frames.CONTINUATION, END_HEADERS, 3, b""),
        PROTOCOL,
    ),
    "a block interrupted by PING": (headers(1, flags=0) + ping(), PROTOCOL),
    "a block interrupted by an unknown frame": (headers(1, flags=0) + frame(0xF0, 0, 0), PROTOCOL),
}


@pytest.mark.parametrize("name", CONNECTION)
def test_what_ends_the_connection(name: str) -> None:
    sent, code = CONNECTION[name]
    bench = Http2Bench()
    wire = bench.wire()
    wire.send(sent)
    goaway = wire.goaway()
    assert goaway.error_code == code, goaway.additional_data
    assert wire.transport.eof_sent
    wire.send(request(101))
    assert not wire.frames(), "nothing is read any more"
    bench.advance(3)
    assert wire.transport.closing
    assert bench.counters.connections_open == 0


def test_headers_on_a_closed_stream_end_the_connection() -> None:
    """Section 5.1: it was answered, and both sides had ended it."""
    wire = Http2Bench(reply=lambda exchange: exchange.respond_json(b"")).wire()
    wire.send(request(1), request(1))
    assert wire.goaway().error_code == CLOSED


def test_data_on_a_closed_stream_is_refused() -> None:
    wire = Http2Bench(reply=lambda exchange: exchange.respond_json(b"")).wire()
    wire.send(request(1), data(1, b"x"))
    assert wire.resets() == {1: CLOSED}


def fields(*changes: tuple[str, str], without: str = "") -> list[tuple[str, str]]:
    return [(n, v) for n, v in GET if n != without] + list(changes)


def priority(stream_id: int) -> bytes:
    return stream_id.to_bytes(4, "big") + b"\0"


STREAM: dict[str, tuple[bytes, int]] = {
    # 8.2, 8.3: malformed requests
    "upper case": (request(1, fields(("X-Y", "z"))), PROTOCOL),
    "a field without a name": (request(1, fields(("", "z"))), PROTOCOL),
    "a space in a name": (request(1, fields(("x y", "z"))), PROTOCOL),
    "a line break in a value": (request(1, fields(("x", "a\r\nb"))), PROTOCOL),
    "NUL in a value": (request(1, fields(("x", "a\0b"))), PROTOCOL),
    "white space before a value": (request(1, fields(("x", " a"))), PROTOCOL),
    "8.2.2: connection": (request(1, fields(("connection", "close"))), PROTOCOL),
    "8.2.2: keep-alive": (request(1, fields(("keep-alive", "1"))), PROTOCOL),
    "8.2.2: proxy-connection": (request(1, fields(("proxy-connection", "1"))), PROTOCOL),
    "8.2.2: transfer-encoding": (request(1, fields(("transfer-encoding", "chunked"))), PROTOCOL),
    "8.2.2: upgrade": (request(1, fields(("upgrade", "h2c"))), PROTOCOL),
    "8.2.2: te": (request(1, fields(("te", "gzip"))), PROTOCOL),
    "8.3.1: no :method": (request(1, fields(without=":method")), PROTOCOL),
    "8.3.1: no :scheme": (request(1, fields(without=":scheme")), PROTOCOL),
    "8.3.1: no :path": (request(1, fields(without=":path")), PROTOCOL),
    "8.3.1: an empty :path": (request(1, fields((":path", ""), without=":path")), PROTOCOL),
    "8.3.1: a :path without a slash": (
        request(1, fields((":path", "x"), without=":path")),
        PROTOCOL,
    ),
    "a space in :path": (request(1, fields((":path", "/a b"), without=":path")), PROTOCOL),
    "a line break in :path": (request(1, fields((":path", "/a\nb"), without=":path")), PROTOCOL),
    "8.3: :path twice": (request(1, fields((":path", "/y"))), PROTOCOL),
    "8.3: :status in a request": (request(1, [(":status", "200"), *GET]), PROTOCOL),
    "8.3: an unknown pseudo-header": (request(1, [(":foo", "1"), *GET]), PROTOCOL),
    "8.3: a pseudo-header after a field": (
        request(1, [*GET[:3], ("x", "y"), GET[3]]),
        PROTOCOL,
    ),
    "8.3.1: Host is not :authority": (request(1, fields(("host", "b"))), PROTOCOL),
    "8.5: CONNECT with a path": (
        request(1, [(":method", "CONNECT"), *GET[1:]]),
        PROTOCOL,
    ),
    # 8.1.1: lengths
    "a length without a body": (request(1, fields(("content-length", "1"))), PROTOCOL),
    "a body above its length": (
        headers(1, [*POST, ("content-length", "2")]) + data(1, b"abc"),
        PROTOCOL,
    ),
    "a body below its length": (
        headers(1, [*POST, ("content-length", "4")]) + data(1, b"abc", END_STREAM),
        PROTOCOL,
    ),
    "a body below its length, and trailers": (
        headers(1, [*POST, ("content-length", "4")]) + data(1, b"abc") + request(1, [("t", "x")]),
        PROTOCOL,
    ),
    "two lengths": (
        headers(1, [*POST, ("content-length", "2"), ("content-length", "3")]),
        PROTOCOL,
    ),
    "a length with a sign": (headers(1, [*POST, ("content-length", "+2")]), PROTOCOL),
    "a length beyond 64 bits": (headers(1, [*POST, ("content-length", "9" * 21)]), PROTOCOL),
    # 8.1: trailers
    "trailers that do not end the stream": (headers(1) + headers(1, [("t", "x")]), PROTOCOL),
    "a pseudo-header in trailers": (headers(1) + request(1, [(":path", "/")]), PROTOCOL),
    # 5.1: half-closed
    "DATA after END_STREAM": (request(1) + data(1, b"x"), CLOSED),
    "HEADERS after END_STREAM": (request(1) + request(1, [("t", "x")]), CLOSED),
    # 5.3.1 (RFC 7540), 6.3
    "PRIORITY of four bytes": (headers(1) + frame(frames.PRIORITY, 0, 1, b"1234"), SIZE),
    "PRIORITY of itself": (headers(1) + frame(frames.PRIORITY, 0, 1, priority(1)), PROTOCOL),
    "HEADERS of itself": (
        frame(frames.HEADERS, END_HEADERS | PRIORITY, 1, priority(1) + block(GET)),
        PROTOCOL,
    ),
    # 6.9
    "a WINDOW_UPDATE of nothing": (headers(1) + window(1, 0), PROTOCOL),
    "a stream window above 2^31-1": (headers(1) + window(1, 2**31 - 1), FLOW),
}


@pytest.mark.parametrize("name", STREAM)
def test_what_ends_one_stream_and_no_other(name: str) -> None:
    sent, code = STREAM[name]
    bench = Http2Bench()
    wire = bench.wire()
    wire.send(sent)
    assert wire.resets() == {1: code}
    assert not wire.machine.streams
    assert wire.machine.buffered_bytes == 0
    wire.send(request(3))
    assert bench.exchanges[-1].head.target == b"/x"
    assert not wire.transport.closing


FINE: dict[str, bytes] = {
    "PRIORITY on an idle stream": frame(frames.PRIORITY, 0, 9, priority(3)),
    "an unknown frame": frame(0xF7, 0xFF, 77, b"whatever"),
    "an unknown setting": settings({0x77: 1, 0x2: 0}),
    "an acknowledged PING of ours": ping(flags=frames.ACK),
    "the reserved bit": (b"\0\0\0\4\1" + b"\x80\0\0\0"),
    "undefined flags": frame(frames.PING, 0xFE, 0, b"12345678"),
    "SETTINGS again": settings({frames.INITIAL_WINDOW_SIZE: 1}),
    "a padded request": frame(
        frames.HEADERS,
        END_HEADERS | PADDED | PRIORITY | END_STREAM,
        1,
        b"\x03" + priority(7) + block(GET) + b"\0\0\0",
    ),
    "a request and its window, late": request(1) + window(1, 10) + window(1, 10),
    "cookies": request(1, [*GET, ("cookie", "a=b"), ("cookie", "c=d")]),
    "trailers": headers(1, POST) + data(1, b"x") + request(1, [("t", "x")]),
}


@pytest.mark.parametrize("name", FINE)
def test_what_disturbs_nothing(name: str) -> None:
    wire = Http2Bench().wire()
    wire.send(FINE[name])
    kinds = {type(f) for f in wire.frames()}
    assert not kinds & {GoAwayFrame, RstStreamFrame}
    wire.send(request(21))
    assert not {type(f) for f in wire.frames()} & {GoAwayFrame, RstStreamFrame}
    assert wire.bench.exchanges[-1].head.method == b"GET"


def test_what_the_server_says_first() -> None:
    bench = Http2Bench(http2={"max_concurrent_streams": 7})
    transport = bench.connect()
    transport.receive(HELLO)
    bench.settle()
    from tests.unit.frontends.http2.bench import read_frames

    first, *rest = read_frames(transport.written)[0]
    assert isinstance(first, SettingsFrame)
    assert first.settings[SettingsFrame.MAX_CONCURRENT_STREAMS] == 7
    assert first.settings[SettingsFrame.INITIAL_WINDOW_SIZE] == 1024 * 1024
    assert any(isinstance(f, SettingsFrame) and "ACK" in f.flags for f in rest)


@pytest.mark.parametrize(
    "first",
    [request(1), ping(), frame(frames.SETTINGS, frames.ACK, 0)],
    ids=["HEADERS", "PING", "ACK"],
)
def test_the_first_frame_is_settings(first: bytes) -> None:
    wire = Http2Bench().wire(hello=PREFACE)
    wire.send(first)
    assert wire.transport.eof_sent
    assert wire.machine.failed


def test_bytes_that_are_no_preface() -> None:
    wire = Http2Bench().wire(hello=b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
    assert wire.machine.failed
    assert wire.transport.eof_sent


def test_every_way_to_cut_the_bytes_means_the_same() -> None:
    sent = HELLO + headers(1, POST) + data(1, b"ab") + data(1, b"c", END_STREAM) + request(3)
    whole = Http2Bench(reply=lambda e: e.respond_json(e.body))
    expected = whole.wire(hello=sent).transport.written
    for step in (1, 2, 5, 9, 13):
        bench = Http2Bench(reply=lambda e: e.respond_json(e.body))
        wire = bench.wire(hello=b"")
        for start in range(0, len(sent), step):
            wire.send(sent[start : start + step])
        assert [e.body for e in bench.exchanges] == [b"abc", b""]
        assert sorted(wire.transport.written) == sorted(expected)


def test_ping_is_answered_with_what_it_carries() -> None:
    wire = Http2Bench().wire()
    wire.send(ping(b"abcdefgh"))
    (pong,) = [f for f in wire.frames() if isinstance(f, PingFrame)]
    assert (pong.opaque_data, set(pong.flags)) == (b"abcdefgh", {"ACK"})


def test_frames_for_a_stream_that_we_ended_first_are_ignored() -> None:
    """RFC 9113 section 5.1: the client may not know yet."""
    wire = Http2Bench(limits={"max_body_bytes": 1}).wire()
    wire.send(headers(1, [*POST, ("content-length", "4")]))
    found = wire.frames()
    assert any(isinstance(f, RstStreamFrame) and f.error_code == 0 for f in found)
    wire.send(data(1, b"abcd", END_STREAM), window(1, 5), rst(1))
    assert not wire.frames()


def test_a_cancelled_stream_is_cancelled() -> None:
    bench = Http2Bench()
    wire = bench.wire()
    wire.send(request(1) + request(3))
    cancelled = []
    bench.exchanges[0].cancel = lambda: cancelled.append(1)
    bench.exchanges[1].cancel = lambda: cancelled.append(3)
    wire.send(rst(1))
    assert cancelled == [1]
    bench.exchanges[0].respond_json(b"{}")
    assert not wire.frames(), "nobody waits for it"
    wire.transport.abort()
    bench.settle()
    assert cancelled == [1, 3]


def test_a_clients_goaway_lets_what_is_under_way_finish() -> None:
    bench = Http2Bench()
    wire = bench.wire()
    wire.send(request(1), frame(frames.GOAWAY, 0, 0, b"\0" * 8))
    assert not wire.transport.closing
    bench.exchanges[0].respond_json(b"{}")
    bench.settle()
    assert wire.transport.eof_sent
    assert wire.frames()[-1].stream_id == 1


def test_a_client_that_wants_no_table_is_told_that_there_is_none() -> None:
    """RFC 7541 section 4.2; hpack's own decoder insists on it."""
    bench = Http2Bench(reply=lambda e: e.respond_json(b"{}"))
    wire = bench.wire(hello=PREFACE + setting(frames.HEADER_TABLE_SIZE, 0))
    wire.decoder.max_allowed_table_size = 0
    wire.send(request(1), request(3))
    answers = [f for f in wire.frames() if f.stream_id and f.type == frames.HEADERS]
    assert [wire.fields(f)[":status"] for f in answers] == ["200", "200"]
