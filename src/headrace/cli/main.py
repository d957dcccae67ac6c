"""The command line's frame: which commands there are, and how they end.

====  ==================================================================
exit  meaning
====  ==================================================================
0     it worked
1     it did not, or it did and the answer is no (each command says which)
2     the command line or the configuration is wrong
130   interrupted by Ctrl-C
141   whoever read our output left (``headrace ... | head``)
====  ==================================================================

Every command is a file beside this one with ``add_parser(subparsers)``, which sets ``func``
to a callable that takes the parsed arguments and returns an exit status (None is 0). Only
the module of the command that was asked for is imported, and it imports what is heavy when
it runs, so that ``headrace --help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import select
import sys
import traceback
from collections.abc import Iterable, Sequence

import headrace
from headrace.errors import ConfigError, HeadraceError

COMMANDS = (
    "serve",
    "demo",
    "pull",
    "convert",
    "import",
    "models",
    "bench",
    "simulate",
    "replay",
    "explain",
    "doctor",
)

_MODULES = {"import": "import_model"}
"""Commands whose module cannot have their name."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_OUTPUT_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status; prints errors, raises none.

    Args:
        argv: the arguments without the program's name; default: ``sys.argv``.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = _wants_debug(argv)
    try:
        status = _run(argv)
        sys.stdout.flush()  # here, where a closed pipe can still be told from a crash
        return status
    except SystemExit as stop:  # argparse, after --help or a usage error
        return _status_of(stop)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except HeadraceError as error:
        _tell(error, debug=debug)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    except BrokenPipeError as error:
        if _stdout_is_closed():
            return EXIT_OUTPUT_CLOSED
        _tell(error, debug=debug)
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the last resort: a user is owed a sentence
        _tell(error, debug=debug)
        return EXIT_FAILED


def build_parser(commands: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of the whole command line, or of some commands only."""
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="The inference system around a model: serve it, measure it, see why.",
        epilog="`headrace COMMAND --help` tells more about each.",
    )
    parser.add_argument("--version", action="version", version=f"headrace {headrace.__version__}")
    _add_debug(parser)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in commands:
        module = importlib.import_module(f"headrace.cli.{_MODULES.get(name, name)}")
        module.add_parser(subparsers)
    for command in subparsers.choices.values():
        _add_debug(command, hidden=True)
    return parser


def _run(argv: Sequence[str]) -> int:
    if not argv:
        build_parser().print_help()
        return EXIT_USAGE
    os.umask(os.umask(0o077) | 0o022)  # whatever it was: no file of ours is for others to write
    first = next((word for word in argv if not word.startswith("-")), "")
    args = build_parser([first] if first in COMMANDS else COMMANDS).parse_args(argv)
    return args.func(args) or EXIT_OK


def _add_debug(parser: argparse.ArgumentParser, *, hidden: bool = False) -> None:
    about = argparse.SUPPRESS if hidden else "show the traceback of an error"
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=about)


def _wants_debug(argv: Sequence[str]) -> bool:
    """Read by hand, because the parser itself may be what fails."""
    return "--debug" in argv or os.environ.get("HEADRACE_DEBUG", "") not in {"", "0"}


def _tell(error: Exception, *, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, HeadraceError):
        message, hint = error.message, error.hint
    else:
        message = f"unexpected {type(error).__name__}: {error}"
        hint = "" if debug else "--debug (or HEADRACE_DEBUG=1) shows where it came from"
    print(f"headrace: error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def _status_of(stop: SystemExit) -> int:
    if isinstance(stop.code, str):  # sys.exit("message")
        print(stop.code, file=sys.stderr)
        return EXIT_FAILED
    return stop.code or EXIT_OK


def _stdout_is_closed() -> bool:
    """Whether it was our own output that broke, not a socket of the command."""
    try:
        fd = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file, or closed by us
        return False
    poll = select.poll()
    poll.register(fd, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    # What is still buffered would complain again when the interpreter ends.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, fd)
    os.close(devnull)
    return True
