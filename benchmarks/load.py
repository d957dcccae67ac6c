"""Closed-loop load from a process of its own: wrk where there is one, else our own client.

wrk takes less CPU time per request than even the floor server; our own client takes a little
more than that, so on two cores requests per second and latencies are better with wrk. The
server's CPU time per request is the same with both.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks import client
from benchmarks.mlp import PATH, Request
from benchmarks.servers import HOST, Server


class LoadFailed(Exception):
    """The load generator ended with an error, or requests failed."""


class Load(msgspec.Struct, frozen=True):
    """What one round saw. Latencies in microseconds; ``cpu_us`` of the server per request."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    cpu_us: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class _Seen(msgspec.Struct, frozen=True):
    """A generator's own report."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    errors: int


class Generator:
    """Sends one set of requests, in turn, to any server."""

    def __init__(self, requests: Sequence[Request], work: Path) -> None:
        self._requests = requests
        self._work = work
        work.mkdir(parents=True, exist_ok=True)
        self._wrk = shutil.which("wrk")
        self.name = "wrk" if self._wrk else "benchmarks.client"
        self._script = work / "requests.lua"
        self._script.write_bytes(_lua(requests))

    def run(self, server: Server, connections: int, seconds: int) -> Load:
        """One round.

        Raises:
            LoadFailed: a request failed, so the figures would mean nothing.
        """
        before_s = server.cpu_s()
        measure = self._with_wrk if self._wrk else self._with_client
        seen = measure(server, connections, seconds)
        cpu_s = server.cpu_s() - before_s
        if seen.errors or not seen.requests:
            raise LoadFailed(f"{server.name}: {seen.errors} of {seen.requests} requests failed")
        cpu_us = cpu_s / seen.requests * 1e6
        return Load(seen.requests, seen.seconds, seen.p50_us, seen.p99_us, cpu_us)

    def _with_wrk(self, server: Server, connections: int, seconds: int) -> _Seen:
        assert self._wrk is not None
        output = _output_of(
            self._wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s",
            "-s", str(self._script), server.url,
        )  # fmt: skip
        line = next(line for line in output.splitlines() if line.startswith("{"))
        return msgspec.json.decode(line, type=_Seen)

    def _with_client(self, server: Server, connections: int, seconds: int) -> _Seen:
        plan = client.Plan(
            url=server.url,
            requests=[http_request(server.port, PATH, r.headers, r.body) for r in self._requests],
            connections=connections,
            seconds=seconds,
        )
        seen = client.send(plan, self._work)
        return _Seen(
            seen.answered,
            seen.seconds,
            seen.percentile_us(50),
            seen.percentile_us(99),
            len(seen.failures),
        )


def http_request(port: int, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A whole POST."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {HOST}:{port}",
        *(f"{name}: {value}" for name, value in headers.items()),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join((*lines, "", "")).encode() + body


def _output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadFailed(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


_SCRIPT = """
local requests, count, current = {}, 0, 0
function init()
  for i, each in ipairs(bodies) do
    requests[i] = wrk.format("POST", "%s", each.headers, each.body)
    count = i
  end
end
function request()
  current = current %% count + 1
  return requests[current]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests":%%d,"seconds":%%f,"p50_us":%%f,"p99_us":%%f,"errors":%%d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def _lua(requests: Sequence[Request]) -> bytes:
    """A script for wrk that sends the requests in turn and reports as JSON."""
    bodies = ",\n".join(
        f"{{headers = {{{_fields(each.headers)}}}, body = {_text(each.body)}}}" for each in requests
    )
    return f"local bodies = {{\n{bodies}\n}}\n{_SCRIPT % PATH}".encode()


def _fields(headers: Mapping[str, str]) -> str:
    return ", ".join(f"[{_text(k.encode())}] = {_text(v.encode())}" for k, v in headers.items())


def _text(content: bytes) -> str:
    """Any bytes as a Lua string."""
    return '"' + "".join(f"\\{byte:03d}" for byte in content) + '"'
