"""Load over HTTP/2 (gRPC) and pipelined HTTP/1.1 from one C client: nghttp2's ``h2load``."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec

from benchmarks.load import Load, LoadFailed
from benchmarks.servers import Server

_STATUS = re.compile(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed, (\d+) errored")
_CODES = re.compile(r"status codes: (\d+) 2xx")
_FINISHED = re.compile(r"finished in ([\d.]+)(us|ms|s)")
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Target(msgspec.Struct, frozen=True):
    """What is sent, one body again and again, and how many at one time."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    port: int
    http1: bool = False
    clients: int = 4
    streams: int = 16


def available() -> bool:
    """Whether Debian's ``nghttp2-client`` is installed."""
    return shutil.which("h2load") is not None


def load(server: Server, target: Target, count: int, work: Path) -> Load:
    """Sends ``count`` requests. Latencies are per request, as h2load logs them.

    Raises:
        LoadFailed: a request failed, so the figures would mean nothing.
    """
    body, log = work / "h2load.body", work / "h2load.log"
    body.write_bytes(target.body)
    log.unlink(missing_ok=True)
    headers = [f"-H{name}: {value}" for name, value in target.headers.items()]
    before_s = server.cpu_s()
    done = subprocess.run(
        [
            "h2load", f"-n{count}", f"-c{target.clients}", f"-m{target.streams}", "-t1",
            f"-d{body}", f"--log-file={log}", *(["--h1"] if target.http1 else []), *headers,
            f"http://127.0.0.1:{target.port}{target.path}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    cpu_s = server.cpu_s() - before_s
    status, codes = _STATUS.search(done.stdout), _CODES.search(done.stdout)
    finished = _FINISHED.search(done.stdout)
    if status is None or codes is None or finished is None or int(codes[1]) != count:
        raise LoadFailed(f"{server.name}: {done.stdout[-500:]}{done.stderr[-500:]}")
    taken_us = sorted(int(line.rsplit("\t", 1)[1]) for line in log.read_text().splitlines())
    return Load(
        requests=count,
        seconds=float(finished[1]) * _UNIT_S[finished[2]],
        p50_us=taken_us[len(taken_us) // 2],
        p99_us=taken_us[len(taken_us) * 99 // 100],
        cpu_us=cpu_s / count * 1e6,
    )
