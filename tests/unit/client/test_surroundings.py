"""Targets, timers, processes: what the load stands on."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from pathlib import Path

import pytest

from headrace.client.processes import cpu_of, listeners
from headrace.client.target import resolve_target
from headrace.client.timer import _LoopTimer, make_timer
from headrace.errors import ConfigError

# targets


@pytest.mark.parametrize(
    ("url", "authority", "prefix"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", ""),
        ("http://127.0.0.1:8000/", "127.0.0.1:8000", ""),
        ("127.0.0.1:9", "127.0.0.1:9", ""),
        ("http://127.0.0.1/serving/", "127.0.0.1:80", "/serving"),
        ("https://127.9.9.9", "127.9.9.9:443", ""),
    ],
)
def test_loopback_urls_are_taken(url, authority, prefix):
    target = resolve_target(url)
    assert target.loopback
    assert target.authority == authority
    assert target.prefix == prefix
    assert isinstance(target.tls, ssl.SSLContext) == url.startswith("https")


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1", "http://", "http://127.0.0.1:port", "http://127.0.0.1:99999",
     "http://127.0.0.1/?q=1", "http://user:word@127.0.0.1", "http://127.0.0.1/a b", "http://[::1"],
)  # fmt: skip
def test_other_urls_are_refused(url):
    with pytest.raises(ConfigError):
        resolve_target(url)


def test_other_machines_are_refused_unless_allowed():
    with pytest.raises(ConfigError) as caught:
        resolve_target("http://192.0.2.7:8000")
    assert "--allow-remote" in caught.value.hint
    target = resolve_target("http://192.0.2.7:8000", allow_remote=True)
    assert target.address == "192.0.2.7"
    assert not target.loopback


def test_the_unspecified_address_is_not_loopback():
    with pytest.raises(ConfigError, match="not a loopback address"):
        resolve_target("http://0.0.0.0:8000")


def test_a_name_that_also_means_another_machine_is_refused(monkeypatch):
    def getaddrinfo(*args: object, **kwargs: object) -> list[object]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 80)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConfigError, match="not a loopback address"):
        resolve_target("http://two-faced:80")


def test_ipv4_comes_first_because_servers_listen_there(monkeypatch):
    def getaddrinfo(*args: object, **kwargs: object) -> list[object]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 80, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert resolve_target("http://localhost").address == "127.0.0.1"


def test_an_unusable_certificate_file_is_named(tmp_path):
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        resolve_target("https://127.0.0.1", ca_file=str(path))


# timers


async def test_a_timer_never_fires_early_and_once_for_each_setting():
    loop = asyncio.get_running_loop()
    fired: list[int] = []
    done = asyncio.Event()

    def fire() -> None:
        fired.append(time.monotonic_ns())
        done.set()

    timer = make_timer(loop, fire)
    for delay_ns in (-1_000_000, 0, 3_000_000):
        when_ns = time.monotonic_ns() + delay_ns
        done.clear()
        timer.set_at(when_ns)
        await done.wait()
        assert fired[-1] >= when_ns
    timer.close()
    timer.close()
    assert len(fired) == 3


@pytest.mark.parametrize("make", [make_timer, _LoopTimer])
async def test_a_timer_set_anew_forgets_what_was_set_before(make):
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    timer = make(loop, done.set)
    timer.set_at(time.monotonic_ns() + 3_600_000_000_000)
    timer.set_at(time.monotonic_ns() + 1_000_000)
    await done.wait()  # in a millisecond, not in an hour
    timer.close()


# processes


def process(proc: Path, pid: int, parent: int, ticks: tuple[int, int, int, int]) -> None:
    """One process with user, system, children's user and children's system ticks."""
    (proc / str(pid) / "fd").mkdir(parents=True)
    before = " ".join(["0"] * 9)
    times = " ".join(map(str, ticks))
    (proc / str(pid) / "stat").write_text(f"{pid} (a (bad) name) S {parent} {before} {times} 0 0")


def test_cpu_time_of_a_tree_counts_the_living_and_the_reaped(tmp_path):
    second = os.sysconf("SC_CLK_TCK")
    process(tmp_path, 10, 1, (second, second, second, 0))
    process(tmp_path, 11, 10, (second, 0, 0, 0))
    process(tmp_path, 12, 11, (0, second, 0, 0))
    process(tmp_path, 99, 1, (500 * second, 0, 0, 0))
    reading = cpu_of([10], tmp_path)
    assert reading.seconds == 5
    assert reading.pids == (10, 11, 12)
    assert cpu_of([10, 12], tmp_path).seconds == 5  # nobody is counted twice
    assert cpu_of([12345], tmp_path).pids == ()


def test_listeners_are_found_by_their_socket(tmp_path):
    (tmp_path / "net").mkdir()
    row = "0: 0100007F:{port:04X} 00000000:0000 {state} 0:0 0:0 0 0 0 {inode} 1"
    rows = [
        row.format(port=8000, state="0A", inode=77),
        row.format(port=8000, state="01", inode=78),
    ]
    (tmp_path / "net/tcp").write_text("header\n" + "\n".join(rows) + "\n")
    process(tmp_path, 10, 1, (0, 0, 0, 0))
    (tmp_path / "10/fd/3").symlink_to("socket:[77]")
    process(tmp_path, 11, 1, (0, 0, 0, 0))
    (tmp_path / "11/fd/3").symlink_to("socket:[78]")  # connected, not listening
    assert listeners(8000, tmp_path) == (10,)
    assert listeners(8001, tmp_path) == ()


def test_without_proc_there_are_no_processes(tmp_path):
    assert listeners(8000, tmp_path / "none") == ()
    assert cpu_of([1], tmp_path / "none").pids == ()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs a Linux /proc")
def test_our_own_listening_socket_is_ours():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert os.getpid() in listeners(server.getsockname()[1])
