"""What ``headrace bench`` was asked to do: scenarios, their defaults, and every limit.

The scenarios carry the names and headline metrics of MLPerf Inference
(https://github.com/mlcommons/inference_policies, "Scenarios"). The run lengths do not: an
official MLPerf run takes ten minutes, a question at a prompt should take ten seconds. Ask
for ``--duration 600`` to match.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from headrace.errors import ConfigError

ScenarioName = Literal["single-stream", "multi-stream", "server", "offline", "closed"]
ArrivalName = Literal["poisson", "bursty", "on-off", "constant", "recorded"]
WireName = Literal["json", "binary", "openai"]

MAX_REQUESTS = 5_000_000
"""Requests of one run. Their raw samples are kept, 26 bytes each: 130 MB at the most."""

MAX_DURATION_S = 86_400.0
"""A day; a soak test that runs for longer is several runs."""

MAX_CONNECTIONS = 10_000
"""Sockets of the closed loop: what one server process accepts by default."""

DEFAULT_DURATION_S = 10.0
"""Long enough for 2,000 requests at 200/s, which is what a p99 with some meaning needs."""

DEFAULT_SWEEP_DURATION_S = 5.0
"""Each point of a sweep; a sweep of eight points is done in under a minute."""

Seconds = Annotated[float, Meta(gt=0, le=MAX_DURATION_S)]
Rate = Annotated[float, Meta(gt=0, le=1_000_000)]
Count = Annotated[int, Meta(ge=1, le=MAX_REQUESTS)]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """How load is put on, and which figure is the headline.

    ``percentile`` is the one held against the SLO. ``connections`` and ``samples`` are the
    defaults of the closed loops; ``samples`` is the number of rows (or texts) of one query.
    """

    name: str
    open_loop: bool
    percentile: float
    connections: int = 1
    samples: int = 1


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        # One query at a time, the next when the last is answered: p90 latency.
        Scenario(name="single-stream", open_loop=False, percentile=90.0),
        # The same with eight samples a query: p99 latency of the query.
        Scenario(name="multi-stream", open_loop=False, percentile=99.0, samples=8),
        # Queries arrive whether or not earlier ones were answered: rate at which p99 holds.
        Scenario(name="server", open_loop=True, percentile=99.0),
        # All the work is there at once: throughput. 128 in flight is more than any batch.
        Scenario(name="offline", open_loop=False, percentile=99.0, connections=128),
        # N callers that wait for their answers; not an MLPerf scenario, but what most tools do.
        Scenario(name="closed", open_loop=False, percentile=99.0, connections=16),
    )
}


class Lengths(msgspec.Struct, frozen=True):
    """A log-normal mix of lengths: words of a text, or the size of a tensor's free axes.

    The median length is ``median``; ``sigma`` is the standard deviation of its logarithm;
    longer ones are cut to ``maximum``. Prompts and sentences people send are close to
    log-normal in length; the default is a sentence of 12 words where one in a hundred
    has more than 60.
    """

    median: Annotated[float, Meta(ge=1, le=100_000)] = 12.0
    sigma: Annotated[float, Meta(ge=0, le=4)] = 0.7
    maximum: Annotated[int, Meta(ge=1, le=1_000_000)] = 256


class PayloadSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What requests carry.

    Attributes:
        wire: V2 ``json``, V2 with the ``binary`` tensor extension, or ``openai`` embeddings.
        input_file: a JSON body, or JSONL with a body a line; "" = generated from metadata.
        shapes: by input name, the whole shape of that input.
        ranges: by input name, smallest and largest value (both inclusive for integers).
        lengths: None = log-normal for texts, 16 for the free axes of tensors.
        distinct: number of different bodies that are made beforehand and taken at random.
        samples: rows (or texts) of one query; None = the scenario's.
    """

    wire: WireName = "json"
    input_file: str = ""
    shapes: dict[str, tuple[Annotated[int, Meta(ge=0)], ...]] = {}
    ranges: dict[str, tuple[float, float]] = {}
    lengths: Lengths | None = None
    distinct: Annotated[int, Meta(ge=1, le=100_000)] = 256
    samples: Annotated[int, Meta(ge=1, le=65_536)] | None = None


class ArrivalSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When requests of the open loop are due; see ``arrivals.py`` for the processes.

    Attributes:
        rate: mean requests per second; None only for ``recorded`` (its own pace).
        burst_scv: squared coefficient of variation of the gaps of ``bursty``; 1 is Poisson.
        on_s, off_s: mean lengths of the phases of ``on-off``.
        recording: CSV or JSONL file of timestamps, for ``recorded``.
    """

    process: ArrivalName = "poisson"
    rate: Rate | None = None
    burst_scv: Annotated[float, Meta(gt=0, le=10_000)] = 4.0
    on_s: Seconds = 0.5
    off_s: Seconds = 0.5
    recording: str = ""


class BenchSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run against one model.

    Attributes:
        url: ``http://host:port[/prefix]``; only loopback unless ``allow_remote``.
        connections: of the closed loops; None = the scenario's.
        duration_s, requests: whichever is reached first ends the run; neither given means
            ``DEFAULT_DURATION_S`` (a recording: to its end).
        warmup_s: closed-loop load before the run, which is not counted.
        slo_ms: what the scenario's percentile is held against; also the bound for goodput.
        max_outstanding: sent and unanswered requests of the open loop. Above it a request
            is not sent and counts as failed. 4096 connections fit into the file
            descriptors most systems grant.
        timeout_s: a request unanswered for so long has failed; nobody waits longer.
        headers: sent with every request, for example an authorisation.
        pid: the server's process, for its CPU time; None = found by its listening socket.
    """

    url: str
    model: str
    model_version: str = ""
    scenario: ScenarioName = "single-stream"
    arrivals: ArrivalSpec = ArrivalSpec()
    payload: PayloadSpec = PayloadSpec()
    connections: Annotated[int, Meta(ge=1, le=MAX_CONNECTIONS)] | None = None
    duration_s: Seconds | None = None
    requests: Count | None = None
    warmup_s: Annotated[float, Meta(ge=0, le=3600)] = 0.5
    slo_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None
    seed: Annotated[int, Meta(ge=0)] = 0
    max_outstanding: Annotated[int, Meta(ge=1, le=MAX_CONNECTIONS)] = 4096
    timeout_s: Seconds = 10.0
    headers: tuple[tuple[str, str], ...] = ()
    allow_remote: bool = False
    ca_file: str = ""
    pid: Annotated[int, Meta(ge=1)] | None = None


def scenario_of(spec: BenchSpec) -> Scenario:
    """The scenario with this spec's own connections and samples filled in."""
    scenario = SCENARIOS[spec.scenario]
    return msgspec.structs.replace(
        scenario,
        connections=spec.connections or scenario.connections,
        samples=spec.payload.samples or scenario.samples,
    )


def check_spec(spec: BenchSpec) -> None:
    """Refuses combinations that would measure something other than what was asked.

    Raises:
        ConfigError: two options contradict each other, or one lacks another.
    """
    if SCENARIOS[spec.scenario].open_loop:
        _check_open(spec)
    else:
        _check_closed(spec)
    if spec.payload.wire == "openai" and spec.payload.shapes:
        raise ConfigError("--shape belongs to tensors; /v1/embeddings takes texts")


def _check_open(spec: BenchSpec) -> None:
    arrivals = spec.arrivals
    if spec.connections is not None:
        raise ConfigError(
            "--connections belongs to the closed loops; the server scenario opens as many "
            "as its requests need",
            hint="use --scenario closed, or bound the open loop with --max-outstanding",
        )
    if arrivals.process == "recorded":
        if not arrivals.recording:
            raise ConfigError("recorded arrivals need a file", hint="--recording FILE.csv")
        return
    if arrivals.recording:
        raise ConfigError(
            f"--recording contradicts --arrivals {arrivals.process}",
            hint="leave --arrivals out, or say --arrivals recorded",
        )
    if arrivals.rate is None:
        raise ConfigError(
            "the server scenario needs a rate",
            hint="--rate 200, --sweep auto, or --recording FILE.csv",
        )
    expected = arrivals.rate * (spec.duration_s or DEFAULT_DURATION_S)
    if spec.requests is None and expected > MAX_REQUESTS:
        raise ConfigError(
            f"{arrivals.rate:g}/s for so long is {expected:,.0f} requests; "
            f"at most {MAX_REQUESTS:,} fit into one run",
            hint="lower --duration, or end the run with --requests",
        )


def _check_closed(spec: BenchSpec) -> None:
    if spec.arrivals != ArrivalSpec():
        raise ConfigError(
            f"a rate and arrivals belong to the open loop; {spec.scenario} sends as fast as "
            "it is answered",
            hint="use --scenario server",
        )
    if spec.scenario in {"single-stream", "multi-stream"} and (spec.connections or 1) > 1:
        raise ConfigError(
            f"{spec.scenario} has one query under way; --connections {spec.connections} "
            "would be another scenario",
            hint="use --scenario closed",
        )
