"""RFC 9112 and RFC 9110, rule by rule, over bytes: what is taken, what is refused, and how.

The rules that keep one request apart from the next are what request smuggling attacks; each
attack that is known by a name has its line here.
"""

from __future__ import annotations

import json

import pytest

from tests.unit.frontends.lane_bench import Bench, echo, post

TAKEN = {
    "RFC 9112 3: methods": b"DELETE /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "RFC 9112 3.2.1: origin-form": b"GET /a/b?c=d HTTP/1.1\r\nHost: a\r\n\r\n",
    "RFC 9112 3.2.2: absolute-form": b"GET http://b/c HTTP/1.1\r\nHost: a\r\n\r\n",
    "RFC 9112 3.2.4: asterisk-form": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "RFC 9112 3.2: empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "RFC 9112 3.2: Host with port": b"GET / HTTP/1.1\r\nHost: a.example:8080\r\n\r\n",
    "RFC 9112 3.2: Host is IPv6": b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n",
    "RFC 9112 2.2: empty lines before": b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "RFC 9112 5.1: no space after colon": b"GET / HTTP/1.1\r\nHost:a\r\nA:b\r\n\r\n",
    "RFC 9112 5.1: empty value": b"GET / HTTP/1.1\r\nHost: a\r\nA:\r\n\r\n",
    "RFC 9110 5.1: names in any case": b"GET / HTTP/1.1\r\nHOST: a\r\ncOnTeNt-LeNgTh: 0\r\n\r\n",
    "RFC 9110 5.5: obs-text": b"GET / HTTP/1.1\r\nHost: a\r\nA: \xe9\r\n\r\n",
    "RFC 9110 5.3: a list in two fields": b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\nA: c\r\n\r\n",
    "RFC 9112 6.2: leading zeros": b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 02\r\n\r\nab",
    "RFC 9110 9.3.1: GET with a body": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
    "RFC 9112 7.1: hexadecimal of any case": (
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n"
        b"a\r\n0123456789\r\n000\r\n\r\n"
    ),
    "RFC 9112 6.1: chunked in any case": (
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n"
    ),
    "HTTP/1.0 without Host": b"GET / HTTP/1.0\r\n\r\n",
    "RFC 9110 7.8: an upgrade to ignore": (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    ),
}

_HEAD = b"PUT / HTTP/1.1\r\nHost: a\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

REFUSED: dict[str, tuple[bytes, int]] = {
    # -- the request line
    "no HTTP at all": (b"hello\r\n\r\n", 400),
    "TLS on a plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "HTTP/0.9, said so": (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    "HTTP/2 in words": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "HTTP/2 with prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400),
    "HTTP/1.10": (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    "http in lower case": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    "method in lower case": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "unknown method": (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "tab for space": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "leading space": (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "space in the target": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "NUL in the target": (b"GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bytes above 127 in the target": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target without a slash": (b"GET foo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "something behind the version": (b"GET / HTTP/1.1 x\r\nHost: a\r\n\r\n", 400),
    # -- lines
    "RFC 9112 2.2: bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare LF behind a field": (b"GET / HTTP/1.1\r\nHost: a\nA: b\r\n\r\n", 400),
    "bare LF at the end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    "RFC 9112 2.2: bare CR": (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n", 400),
    "bare CR for CRLF": (b"GET / HTTP/1.1\r\nHost: a\rA: b\r\n\r\n", 400),
    "RFC 9112 2.2: space before the first field": (
        b"GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
        400,
    ),
    "RFC 9112 5.2: obs-fold": (_HEAD + b"A: b\r\n c\r\n\r\n", 400),
    "obs-fold with a tab": (_HEAD + b"A: b\r\n\tc\r\n\r\n", 400),
    "RFC 9112 5.1: space before the colon": (_HEAD + b"A : b\r\n\r\n", 400),
    "space before the colon of a length": (_HEAD + b"Content-Length : 1\r\n\r\nx", 400),
    "no colon": (_HEAD + b"A\r\n\r\n", 400),
    "no name": (_HEAD + b": b\r\n\r\n", 400),
    "NUL in a value": (_HEAD + b"A: b\0c\r\n\r\n", 400),
    "control byte in a value": (_HEAD + b"A: b\x01c\r\n\r\n", 400),
    "DEL in a value": (_HEAD + b"A: b\x7fc\r\n\r\n", 400),
    "NUL in a name": (_HEAD + b"A\0: b\r\n\r\n", 400),
    "parenthesis in a name": (_HEAD + b"A(: b\r\n\r\n", 400),
    # -- Host
    "RFC 9112 3.2: no Host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "RFC 9112 3.2: two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "two Hosts in two cases": (b"GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n", 400),
    "two Hosts in HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "RFC 9112 3.2: Host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "Host with a space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "Host with bytes above 127": (b"GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n", 400),
    # -- length
    "negative length": (_HEAD + b"Content-Length: -1\r\n\r\n", 400),
    "length with a sign": (_HEAD + b"Content-Length: +5\r\n\r\n01234", 400),
    "length in hexadecimal": (_HEAD + b"Content-Length: 0x5\r\n\r\n01234", 400),
    "length as Python would": (_HEAD + b"Content-Length: 1_0\r\n\r\n0123456789", 400),
    "length with an exponent": (_HEAD + b"Content-Length: 1e1\r\n\r\n0123456789", 400),
    "length with a fraction": (_HEAD + b"Content-Length: 1.0\r\n\r\nx", 400),
    "length in Arabic digits": (_HEAD + "Content-Length: ٣\r\n\r\nabc".encode(), 400),
    "empty length": (_HEAD + b"Content-Length:\r\n\r\n", 400),
    "length as a list": (_HEAD + b"Content-Length: 1, 1\r\n\r\nx", 400),
    "length as two words": (_HEAD + b"Content-Length: 1 1\r\n\r\nx", 400),
    "length beyond 64 bits": (_HEAD + b"Content-Length: 18446744073709551616\r\n\r\n", 400),
    "length of four thousand digits": (
        _HEAD + b"Content-Length: " + b"9" * 4000 + b"\r\n\r\n",
        400,
    ),
    "RFC 9112 6.3: two lengths": (_HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy", 400),
    "two equal lengths": (_HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
    # -- smuggling
    "CL.TE": (
        _HEAD
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
        400,
    ),
    "TE.CL": (
        _HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
    ),
    "TE.TE": (
        _HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        400,
    ),
    "TE.TE, twice the same": (
        _HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "xchunked": (_HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "chunked with a vertical tab": (
        _HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunked, then another": (_HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n", 400),
    "another, then chunked": (_HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "comma, chunked": (_HEAD + b"Transfer-Encoding: , chunked\r\n\r\n0\r\n\r\n", 501),
    "chunked in quotes": (_HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 501),
    "identity": (_HEAD + b"Transfer-Encoding: identity\r\n\r\n", 501),
    "space before the colon of chunked": (
        _HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunked folded": (_HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "RFC 9112 6.1: chunked in HTTP/1.0": (
        b"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a length in the trailer": (_CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n", 400),
    # -- chunks
    "chunk size with a prefix": (_CHUNKED + b"0x1\r\nx\r\n0\r\n\r\n", 400),
    "chunk size with a sign": (_CHUNKED + b"+1\r\nx\r\n0\r\n\r\n", 400),
    "negative chunk size": (_CHUNKED + b"-1\r\nx\r\n0\r\n\r\n", 400),
    "no chunk size": (_CHUNKED + b"\r\nx\r\n0\r\n\r\n", 400),
    "chunk size is no number": (_CHUNKED + b"g\r\n\r\n", 400),
    "chunk size with a space": (_CHUNKED + b"1 \r\nx\r\n0\r\n\r\n", 400),
    "chunk size beyond 64 bits": (_CHUNKED + b"10000000000000000\r\n", 400),
    "chunk ended by LF": (_CHUNKED + b"1\nx\n0\n\n", 400),
    "chunk longer than its size": (_CHUNKED + b"1\r\nxy\r\n0\r\n\r\n", 400),
    "bare LF in an extension": (_CHUNKED + b"1;a\nb\r\nx\r\n0\r\n\r\n", 400),
    "obs-fold in the trailer": (_CHUNKED + b"0\r\nA: b\r\n c\r\n\r\n", 400),
    # -- what only may be said once
    "two expectations": (_HEAD + b"Expect: 100-continue\r\nExpect: x\r\n\r\n", 400),
    "another expectation": (_HEAD + b"Expect: x\r\n\r\n", 417),
    "two encodings": (_HEAD + b"Content-Encoding: gzip\r\nContent-Encoding: identity\r\n\r\n", 400),
    "two lengths of the JSON part": (
        _HEAD + b"Inference-Header-Content-Length: 1\r\nInference-Header-Content-Length: 2\r\n\r\n",
        400,
    ),
}


def test_an_empty_transfer_encoding_is_refused() -> None:
    """TE.0, by the parser or by us; which of the two depends on the parser's version."""
    client = Bench(reply=echo).connect()
    client.send(_HEAD + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n" + post(b"smuggled"))
    assert client.answer().status in (400, 501)
    assert client.over


@pytest.mark.parametrize("sent", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("step", [0, 1])
def test_taken(sent: bytes, step: int) -> None:
    bench = Bench(reply=echo)
    client = bench.connect()
    client.send(sent, step=step)
    answer = client.answer()
    assert answer.status == 200
    if b"HTTP/1.0" not in sent:
        client.send(sent, step=step)
        client.send(post(b"next"))
        assert [answer.status for answer in client.answers()] == [200, 200]


@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("step", [0, 1])
def test_refused(sent: bytes, status: int, step: int) -> None:
    """With a reason, then closed; nothing reaches a handler, and nobody else notices."""
    bench = Bench(reply=echo)
    other, client = bench.connect(), bench.connect()
    client.send(sent + post(b"smuggled"), step=step)
    answer = client.answer()
    assert answer.status == status
    told = json.loads(answer.body)
    assert told["error"]
    assert told["code"]
    assert answer.headers["connection"] == "close"
    assert client.over
    client.send(post(b"late"))
    assert not client.answers()
    assert not bench.exchanges
    other.send(post(b"fine"))
    assert other.answer().body == b"fine"


@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
def test_refused_behind_a_good_request(sent: bytes, status: int) -> None:
    """Neither a request before it nor a head that is remembered changes what is wrong."""
    bench = Bench(reply=echo)
    client = bench.connect()
    client.send(post(b"1"))
    client.send(post(b"2") + sent)
    assert [answer.status for answer in client.answers()] == [200, 200, status]
    assert client.over
