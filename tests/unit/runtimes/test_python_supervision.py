"""The small parts of supervision that need no process: pauses, and the lines of a log."""

from __future__ import annotations

import os
import select
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtimes.python.childlog import MAX_LINE_BYTES, MAX_LINES, ChildLog
from headrace.runtimes.python.supervisor import HEALTHY_S, MAX_RESTART_DELAY_S, Backoff


def test_pauses_double_up_to_a_limit_and_begin_anew_after_a_healthy_life():
    backoff = Backoff(0.1)
    pauses = [backoff.pause_s(0.0) for _ in range(12)]
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == MAX_RESTART_DELAY_S
    assert backoff.pause_s(HEALTHY_S) == 0.1
    assert backoff.pause_s(HEALTHY_S / 2) == 0.2


@given(st.floats(0.001, 3600), st.lists(st.floats(0, 1000), max_size=30))
def test_no_pause_is_shorter_than_the_first_or_longer_than_the_limit(first_s, lives):
    backoff = Backoff(first_s)
    for lived_s in lives:
        assert first_s <= backoff.pause_s(lived_s) <= max(first_s, MAX_RESTART_DELAY_S)


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield ChildLog(read, "m"), write
    os.close(write)


def test_lines_arrive_whole_whatever_the_pieces_they_were_written_in(pipe, capsys):
    log, write = pipe
    for piece in (b"one\ntw", b"o\n", b"", b"three \xc3", b"\xbc"):
        os.write(write, piece)
        assert log.forward()
    assert capsys.readouterr().err == "[m] one\n[m] two\n"
    log.close()
    assert capsys.readouterr().err == "[m] three ü\n"


def test_a_line_without_an_end_is_broken(pipe, capsys):
    log, write = pipe
    os.write(write, b"x" * (2 * MAX_LINE_BYTES + 1))
    log.forward()
    broken = f"[m] {'x' * MAX_LINE_BYTES}\n"
    assert capsys.readouterr().err == 2 * broken
    log.close()
    assert capsys.readouterr().err == "[m] x\n"


def test_what_is_printed_is_one_line_and_controls_no_terminal(pipe, capsys):
    log, write = pipe
    os.write(write, "ends\r\n\x1b[2J\rINFO fine\tü\x85\u2028x\n".encode())
    log.forward()
    assert capsys.readouterr().err == ("[m] ends\n[m] \\x1b[2J\\x0dINFO fine\tü\\x85\\u2028x\n")
    log.close()


def test_a_flood_is_cut_for_a_minute(capsys):
    read, write = os.pipe()
    now = [0.0]
    log = ChildLog(read, "m", lambda: now[0])

    def say(count: int) -> list[str]:
        for number in range(count):
            os.write(write, b"%d\n" % number)
        while log.forward() and select.select([log], [], [], 0)[0]:
            pass
        return capsys.readouterr().err.splitlines()

    assert len(say(MAX_LINES)) == MAX_LINES
    told = f"[m] more than {MAX_LINES} lines in a minute: the next are dropped"
    assert say(500) == [told]
    assert say(500) == []
    now[0] = 60.0
    assert say(2) == ["[m] 1000 lines dropped", "[m] 0", "[m] 1"]
    say(MAX_LINES + 98)
    log.close()
    last = capsys.readouterr().err.splitlines()
    assert last[0] == "[m] 100 lines dropped; the last of them:"
    assert last[-1] == f"[m] {MAX_LINES + 97}"
    os.close(write)


def test_nothing_there_is_not_the_end():
    read, write = os.pipe()
    log = ChildLog(read, "m")
    assert log.forward()
    os.close(write)
    assert not log.forward()
    log.close()


@pytest.mark.parametrize("stream", [None, "closed"])
def test_without_a_standard_error_output_is_dropped(pipe, monkeypatch, tmp_path, stream):
    log, write = pipe
    if stream:
        stream = (tmp_path / "log").open("w")
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    os.write(write, b"line\n")
    assert log.forward()
    log.close()
