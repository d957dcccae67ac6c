"""How commands end: statuses, one line for an error, nothing of our inside."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import headrace
from headrace.cli import main as cli
from headrace.errors import ConfigError, HeadraceError, ModelLoadError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a command of the test's own where ``doctor`` is."""

    def install(run: Callable[[argparse.Namespace], int | None]) -> None:
        def add_parser(subparsers: Any) -> None:
            parser = subparsers.add_parser("doctor", help="of the test")
            parser.add_argument("--number", type=int, default=0)
            parser.set_defaults(func=run)

        module = ModuleType("headrace.cli.doctor")
        module.add_parser = add_parser  # type: ignore[attr-defined] # a module made by hand
        monkeypatch.setitem(sys.modules, "headrace.cli.doctor", module)

    monkeypatch.delenv("HEADRACE_DEBUG", raising=False)
    return install


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(_: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_the_status_is_what_the_command_says(
    command: Any, returned: int | None, status: int
) -> None:
    command(lambda _: returned)
    assert cli.main(["doctor"]) == status


def test_arguments_reach_the_command(command: Any) -> None:
    command(lambda args: args.number)
    assert cli.main(["doctor", "--number", "7"]) == 7


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("port is taken", hint="choose another"), 2),
        (ModelLoadError("the file is cut short", hint="fetch it again"), 1),
        (HeadraceError("odd"), 1),
    ],
)
def test_an_error_of_ours_is_one_line_and_a_hint(
    command: Any, capsys: pytest.CaptureFixture[str], error: HeadraceError, status: int
) -> None:
    command(raising(error))
    assert cli.main(["doctor"]) == status
    hint = f"hint: {error.hint}\n" if error.hint else ""
    assert capsys.readouterr().err == f"headrace: error: {error.message}\n{hint}"


def test_an_unexpected_error_is_short_and_says_how_to_see_more(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(ZeroDivisionError("by zero")))
    assert cli.main(["doctor"]) == 1
    told = capsys.readouterr().err
    assert told.splitlines()[0] == "headrace: error: unexpected ZeroDivisionError: by zero"
    assert "--debug" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("argv", [["--debug", "doctor"], ["doctor", "--debug"]])
@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), ConfigError("wrong")])
def test_debug_shows_the_traceback(
    command: Any, capsys: pytest.CaptureFixture[str], argv: list[str], error: Exception
) -> None:
    command(raising(error))
    assert cli.main(argv) != 0
    assert "Traceback" in capsys.readouterr().err


def test_debug_may_be_asked_for_by_the_environment(
    command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(raising(ZeroDivisionError("by zero")))
    monkeypatch.setenv("HEADRACE_DEBUG", "1")
    cli.main(["doctor"])
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_quiet(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(KeyboardInterrupt()))
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == ""


def test_a_broken_socket_is_not_mistaken_for_a_closed_output(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(BrokenPipeError(32, "Broken pipe")))
    assert cli.main(["doctor"]) == 1
    assert "unexpected BrokenPipeError" in capsys.readouterr().err


def test_whoever_reads_our_output_may_leave() -> None:
    """As in ``headrace ... | head``: the reader is gone before the first line."""
    script = (
        "import sys, types; import headrace.cli.main as cli\n"
        "module = types.ModuleType('headrace.cli.doctor')\n"
        "def run(_): sys.stdin.read(); print('x' * 1_000_000)\n"
        "module.add_parser = lambda s: s.add_parser('doctor').set_defaults(func=run)\n"
        "sys.modules['headrace.cli.doctor'] = module\n"
        "sys.exit(cli.main(['doctor']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


@pytest.mark.parametrize(
    "argv", [["turbine"], ["doctor", "--turbine"], ["doctor", "--number", "x"]]
)
def test_a_wrong_command_line_is_status_2(
    command: Any, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    command(lambda _: 0)
    assert cli.main(argv) == 2
    assert "error: " in capsys.readouterr().err


def test_nothing_asked_for_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "headrace" in capsys.readouterr().out


def test_every_file_that_is_a_command_is_listed() -> None:
    folder = Path(cli.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "def add_parser(" in path.read_text()}
    assert files == {cli._MODULES.get(name, name) for name in cli.COMMANDS}


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"    {name} " in shown


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"headrace {headrace.__version__}\n"


def test_the_module_runs_too() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "headrace", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"headrace {headrace.__version__}\n"
