"""``headrace models``: what a running server has, which version answers, what became of each."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from headrace.cli.running_server import ask, no_server
from headrace.errors import ModelError
from headrace.units import size_text

_TIMEOUT_S = 600.0
"""Loading a model may take minutes; the server answers when it is done."""

_EPILOG = """\
examples:
  headrace models list                          every version: state, size, use
  headrace models load sentiment                (re)load what the repository has now
  headrace models promote sentiment 4           version 4 answers where none is asked for
  headrace models promote sentiment 5 --alias canary
  headrace models rollback sentiment            back to what answered before
  headrace models pin sentiment                 never leaves memory to make room
  headrace models history sentiment             what happened, when, how long it took
"""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "models",
        help="list, load, unload, promote, roll back and pin the models of a running server",
        description="Asks a running server about its models, and tells it what to do with them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(
        name: str, run: Callable[[argparse.Namespace], int], about: str, model: bool = True
    ) -> Any:
        one = actions.add_parser(name, help=about, description=about.capitalize() + ".")
        if model:
            one.add_argument("model", help="name of the model")
        one.add_argument("--url", default="http://127.0.0.1:8000", help="of the server")
        one.add_argument("--json", action="store_true", help="as the server says it")
        one.set_defaults(func=run)
        return one

    action("list", _list, "every version: state, aliases, memory, use", model=False)
    action("load", _load, "load what the repository has, or load it again")
    action("unload", _unload, "unload every version")
    promote = action("promote", _promote, "let an alias stand for a version")
    promote.add_argument("version", help='a number, or "latest" to follow the highest again')
    promote.add_argument(
        "--alias",
        default="stable",
        help="default: stable, which answers where no version is asked for",
    )
    rollback = action("rollback", _rollback, "go back to what answered before")
    rollback.add_argument("--alias", default="stable", help="default: stable")
    pin = action("pin", _pin, "keep a model in memory")
    pin.add_argument("--off", action="store_true", help="it may leave again")
    action("history", _history, "what became of a model, oldest first")


def _list(args: argparse.Namespace) -> int:
    lines = _get(args.url, "/v2/repository/models")
    if args.json:
        return _as_json(lines)
    rows = [("MODEL", "VERSION", "STATE", "ALIASES", "MEMORY", "REQUESTS", "IDLE", "RUNS IN", "")]
    for line in lines:
        there = "size_bytes" in line
        marks = [*line["aliases"], *(["(answers)"] if line["default"] else [])]
        rows.append(
            (
                line["name"],
                line["version"],
                "ABSENT" if line["absent"] else line["state"],
                " ".join(marks),
                size_text(line["size_bytes"]) if there and line["size_bytes"] else "",
                f"{line['requests']:,}" if there else "",
                _span(line["idle_s"]) if there else "",
                f"{line['runtime']}{', process' if line['processes'] else ''}" if there else "",
                _remark(line),
            )
        )
    _table(rows)
    return 0


def _remark(line: dict[str, Any]) -> str:
    if line["absent"]:
        return f"{line['waiting']} wait for it" if line["waiting"] else "loaded when asked for"
    if line.get("standby"):
        return "stands by for a rollback"
    if line.get("pinned"):
        return "pinned"
    return str(line["reason"])


def _load(args: argparse.Namespace) -> int:
    return _told(args, _post(args.url, args.model, "load"), f"{args.model} is loaded")


def _unload(args: argparse.Namespace) -> int:
    return _told(args, _post(args.url, args.model, "unload"), f"{args.model} is unloaded")


def _promote(args: argparse.Namespace) -> int:
    body = {"version": args.version, "alias": args.alias}
    said = _post(args.url, args.model, "promote", body)
    return _told(args, said, _aliases(args.model, said))


def _rollback(args: argparse.Namespace) -> int:
    said = _post(args.url, args.model, "rollback", {"alias": args.alias})
    return _told(args, said, _aliases(args.model, said))


def _aliases(model: str, said: dict[str, Any]) -> str:
    pairs = sorted(said["aliases"].items())
    if not pairs:
        return f"{model} answers from its highest version"
    told = ", ".join(f'{alias} = "{version}"' for alias, version in pairs)
    return (
        f"{model}: {told}\n"
        f"until the server ends; to keep it: aliases = {{ {told} }} in its model.toml"
    )


def _pin(args: argparse.Namespace) -> int:
    said = _post(args.url, args.model, "pin", {"pinned": not args.off})
    what = "stays in memory" if said["pinned"] else "may leave memory"
    return _told(args, said, f"{args.model} {what}")


def _history(args: argparse.Namespace) -> int:
    lines = _get(args.url, f"/v2/models/{quote(args.model, safe='')}/history")
    if args.json:
        return _as_json(lines)
    rows = [("TIME", "VERSION", "COPY", "EVENT", "STATE", "BEFORE THAT", "")]
    for line in lines:
        when = dt.datetime.fromtimestamp(line["at"]).astimezone()
        event = line["phase"] if line["event"] == "step" else line["event"]
        rows.append(
            (
                f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03}",
                line["version"],
                f"#{line['copy']}",
                event,
                line["state"],
                _span(line["lasted_s"]) if line["lasted_s"] else "",
                line["reason"],
            )
        )
    _table(rows)
    return 0


# -- talking to the server ---------------------------------------------------------------------


def _get(url: str, path: str) -> Any:
    return _read(url, ask(url, path, refusal=ModelError, timeout_s=_TIMEOUT_S))


def _post(url: str, model: str, what: str, body: dict[str, Any] | None = None) -> Any:
    path = f"/v2/repository/models/{quote(model, safe='')}/{what}"
    data = json.dumps(body or {}).encode()
    return _read(url, ask(url, path, refusal=ModelError, timeout_s=_TIMEOUT_S, body=data))


def _read(url: str, answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError as error:
        raise no_server(url, error) from None


# -- telling it --------------------------------------------------------------------------------


def _told(args: argparse.Namespace, said: Any, text: str) -> int:
    if args.json:
        return _as_json(said)
    print(text)
    return 0


def _as_json(value: Any) -> int:
    print(json.dumps(value, indent=2))
    return 0


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    for line in table(rows):
        print(line)


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as their widest cell; the last one as long as it is."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()


def _span(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
