"""``headrace doctor``: what this machine and this installation can do, and what holds them back."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.cli.checkup import Finding

_EPILOG = """\
exit codes: 0 nothing essential is broken (there may be warnings); 1 something is

examples:
  headrace doctor
  headrace doctor --json | jq '.machine.usable_cores'
"""

_LABEL_WIDTH = 14


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="examine this machine and this installation",
        description="CPU, memory, limits, accelerators, runtimes, what each missing extra needs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="the facts and findings as JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    import msgspec

    from headrace.cli.checkup import examine, judge

    facts = examine()
    findings = judge(facts)
    if args.json:
        print(json.dumps({**facts, "findings": msgspec.to_builtins(findings)}, indent=2))
    else:
        for line in report(facts, findings):
            print(line)
    return 1 if any(finding.level == "broken" for finding in findings) else 0


def report(facts: Mapping[str, Any], findings: Sequence[Finding]) -> Iterator[str]:
    """The facts and findings for a person, line by line."""
    told = facts["machine"]
    yield f"headrace {facts['headrace']}, Python {told['python']}, {told['system']}"
    for title, rows in (
        ("machine", _machine_rows(facts)),
        ("runtimes", _runtime_rows(facts)),
        ("installed", _package_rows(facts)),
    ):
        yield f"\n{title}"
        for label, text in rows:
            yield f"  {label:<{_LABEL_WIDTH}} {text}"
    yield ""
    width = max(40, shutil.get_terminal_size((100, 24)).columns - 2)
    for finding in findings:
        yield textwrap.fill(f"{finding.level}: {finding.what}", width, subsequent_indent="  ")
        yield textwrap.fill(finding.advice, width, initial_indent="  ", subsequent_indent="  ")
    if not findings:
        yield "nothing stands in the way"


def _machine_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from headrace.cli.checkup import instructions

    told, limits, cache = facts["machine"], facts["limits"], facts["cache"]
    yield "processor", f"{told['cpu']} ({told['architecture']})"
    if known := instructions(told):
        yield (
            "instructions",
            ", ".join(name if has else f"no {name}" for name, has in known.items()),
        )
    quota = "no quota" if told["cpu_quota"] is None else f"quota of {told['cpu_quota']:g}"
    affinity = f"{told['affinity_cores']} of {told['logical_cpus']} by affinity"
    yield "cores", f"{told['usable_cores']} usable: {affinity}, {quota}"
    limited = "" if told["memory_limit_bytes"] is None else " (limit of the control group)"
    yield "memory", _gib(told["memory_bytes"]) + limited
    accelerators = facts["accelerators"]
    for found in accelerators:
        parts = (
            found["name"],
            found.get("memory"),
            found.get("driver") and f"driver {found['driver']}",
        )
        yield "accelerator", ", ".join(part for part in parts if part)
    if not accelerators:
        yield "accelerators", "none found"
    yield "open files", "no limit" if limits["open_files"] < 0 else f"{limits['open_files']:,}"
    yield "shared ports", "yes (--workers N)" if limits["shared_port"] else "no"
    if "error" not in cache:
        yield "cache", f"{cache['folder']}, {_gib(cache['free_bytes'])} free"


def _runtime_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for found in facts["runtimes"]:
        formats = f"runs {', '.join(found['formats'])}" if found["formats"] else "a plug-in"
        state = found["version"] if found["installed"] else f"not installed: {found['needs']}"
        yield found["name"], f"{state} ({formats})" if state else formats


def _package_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for package, found in facts["packages"].items():
        yield package, found["error"] or found["version"]
    for extra, missing in facts["extras"].items():
        lacking = f"pip install 'headrace[{extra}]' (missing: {', '.join(missing)})"
        yield f"[{extra}]", lacking if missing else "complete"
    for tool, path in facts["tools"].items():
        yield tool, path or "not found"


def _gib(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB" if count else "unknown"
