"""The table: which check shows which feature through which client."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from conformance.servers import Server

Body = Callable[[Server], None]


class Check(NamedTuple):
    """Passes by returning. ``needs`` names what must be installed apart, "" for nothing."""

    feature: str
    client: str
    run: Body
    needs: str = ""


CHECKS: list[Check] = []


def check(feature: str, client: str, needs: str = "") -> Callable[[Body], Body]:
    """Registers a check of one feature through one client."""

    def register(body: Body) -> Body:
        CHECKS.append(Check(feature, client, body, needs))
        return body

    return register
