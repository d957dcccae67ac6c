"""SIGTERM ends a server whose main thread is in a library that does not return."""

from __future__ import annotations

import signal

import pytest

from tests.integration.server_process import ServerProcess

SCRIPT = """
import ctypes, os, sys, uvloop
from headrace.server import stopping

async def in_event_loop():
    stopping.StopSignals(lambda: None)
    stuck()

def stuck():
    # system(3) says so while it waits for its child, which ends when this process has: until then
    # it does not return, and handlers in Python are never run.
    reader, _writer = os.pipe()
    os.set_inheritable(reader, True)
    ctypes.CDLL(None).system(b"echo stuck >&2; exec cat /proc/self/fd/%d" % reader)

stopping.end_within(1.0)
run = dict(early=stuck, serving=lambda: uvloop.run(in_event_loop()))[sys.argv[-1]]
sys.exit(stopping.run_until_stopped(run))
"""


@pytest.mark.parametrize("when", ["early", "serving"])
def test_sigterm_ends_a_process_that_is_in_a_library_for_good(when: str) -> None:
    with ServerProcess(when, script=SCRIPT) as process:
        process.wait_for("stuck")
        process.signal(signal.SIGTERM)
        assert process.wait() == 1, "it ended by itself"
    assert any("most recent call first" in line for line in process.lines)
