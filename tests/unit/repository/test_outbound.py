"""Where a store may lead the server: redirects, addresses, and how slowly."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Iterator

import pytest

from headrace.errors import PullError
from headrace.repository import outbound
from headrace.repository.outbound import Outbound, paced, reach_of

from .stores.web_site import Site, serving


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.files["/a"] = b"content"
        yield site


def port_of(site: Site) -> str:
    return site.url.split(":")[2].split("/")[0]


def read(opened: Outbound, url: str, **headers: str) -> bytes:
    request = urllib.request.Request(url)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    with opened.open(request) as response:
        return response.read()


def made(*hosts: str, **addresses: str) -> Outbound:
    names = {name.replace("_", "."): address for name, address in addresses.items()}
    return Outbound(
        redirect_hosts=hosts,
        timeout_s=10.0,
        resolver=lambda host, _: [names.get(host.lower(), host)],
    )


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("8.8.8.8", 0), ("2606:4700::1111", 0), ("::ffff:8.8.8.8", 0), ("64:ff9b::808:808", 0),
        ("10.1.2.3", 1), ("192.168.0.1", 1), ("100.100.100.200", 1), ("fd00:ec2::254", 1),
        ("127.0.0.1", 2), ("127.9.9.9", 2), ("::1", 2), ("::ffff:127.0.0.1", 2),
        ("64:ff9b::7f00:1", 2), ("2002:7f00:1::", 2),
        ("169.254.169.254", 3), ("::ffff:169.254.169.254", 3), ("fe80::1%eth0", 3),
        ("0.0.0.0", 3), ("::", 3), ("224.0.0.1", 3),
    ],
)  # fmt: skip
def test_what_an_address_can_be_reached_from(address, reach):
    assert reach_of(address) == reach


def test_a_redirect_stays_on_its_host_unless_another_is_named(site):
    port = port_of(site)
    names = {"store_test": "127.0.0.1", "cdn_test": "127.0.0.1"}
    url = f"http://store.test:{port}/b"
    for target, hosts, followed in (
        (f"http://STORE.test:{port}/a", (), True),
        ("/a", (), True),
        (f"http://cdn.test:{port}/a", (), False),
        (f"http://cdn.test:{port}/a", ("cdn.test",), True),
        (f"http://cdn.test:{port}/a", ("*",), True),
        (f"http://store.test@cdn.test:{port}/a", (), False),
        ("http://store.test:1/a", (), False),
        (f"ftp://store.test:{port}/a", ("*",), False),
    ):
        site.redirect["/b"] = target
        asked = len(site.asked)
        if followed:
            assert read(made(*hosts, **names), url, Authorization="Basic x") == b"content"
            assert [each.authorization for each in site.asked[asked:]] == ["Basic x", ""]
        else:
            with pytest.raises(PullError, match="redirects"):
                read(made(*hosts, **names), url)
            assert len(site.asked) == asked + 1


def test_a_redirect_never_leaves_https():
    handler = outbound._Redirects(("*",))
    request = urllib.request.Request("https://h.example/a")
    answer = None, 302, "Found", http.client.HTTPMessage()
    with pytest.raises(PullError, match="something weaker"):
        handler.redirect_request(request, *answer, "http://h.example/b")
    followed = handler.redirect_request(request, *answer, "https://h.example/b")
    assert followed is not None
    assert followed.full_url == "https://h.example/b"


@pytest.fixture
def public(monkeypatch):
    """127.0.0.1 counts as a public address here."""
    monkeypatch.setattr(
        outbound, "reach_of", lambda each: 0 if each == "127.0.0.1" else reach_of(each)
    )


@pytest.mark.parametrize("target", ["127.0.0.2", "::1", "10.0.0.1", "169.254.169.254"])
def test_a_public_source_leads_to_no_inner_address(site, public, target):
    port = port_of(site)
    shown = f"[{target}]" if ":" in target else target
    for place in (f"http://{shown}:{port}/a", f"http://name.test:{port}/a"):
        site.redirect["/b"] = place
        with pytest.raises(PullError, match="leads to an address"):
            read(made("*", name_test=target), f"http://127.0.0.1:{port}/b")


def test_a_name_that_comes_to_resolve_to_an_inner_address_is_refused(site, public):
    answers = iter(["127.0.0.1", "127.0.0.2"])
    opened = Outbound(timeout_s=10.0, resolver=lambda *_: [next(answers)])
    url = f"http://store.test:{port_of(site)}/a"
    assert read(opened, url) == b"content"
    with pytest.raises(PullError, match="leads to an address"):
        read(opened, url)


def test_an_answer_whose_head_never_ends_is_broken_off(site, monkeypatch):
    monkeypatch.setattr(outbound, "HEAD_S", 0.05)
    held = outbound.threading.Event()
    site.before = lambda _: held.wait(30) and None
    try:
        with pytest.raises((OSError, http.client.HTTPException)):
            read(made(), f"http://127.0.0.1:{port_of(site)}/a")
    finally:
        held.set()


@pytest.mark.parametrize(("size", "fast"), [(1, False), (16 * 1024, True)])
def test_a_transfer_has_a_minimum_rate(size, fast):
    clock = iter(range(0, 10_000, 10))
    chunks = [b"x" * size] * 60
    run = paced(chunks, "store", now_s=lambda: next(clock))
    if fast:
        assert len(list(run)) == 60
    else:
        with pytest.raises(PullError, match="less than"):
            list(run)
