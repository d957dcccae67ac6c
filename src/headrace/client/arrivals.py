"""When requests are due: a pure function of a process, a bound and a seed.

Every process is drawn in chunks of fixed size from a generator that belongs to it alone,
so a schedule is reproduced exactly by its seed, and a longer run begins with the schedule
of a shorter one.

============  ===========================================================================
constant      a request every 1/rate seconds
poisson       exponential gaps: independent callers (MLPerf's server scenario)
bursty        Gamma gaps with squared coefficient of variation ``burst_scv``: > 1 comes in
              clumps, < 1 is more even than chance (the renewal process of BurstGPT,
              arXiv:2401.17644, and of Fu et al., arXiv:2401.09670)
on-off        Poisson arrivals in phases of exponential length, silence between them (an
              interrupted Poisson process, Kuczura 1973)
recorded      timestamps of a file; see ``recording.py``
============  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.client.recording import read_recording
from headrace.client.spec import DEFAULT_DURATION_S, MAX_REQUESTS, ArrivalSpec
from headrace.errors import ConfigError

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_CHUNK = 16_384
_SECOND_NS = 1e9

# Children of the seed: changing one kind of chance must not shift another.
_GAPS, _PHASES = 0, 1


class Schedule(msgspec.Struct, frozen=True):
    """Offsets from the start of the run, in nanoseconds, ascending; at least one.

    ``horizon_ns`` is the time the schedule covers: ``len(offsets_ns) / horizon`` is the
    offered rate. ``lengths``: of a recording that has them, one for each request.
    """

    offsets_ns: Int64s
    horizon_ns: int
    lengths: Int64s | None = None


def make_schedule(
    spec: ArrivalSpec, *, duration_s: float | None, requests: int | None, seed: int
) -> Schedule:
    """Draws the whole schedule of a run.

    ``duration_s`` and ``requests`` bound it, whichever comes first; with neither, it lasts
    ``DEFAULT_DURATION_S`` (a recording: to its end).

    Raises:
        ConfigError: the schedule would be empty or too long, or the recording is unusable.
    """
    if spec.process == "recorded":
        schedule = _recorded(spec, duration_s, requests)
    else:
        if duration_s is None and requests is None:
            duration_s = DEFAULT_DURATION_S
        schedule = _drawn(spec, duration_s, requests, seed)
    if not len(schedule.offsets_ns):
        raise ConfigError(
            "no request falls into this run", hint="raise --duration or --rate, or use --requests"
        )
    return schedule


def _drawn(
    spec: ArrivalSpec, duration_s: float | None, requests: int | None, seed: int
) -> Schedule:
    if spec.rate is None:
        raise ConfigError(f"{spec.process} arrivals need a rate", hint="--rate 200")
    times_s = _take(_PROCESSES[spec.process](spec, spec.rate, seed), duration_s, requests)
    offsets = (times_s * _SECOND_NS).astype(np.int64)
    if duration_s is not None and (requests is None or len(offsets) < requests):
        horizon_s = duration_s
    else:  # ended by count: the last request is followed by one mean gap
        horizon_s = float(times_s[-1]) + 1 / spec.rate
    return Schedule(offsets, int(horizon_s * _SECOND_NS))


def _take(chunks: Iterator[Floats], duration_s: float | None, requests: int | None) -> Floats:
    """The first arrivals before ``duration_s``, at most ``requests`` of them, in seconds."""
    taken: list[Floats] = []
    count, limit = 0, requests or MAX_REQUESTS + 1
    for chunk in chunks:
        kept = chunk if duration_s is None else chunk[chunk < duration_s]
        taken.append(kept[: limit - count])
        count += len(taken[-1])
        if count >= limit or len(kept) < len(chunk):
            break
    if count > MAX_REQUESTS:
        raise ConfigError(
            f"the schedule has more than {MAX_REQUESTS:,} requests, the most one run may have",
            hint="lower --duration or --rate, or end the run with --requests",
        )
    return np.concatenate(taken)


def _generator(seed: int, child: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(child,))))


def _cumulated(draw: Callable[[], Floats]) -> Iterator[Floats]:
    """Gaps, chunk by chunk, to moments."""
    start = 0.0
    while True:
        moments = start + np.cumsum(draw())
        start = float(moments[-1])
        yield moments


def _constant(spec: ArrivalSpec, rate: float, seed: int) -> Iterator[Floats]:
    del spec, seed  # nothing to draw
    first = 0
    while True:
        # Multiplied, not added up: the millionth request is as exact as the first.
        yield np.arange(first, first + _CHUNK) / rate
        first += _CHUNK


def _poisson(spec: ArrivalSpec, rate: float, seed: int) -> Iterator[Floats]:
    del spec
    random = _generator(seed, _GAPS)
    return _cumulated(lambda: random.exponential(1 / rate, _CHUNK))


def _bursty(spec: ArrivalSpec, rate: float, seed: int) -> Iterator[Floats]:
    # Gamma(shape k, scale s): mean k*s = 1/rate, squared coefficient of variation 1/k.
    random, scv = _generator(seed, _GAPS), spec.burst_scv
    return _cumulated(lambda: random.gamma(1 / scv, scv / rate, _CHUNK))


def _on_off(spec: ArrivalSpec, rate: float, seed: int) -> Iterator[Floats]:
    """Poisson arrivals on a clock that runs only in the on phases, mapped to the wall clock."""
    phases = _phases(spec, seed)
    # starts[i]: phase i on the stopping clock; silence[i]: all off time before it.
    starts, silence, end_on, end_off = np.empty(0), np.empty(0), 0.0, 0.0
    share_on = spec.on_s / (spec.on_s + spec.off_s)
    for times_on in _poisson(spec, rate / share_on, seed):
        new_starts, new_silence = [starts], [silence]
        while end_on <= times_on[-1]:
            on, off = next(phases)
            new_starts.append(end_on + np.cumsum(on) - on)
            new_silence.append(end_off + np.cumsum(off) - off)
            end_on, end_off = end_on + float(on.sum()), end_off + float(off.sum())
        starts, silence = np.concatenate(new_starts), np.concatenate(new_silence)
        phase = np.searchsorted(starts, times_on, side="right") - 1
        yield times_on + silence[phase]
        starts, silence = starts[phase[-1] :], silence[phase[-1] :]


def _phases(spec: ArrivalSpec, seed: int) -> Iterator[tuple[Floats, Floats]]:
    """Lengths of on and off phases, a chunk at a time."""
    random = _generator(seed, _PHASES)
    while True:
        yield random.exponential(spec.on_s, 1024), random.exponential(spec.off_s, 1024)


_PROCESSES: dict[str, Callable[[ArrivalSpec, float, int], Iterator[Floats]]] = {
    "constant": _constant,
    "poisson": _poisson,
    "bursty": _bursty,
    "on-off": _on_off,
}


def _recorded(spec: ArrivalSpec, duration_s: float | None, requests: int | None) -> Schedule:
    recording = read_recording(Path(spec.recording))
    offsets, lengths = recording.offsets_ns, recording.lengths
    # n timestamps span n - 1 gaps; the last request is followed by one mean gap.
    span_ns = float(offsets[-1]) * len(offsets) / max(1, len(offsets) - 1)
    if spec.rate is not None:
        if span_ns == 0:
            raise ConfigError(
                "a recording with a single moment cannot be scaled to a rate",
                hint="leave --rate out",
            )
        wanted_ns = len(offsets) / spec.rate * _SECOND_NS
        offsets = (offsets * (wanted_ns / span_ns)).astype(np.int64)
        span_ns = wanted_ns
    count = len(offsets) if requests is None else min(requests, len(offsets))
    horizon_ns = span_ns * count / len(offsets)
    if duration_s is not None and duration_s * _SECOND_NS < offsets[count - 1]:
        horizon_ns = duration_s * _SECOND_NS
        count = int(np.searchsorted(offsets, horizon_ns))
    return Schedule(
        offsets[:count], max(1, int(horizon_ns)), None if lengths is None else lengths[:count]
    )
