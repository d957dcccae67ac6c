"""Header blocks: HPACK (RFC 7541), and what RFC 9113 section 8 allows in a request.

The ``hpack`` library decodes. A client sends the same block again and again, so what a block
meant is remembered by its bytes, for as long as that holds: until a block changes the dynamic
table. Blocks that change it (incremental indexing, a new size) are never remembered themselves.

What we send is encoded without the dynamic table: an answer's fields are short, and bytes that
depend on no state can be made beforehand.
"""

from __future__ import annotations

import hpack
import msgspec
from hpack.table import HeaderTable

from headrace.frontends.http2.faults import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    PROTOCOL_ERROR,
    ConnectionFault,
    StreamFault,
)

FieldList = list[tuple[bytes, bytes]]

_REMEMBERED_MAX = 64
_REMEMBERED_BYTES = 4096

_LENGTH_DIGITS = 20
"""Of the largest 64-bit number."""

_CONNECTION_SPECIFIC = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
"""RFC 9113 section 8.2.2: of HTTP/1.1, and malformed here."""

_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})

_NAME_BYTES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
"""A field's name: a token (RFC 9110 section 5.6.2) without upper case (RFC 9113 section 8.2.1)."""

_FORBIDDEN_IN_VALUES = bytes(b for b in range(32) if b != 9) + b"\x7f"
"""RFC 9110 section 5.5; the HTTP/1.1 parser refuses the same."""

_VISIBLE = bytes(range(0x21, 0x7F))
"""What a method and a target are made of."""

_SIZE_UPDATES_MAX = 2
"""RFC 7541 section 4.2: the smallest and the last size, at the beginning of a block."""


class Fields(msgspec.Struct, eq=False):
    """One request's header fields. Shared between requests that repeat them: never changed.

    ``length`` is that of Content-Length, -1 without. ``note`` is the memory of whoever serves
    such requests: what the fields mean to it.
    """

    method: bytes
    path: bytes
    scheme: bytes
    authority: bytes
    headers: FieldList
    length: int = -1
    note: object = None


class _Table(HeaderTable):
    """Knows whether it was changed since somebody looked."""

    changed = False

    def add(self, name: bytes, value: bytes) -> None:
        self.changed = True
        super().add(name, value)


class HeaderDecoder:
    """The decoding side of one connection.

    Args:
        max_list_bytes: of a decoded header list, as RFC 9113 section 6.5.2 counts: names,
            values and 32 for each field. A bomb of a few bytes can stand for megabytes.
    """

    def __init__(self, max_list_bytes: int) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=max_list_bytes)
        self._table = _Table()
        self._decoder.header_table = self._table
        self.remembered: dict[bytes, Fields] = {}

    def request(self, block: bytes) -> Fields:
        """The fields of a request. Look into ``remembered`` first.

        Raises:
            ConnectionFault: the block is not HPACK, or decodes to more than is allowed.
            StreamFault: it is HPACK, and not a request.
        """
        decoded = self.decode(block)
        unchanged = not self._table.changed and not _resizes(block)
        fields = read_request(decoded)
        if unchanged and len(block) <= _REMEMBERED_BYTES:
            if len(self.remembered) >= _REMEMBERED_MAX:
                self.remembered.clear()
            self.remembered[block] = fields
        return fields

    def decode(self, block: bytes) -> FieldList:
        """Names and values. Every block that is not remembered must come here, in order.

        Raises:
            ConnectionFault: as :meth:`request`.
        """
        table = self._table
        table.changed = False
        if _resizes(block):
            _check_resizes(block)
            self.remembered.clear()
        try:
            decoded = self._decoder.decode(block, raw=True)
        except hpack.OversizedHeaderListError:
            raise ConnectionFault(
                ENHANCE_YOUR_CALM, "the header list is too large", limit="max_header_list_bytes"
            ) from None
        except (hpack.HPACKError, IndexError, ValueError) as error:
            raise ConnectionFault(COMPRESSION_ERROR, f"no HPACK: {error}"[:200]) from None
        if table.changed:
            self.remembered.clear()
        return [(bytes(name), bytes(value)) for name, value in decoded]


def _resizes(block: bytes) -> bool:
    return block[:1] != b"" and block[0] & 0xE0 == 0x20


def _check_resizes(block: bytes) -> None:
    """Each costs the decoder as much as a field and counts as none."""
    position = count = 0
    while position < len(block) and block[position] & 0xE0 == 0x20:
        count += 1
        if block[position] & 0x1F == 0x1F:
            position += 1
            while position < len(block) and block[position] & 0x80:
                position += 1
        position += 1
    if count > _SIZE_UPDATES_MAX:
        raise ConnectionFault(COMPRESSION_ERROR, "too many size updates in one block")


def read_request(decoded: FieldList) -> Fields:
    """What RFC 9113 section 8.3.1 makes of a request's fields.

    Raises:
        StreamFault: malformed: a pseudo-header is missing, doubled, unknown or late, or a
            field may not stand in HTTP/2.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: FieldList = []
    for name, value in decoded:
        if name[:1] == b":":
            if headers or name in pseudo or name not in _PSEUDO:
                raise _malformed(f"the pseudo-header {name!r} is unknown, doubled or late")
            pseudo[name] = value
            if value.translate(None, _VISIBLE):
                raise _malformed(f"the value of {name!r} has bytes that it cannot have")
        else:
            check_field(name, value)
            headers.append((name, value))
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    authority = pseudo.get(b":authority", b"")
    if method == b"CONNECT":  # section 8.5: neither scheme nor path
        if not authority or b":scheme" in pseudo or b":path" in pseudo:
            raise _malformed("CONNECT has :authority only")
        path = authority
    elif not method or not path or not pseudo.get(b":scheme"):
        raise _malformed("a request needs :method, :scheme and :path")
    elif path[:1] != b"/" and not (path == b"*" and method == b"OPTIONS"):
        raise _malformed(":path must begin with a slash")
    return Fields(
        method, path, pseudo.get(b":scheme", b""), authority, headers, _content_length(headers)
    )


def _content_length(headers: FieldList) -> int:
    lengths = {value for name, value in headers if name == b"content-length"}
    if not lengths:
        return -1
    length = lengths.pop()
    if lengths or not length.isdigit() or len(length) > _LENGTH_DIGITS:
        raise _malformed("Content-Length must be one number of bytes")
    return int(length)


def check_field(name: bytes, value: bytes) -> None:
    """One ordinary field of a request or of its trailers.

    Raises:
        StreamFault: it may not stand there (RFC 9113 sections 8.2.1, 8.2.2).
    """
    if not name or name.translate(None, _NAME_BYTES):
        raise _malformed(f"{name!r} is no field name in lower case")
    if name in _CONNECTION_SPECIFIC:
        raise _malformed(f"the field {name!r} belongs to HTTP/1.1")
    if name == b"te" and value.lower() != b"trailers":
        raise _malformed("te may only say trailers")
    if value.translate(None, _FORBIDDEN_IN_VALUES) != value or value.strip(b" \t") != value:
        raise _malformed(f"the value of {name!r} has bytes that it cannot have")


def _malformed(reason: str) -> StreamFault:
    return StreamFault(PROTOCOL_ERROR, reason[:200])


# -- what we send ------------------------------------------------------------------------------

_STATIC_STATUS = {200: 8, 204: 9, 206: 10, 304: 11, 400: 12, 404: 13, 500: 14}
"""RFC 7541 appendix A."""

NO_TABLE = b"\x20"
"""A size update to 0, for a client that wants a smaller table than we start with: it must be
told (RFC 7541 section 4.2), and we never use the table."""


def literal(name: bytes, value: bytes) -> bytes:
    """A field without indexing (RFC 7541 section 6.2.2): needs no table, changes none."""
    return b"".join((b"\0", _length(len(name)), name, _length(len(value)), value))


def status_block(code: int) -> bytes:
    """``:status``, by its entry in the static table where it has one."""
    index = _STATIC_STATUS.get(code)
    if index is not None:
        return bytes((0x80 | index,))
    return b"\x08" + _length(3) + b"%d" % code  # the name is that of entry 8


def _length(size: int) -> bytes:
    """RFC 7541 section 5.1, with a prefix of seven bits; no Huffman code."""
    if size < 0x7F:
        return bytes((size,))
    parts = [0x7F]
    size -= 0x7F
    while size >= 0x80:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    parts.append(size)
    return bytes(parts)
