"""One event, one line, and never a payload."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from headrace.errors import InferenceFailed, InvalidRequest
from headrace.telemetry import logs

SECRET = "the patient's name"


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    loggers = [logging.getLogger(logs.ROOT), logging.getLogger(logs.ACCESS)]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tell(event: str, **fields: object) -> None:
    logging.getLogger("headrace.x").info(event, extra={"fields": fields})


def logged(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    tell("model ready", model="m", seconds=1.235)
    (line,) = logged(stream)
    assert line["time"].endswith("+00:00")  # type: ignore[attr-defined]  # a str, as JSON says
    del line["time"]
    assert line == {
        "level": "info",
        "logger": "headrace.x",
        "event": "model ready",
        "model": "m",
        "seconds": 1.235,
    }


def test_a_line_is_a_sentence_on_a_terminal() -> None:
    stream = Terminal()
    logs.configure(stream=stream)
    tell("model unloaded", model="a model", version="")
    assert stream.getvalue().endswith("info    model unloaded model='a model' version=''\n")


@pytest.mark.parametrize(("format_", "is_json"), [("json", True), ("text", False)])
def test_the_format_can_be_said(format_: logs.LogFormat, is_json: bool) -> None:
    stream = Terminal() if is_json else io.StringIO()
    logs.configure(format=format_, stream=stream)
    tell("model ready")
    assert stream.getvalue().startswith("{") is is_json


def test_configuring_again_does_not_double_the_lines() -> None:
    stream = io.StringIO()
    logs.configure(stream=io.StringIO())
    logs.configure(stream=stream)
    tell("model ready")
    assert len(logged(stream)) == 1


def test_the_callers_error_is_told_without_its_words() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, level="debug")
    error = InvalidRequest(f"{SECRET!r} is not a number", code="wrong_data")
    logs.log_failure(error, request_id="r1", model="m")
    (line,) = logged(stream)
    assert SECRET not in stream.getvalue()
    assert (line["code"], line["request_id"], line["model"]) == ("wrong_data", "r1", "m")


def test_the_callers_errors_are_no_news() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    logs.log_failure(InvalidRequest("wrong"))
    assert stream.getvalue() == ""


def test_a_models_failure_has_its_message_cut_to_a_bound() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    logs.log_failure(InferenceFailed("x" * 10_000), request_id="r1")
    (line,) = logged(stream)
    assert line["level"] == "error"
    assert line["error"] == "x" * logs.MAX_TEXT


def test_the_unforeseen_has_its_traceback() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    try:
        raise KeyError("k")
    except KeyError as error:
        logs.log_failure(error)
    (line,) = logged(stream)
    assert line["error"] == "KeyError: 'k'"
    assert "test_logs.py" in str(line["traceback"])


def test_the_access_log_is_off_unless_asked_for() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    assert logs.access_log() is None
    logs.configure(stream=stream, access=True)
    access = logs.access_log()
    assert access is not None
    access.info("request", extra={"fields": {"status": 200}})
    assert logged(stream)[0]["status"] == 200


def test_fields_that_are_no_json_are_shown_as_text() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    logging.getLogger("headrace.x").warning("odd", extra={"fields": {"what": ValueError("v")}})
    assert logged(stream)[0]["what"] == "v"
