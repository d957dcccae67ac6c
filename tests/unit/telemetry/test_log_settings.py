"""The logging extension: a log that changes while it is written."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ConfigError, InvalidRequest, Unsupported
from headrace.telemetry import logs
from headrace.telemetry.log_settings import LogControl

DEFAULT = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
LEVELS = ("debug", "info", "warning", "error")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger(logs.ROOT)
    before = root.handlers, root.level, root.propagate
    stream = io.StringIO()
    logs.configure(stream=stream, format="text", access=True)
    yield stream
    for handler in root.handlers:
        handler.close()
    root.handlers, root.propagate = before[0], before[2]
    root.setLevel(before[1])


def heard(stream: io.StringIO) -> set[str]:
    """Of which levels lines arrive."""
    stream.seek(0)
    stream.truncate()
    log = logging.getLogger("headrace.test")
    for level in LEVELS:
        getattr(log, level)("a %s line", level)
    return {level for level in LEVELS if f"a {level} line" in stream.getvalue()}


def test_a_log_begins_with_tritons_defaults(stream: io.StringIO) -> None:
    assert LogControl().body() == DEFAULT
    assert heard(stream) == {"info", "warning", "error"}


def test_the_settings_tell_how_the_server_was_started(stream: io.StringIO) -> None:
    logs.configure(stream=stream, level="error")
    body = LogControl().body()
    assert (body["log_info"], body["log_warning"], body["log_error"]) == (False, False, True)
    logs.configure(stream=stream, level="debug")
    assert LogControl().body()["log_verbose_level"] == 1


@pytest.mark.parametrize(
    ("update", "levels"),
    [
        ({"log_info": False}, {"warning", "error"}),
        ({"log_warning": False}, {"info", "error"}),
        ({"log_error": False}, {"info", "warning"}),
        ({"log_verbose_level": 2}, set(LEVELS)),
        ({"log_info": False, "log_verbose_level": 1}, {"debug", "warning", "error"}),
        ({"log_info": False, "log_warning": False, "log_error": False}, set()),
    ],
)
def test_each_level_has_its_switch(
    stream: io.StringIO, update: dict[str, Any], levels: set[str]
) -> None:
    control = LogControl()
    control.update(update)
    assert heard(stream) == levels
    assert control.body() == {**DEFAULT, **update}
    control.update(dict.fromkeys(update))  # null: as it was
    assert heard(stream) == {"info", "warning", "error"}
    assert control.body() == DEFAULT


def test_what_a_server_was_started_with_can_be_turned_up(stream: io.StringIO) -> None:
    logs.configure(stream=stream, level="error", format="text")
    control = LogControl()
    control.update({"log_info": True})
    assert heard(stream) == {"info", "error"}


def test_the_access_log_is_not_touched(stream: io.StringIO) -> None:
    LogControl().update({"log_info": False})
    logging.getLogger(logs.ACCESS).info("a request")
    assert "a request" in stream.getvalue()


def test_lines_for_people_can_have_a_date(stream: io.StringIO) -> None:
    control = LogControl()
    control.update({"log_format": "ISO8601"})
    heard(stream)
    first = stream.getvalue().split()[0]
    assert len(first) == len("2026-01-01T00:00:00.000Z")
    assert first.endswith("Z")
    control.update({"log_format": "default"})
    heard(stream)
    assert len(stream.getvalue().split()[0]) == len("00:00:00.000")


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"log_info": "yes"}, "expect boolean for 'log_info'"),
        ({"log_verbose_level": -1}, "expect unsigned integer for 'log_verbose_level'"),
        ({"log_verbose_level": True}, "expect unsigned integer"),
        ({"log_format": "xml"}, "invalid argument for log_format, got: xml"),
        ({"log_colour": 1}, "unknown log setting 'log_colour'"),
    ],
)
def test_a_wrong_setting_changes_nothing(
    stream: io.StringIO, update: dict[str, Any], text: str
) -> None:
    control = LogControl()
    with pytest.raises(InvalidRequest) as caught:
        control.update({"log_error": False, **update})
    assert text in caught.value.message
    assert control.body() == DEFAULT
    assert heard(stream) == {"info", "warning", "error"}


def test_where_the_log_goes_is_not_for_a_caller_to_say(stream: io.StringIO) -> None:
    with pytest.raises(Unsupported, match="can not be updated through network protocol"):
        LogControl().update({"log_file": "/etc/passwd"})


def test_a_log_in_a_file(stream: io.StringIO, tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    logs.log_to(str(file))
    control = LogControl(str(file))
    assert control.body()["log_file"] == str(file)
    assert heard(stream) == set()
    assert "a warning line" in file.read_text()


def test_a_file_that_cannot_be_written_is_a_mistake_of_the_configuration(
    stream: io.StringIO, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        logs.log_to(str(tmp_path / "nowhere" / "server.log"))
