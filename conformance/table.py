"""Feature x client -> pass, as a table in Markdown."""

from __future__ import annotations

import traceback
from contextlib import AbstractContextManager

from conformance import checks_other, checks_triton, environments, servers
from conformance.environments import Unavailable
from conformance.registry import CHECKS, Check
from conformance.servers import Server

_ = checks_triton, checks_other  # imported for the checks they register


def make(server_name: str = "headrace", only: str = "") -> tuple[str, list[str]]:
    """Runs every check against one server: the report, and the failures."""
    chosen = [c for c in CHECKS if only in c.feature or only in c.client]
    results: dict[tuple[str, str], str] = {}
    failures: list[str] = []
    with _server(server_name) as server:
        for check in chosen:
            key = (check.feature, check.client)
            try:
                check.run(server)
                results[key] = "pass"
            except Unavailable as reason:
                results[key] = "not here"
                failures.append(f"{check.feature} / {check.client}: skipped, {reason}")
            except Exception as error:  # noqa: BLE001 - one check must not hide the others
                results[key] = "FAIL"
                (where,) = traceback.extract_tb(error.__traceback__)[-1:]
                what = f"{type(error).__name__}: {error}".strip()
                place = f"{where.name}, line {where.lineno}"
                failures.append(f"{check.feature} / {check.client}: {what} ({place})")
    return _report(server_name, chosen, results, failures), [
        failure for failure in failures if ": skipped, " not in failure
    ]


def _server(name: str) -> AbstractContextManager[Server]:
    return servers.headrace() if name == "headrace" else servers.triton(environments.triton())


def _report(
    server: str, chosen: list[Check], results: dict[tuple[str, str], str], failures: list[str]
) -> str:
    clients = list(dict.fromkeys(check.client for check in chosen))
    features = list(dict.fromkeys(check.feature for check in chosen))
    passed = sum(result == "pass" for result in results.values())
    lines = [
        f"# Conformance of {server}: {passed} of {len(results)} checks pass",
        "",
        "`python -m conformance table`; a blank: the client has no call for it.",
        "",
        "| feature | " + " | ".join(clients) + " |",
        "|---|" + "---|" * len(clients),
    ]
    for feature in features:
        cells = [results.get((feature, client), "") for client in clients]
        lines.append(f"| {feature} | " + " | ".join(cells) + " |")
    if failures:
        lines += ["", "```", *failures, "```"]
    return "\n".join(lines)
