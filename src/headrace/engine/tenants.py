"""Names of tenants as requests say them <-> the numbers by which the core knows them.

Law: memory follows the configuration and not what callers say. Names that are listed have a
number for good. Of the others each has one of its own only where the configuration gives terms to
``"*"``, and then the least recently seen are forgotten; without ``"*"`` they share one, so that
nobody gains a place by inventing names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from headrace.config import TenantConfig
from headrace.core.events import Event, TenantsChanged, TenantTerms

ANYBODY = "*"

_SHARED = 1
"""The number of all who are not listed, where they share one."""

SEEN_MAX = 16_384
"""Unlisted names that have a number at one time. One that is forgotten and comes back begins
like a new one, which costs it nothing but the credit it never had."""


class Tenants:
    """One for an engine.

    Args:
        terms: by name, from the configuration; empty: tenants are not told apart.
    """

    def __init__(self, terms: Mapping[str, TenantConfig]) -> None:
        self._listed = {
            name: number
            for number, name in enumerate((n for n in terms if n != ANYBODY), _SHARED + 1)
        }
        self._terms = terms
        self._seen: OrderedDict[str, int] | None = OrderedDict() if ANYBODY in terms else None
        self._next = _SHARED + 1 + len(self._listed)
        self.enabled = bool(terms)

    def number(self, name: str) -> int:
        """The core's number for a request that says ``name``; "" is a tenant that says none."""
        if not self.enabled:
            return 0
        number = self._listed.get(name)
        if number is not None:
            return number
        if self._seen is None or not name:
            return _SHARED
        number = self._seen.get(name)
        if number is None:
            number = self._seen[name] = self._next
            self._next += 1
            if len(self._seen) > SEEN_MAX:
                self._seen.popitem(last=False)
        else:
            self._seen.move_to_end(name)
        return number

    def label(self, name: str) -> str:
        """The name under which it is counted: its own only if it is listed."""
        return name if name in self._listed else ""

    def tell(self, drive: Callable[[Event], None]) -> None:
        """Tells the core of the terms, if there are any."""
        if self.enabled:
            drive(self.event())

    def event(self) -> TenantsChanged:
        """What the core is told at the start, if they are enabled."""
        return TenantsChanged(
            {number: _terms(self._terms[name]) for name, number in self._listed.items()},
            _terms(self._terms[ANYBODY]) if ANYBODY in self._terms else TenantTerms(),
        )


def _terms(config: TenantConfig) -> TenantTerms:
    return TenantTerms(config.share, config.priority_max)
