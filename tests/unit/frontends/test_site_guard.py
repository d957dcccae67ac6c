"""Which requests may change the server's state: by site, by host, by content type."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import Forbidden, RequestError, UnsupportedMediaType
from headrace.frontends.site_guard import SiteGuard

HOST = "localhost:8000"

Fields = Sequence[tuple[str, str]]


def refusal(
    fields: Fields = (),
    host: str = HOST,
    *,
    on_loopback: bool = True,
    allowed: Sequence[str] = (),
) -> RequestError | None:
    def values(name: str) -> list[str]:
        return [value for found, value in fields if found == name]

    try:
        SiteGuard(allowed).check(values, host, on_loopback=on_loopback)
    except RequestError as error:
        return error
    return None


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [("user-agent", "curl/8.0"), ("accept", "*/*")],
        [("content-type", "application/json")],
        [("content-type", "application/octet-stream")],
        [("content-type", "Application/JSON; charset=utf-8")],
        [("sec-fetch-site", "same-origin"), ("origin", "http://localhost:8000")],
        [("sec-fetch-site", "none")],
        [("origin", "http://LOCALHOST:8000")],
    ],
    ids=str,
)
def test_clients_and_our_own_pages_pass(fields: Fields) -> None:
    assert refusal(fields) is None
    assert refusal(fields, on_loopback=False) is None


@pytest.mark.parametrize(
    "fields",
    [
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "Cross-Site")],
        [("sec-fetch-site", "")],
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        [("origin", "null")],
        [("origin", "")],
        [("origin", "http://evil.example")],
        [("origin", "http://localhost")],
        [("origin", "http://localhost:8001")],
        [("origin", "http://localhost:8000.evil.example")],
        [("origin", "http://localhost:8000@evil.example")],
        [("origin", "http://evil.example, http://localhost:8000")],
        [("origin", "http://localhost:8000/")],
        [("origin", "http://localhost:port")],
        [("origin", "file://localhost:8000")],
        [("origin", "localhost:8000")],
        [("origin", "http://localhost:8000"), ("origin", "http://evil.example")],
        [("origin", "http://evil.example"), ("sec-fetch-site", "same-origin")],
    ],
    ids=str,
)
@pytest.mark.parametrize("on_loopback", [True, False])
def test_another_site_is_refused(fields: Fields, on_loopback: bool) -> None:
    error = refusal(fields, on_loopback=on_loopback)
    assert isinstance(error, Forbidden)
    assert error.code == "cross_site"


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://models.example", "models.example", True),
        ("http://models.example", "models.example:80", True),
        ("https://models.example", "models.example", True),
        ("https://models.example", "models.example:443", True),
        ("https://models.example", "models.example:80", False),
        ("http://models.example:80", "models.example", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://[::1]:8000", "[::1]:8001", False),
        ("http://models.example", "", False),
    ],
)
def test_an_origin_is_the_host_and_port_that_was_asked(origin: str, host: str, same: bool) -> None:
    error = refusal([("origin", origin)], host, on_loopback=False)
    assert (error is None) is same


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:1",
        "LocalHost:8000",
        "localhost.:8000",
        "app.localhost:8000",
        "127.0.0.1:8000",
        "127.9.9.9",
        "[::1]:8000",
        "%5B::1%5D:8000",
        "[::ffff:127.0.0.1]:8000",
        "0.0.0.0:8000",
        "",
    ],
)
def test_hosts_that_are_known_on_loopback(host: str) -> None:
    assert refusal(host=host) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "notlocalhost",
        "127.0.0.1.evil.example:8000",
        "10.0.0.1:8000",
        "localhost:8000@evil.example",
        "localhost, evil.example",
        "localhost:port",
        "[::1",
        ":8000",
        "évil",
    ],
)
def test_other_hosts_are_refused_on_loopback_alone(host: str) -> None:
    error = refusal(host=host)
    assert isinstance(error, Forbidden)
    assert error.code == "unknown_host"
    assert host in error.message
    assert "server.allowed_hosts" in error.hint
    assert refusal(host=host, on_loopback=False) is None


@pytest.mark.parametrize(
    "allowed", ["models.example", "Models.Example", "models.example.", "models.example:8000"]
)
def test_a_listed_host_is_known_with_any_port(allowed: str) -> None:
    for host in ("models.example", "models.example:9", "MODELS.example"):
        assert refusal(host=host, allowed=[allowed]) is None
    assert refusal(host="other.example", allowed=[allowed]) is not None


@pytest.mark.parametrize("allowed", ["fd00::1", "[fd00::1]"])
def test_a_listed_address(allowed: str) -> None:
    assert refusal(host="[fd00::1]:8000", allowed=[allowed]) is None


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "text/plain;charset=UTF-8",
        " Text/Plain ; a=b",
        "text/json",
    ],
)
def test_content_types_that_a_page_can_send_anywhere_are_refused(content_type: str) -> None:
    error = refusal([("content-type", content_type)])
    assert isinstance(error, UnsupportedMediaType)
    assert "Content-Type: application/json" in error.hint
    several = [("content-type", "application/json"), ("content-type", content_type)]
    assert isinstance(refusal(several), UnsupportedMediaType)


@given(st.text(), st.text(), st.text(), st.booleans())
def test_whatever_is_sent_it_is_decided(
    origin: str, host: str, content_type: str, on_loopback: bool
) -> None:
    """No other exception; and no origin but that of the host is ever accepted."""
    fields = [("origin", origin), ("content-type", content_type)]
    if refusal(fields, host, on_loopback=on_loopback) is None:
        assert origin.strip().lower().partition("://")[0] in ("http", "https")


@given(st.from_regex(r"[a-z0-9-]{1,20}(\.[a-z0-9-]{1,20}){1,4}(:[0-9]{1,4})?", fullmatch=True))
def test_no_registered_name_is_known_by_itself(host: str) -> None:
    """What can be bought as a domain can be rebound: a last label with a letter, not localhost."""
    last = host.partition(":")[0].rpartition(".")[2]
    if last != "localhost" and not last.replace("-", "").isdigit():
        assert refusal(host=host) is not None
