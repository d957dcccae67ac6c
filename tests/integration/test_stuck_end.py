"""SIGTERM ends a server whose main thread is in a library that does not return."""

from __future__ import annotations

import signal

import pytest

from tests.integration.server_process import ServerProcess

SCRIPT = """
import ctypes, sys, uvloop
from headrace.server import stopping

async def in_event_loop():
    stopping.StopSignals(lambda: None)
    stuck()

def stuck():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    print("stuck", file=sys.stderr, flush=True)
    libc.pthread_mutex_lock(mutex)  # for good, and handlers in Python are never run

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
