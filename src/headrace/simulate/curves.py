"""What a batch costs: given as a formula, or as it was learnt by a server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec

from headrace.core.events import LearntCost
from headrace.core.latency import LatencyModel
from headrace.errors import ConfigError

MS = 1e6

_FORMULA = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:\+\s*(\d+(?:\.\d+)?)?\s*\*?\s*([bt]))?\s*")


class Curve(msgspec.Struct, frozen=True):
    """Nanoseconds of a batch: ``fixed_ns + unit_ns x units`` (rows, or padded tokens)."""

    fixed_ns: float
    unit_ns: float
    tokens: bool = False

    def ns(self, units: float) -> float:
        """Of a batch of ``units``."""
        return self.fixed_ns + self.unit_ns * units

    def seed(self, largest: int) -> LearntCost:
        """What measuring it at start-up would give."""
        sizes = sorted({1, max(2, largest)})
        return LearntCost(tuple([(float(size), self.ns(size)) for size in sizes]))


class Learnt(msgspec.Struct, frozen=True):
    """The curve that a server learnt."""

    cost: LearntCost
    tokens: bool = False

    def ns(self, units: float) -> float:
        """Of a batch of ``units``."""
        return LatencyModel(self.cost).on_curve(units)

    def seed(self, _largest: int) -> LearntCost:
        """It is known already."""
        return self.cost


def read_curve(text: str) -> Curve | Learnt:
    """``"5+b"`` (5 ms and 1 ms a row), ``"8+0.2b"``, ``"3+0.01t"`` (a padded token), or a file.

    The file is one that a server keeps in ``CACHE/profiles``.

    Raises:
        ConfigError: it is neither; says what was expected.
    """
    found = _FORMULA.fullmatch(text)
    if found is not None:
        each = float(found[2] or 1) if found[3] else 0.0
        if float(found[1]) + each <= 0:
            raise ConfigError(f"--cost {text}: a batch must cost something")
        return Curve(float(found[1]) * MS, each * MS, found[3] == "t")
    path = Path(text)
    try:
        stored = json.loads(path.read_bytes())
        profile = stored["profile"]
        (cost, *_) = msgspec.convert(profile["costs"], dict[str, LearntCost]).values()
    except OSError:
        raise ConfigError(
            f"--cost {text}: neither a formula nor a file",
            hint='a formula in milliseconds such as "5+b" (rows) or "3+0.01t" (padded tokens), or '
            "a file of the server's cache folder profiles",
        ) from None
    except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise ConfigError(f"--cost {text}: not a measured profile: {error}") from None
    return Learnt(cost, bool(profile.get("batch_tokens")))
