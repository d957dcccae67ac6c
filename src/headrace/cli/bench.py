"""``headrace bench``: puts load on a server and says what came of it."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.client.spec import (
    DEFAULT_DURATION_S,
    DEFAULT_SWEEP_DURATION_S,
    MAX_REQUESTS,
    SCENARIOS,
    BenchSpec,
)
from headrace.errors import ConfigError, HeadraceError

if TYPE_CHECKING:  # the rest of the room is imported when the command runs
    from headrace.client.benchmark import Benchmark
    from headrace.client.flags import Options
    from headrace.client.journal import RunResult
    from headrace.client.progress import Progress

EXIT_OK = 0
EXIT_SLO_MISSED = 1
EXIT_INTERRUPTED = 130

_EPILOG = f"""\
scenarios (names and headline figures of MLPerf Inference):
  single-stream  closed loop, one query under way: p90 latency
  multi-stream   the same with --samples 8 in a query: p99 latency of the query
  server         open loop at --rate, Poisson unless told otherwise: p99 within --slo-ms
  offline        closed loop, 128 in flight: throughput
  closed         closed loop, --connections callers

A run lasts {DEFAULT_DURATION_S:g} s unless --duration or --requests say otherwise (each rate of a
sweep: {DEFAULT_SWEEP_DURATION_S:g} s), and has at most {MAX_REQUESTS:,} requests.

Latencies of the open loop count from the moment a request was due, and the sender never
waits for an answer, so a stall of the server shows in full.

exit codes: 0 ok; 1 --check and the SLO was missed; 2 usage, or the server cannot be
measured; 130 interrupted (what was measured until then is reported)

examples:
  headrace bench http://127.0.0.1:8000 --model m
  headrace bench http://127.0.0.1:8000 --model m --rate 200 --slo-ms 50 --check
  headrace bench http://127.0.0.1:8000 --model m --sweep auto --slo-ms 50 --plot out.png
  headrace bench http://127.0.0.1:8000 --model m --scenario closed --connections 64 --binary
"""


def add_parser(subparsers: Any) -> None:
    """Adds ``bench`` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="put load on a server and report latency, goodput and CPU time",
        description="Puts load on a server that speaks V2 or OpenAI embeddings, and reports.",
        epilog=_EPILOG,
        allow_abbrev=False,  # so that a header is known as one where the command is recorded
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", help="for example http://127.0.0.1:8000")
    parser.add_argument("--model", "-m", default="", help="name; may be left out if there is one")
    parser.add_argument("--model-version", default="", metavar="V", help="default: the server's")
    _add_load(parser)
    _add_payload(parser)
    _add_output(parser)
    parser.set_defaults(func=run)


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    group.add_argument(
        "--scenario",
        choices=tuple(SCENARIOS),
        help="default: server with a rate, sweep or recording, otherwise single-stream",
    )
    group.add_argument("--rate", type=float, metavar="R", help="mean requests per second")
    group.add_argument(
        "--arrivals", choices=("poisson", "bursty", "on-off", "constant", "recorded")
    )
    group.add_argument(
        "--burst-scv",
        type=float,
        metavar="C2",
        help="bursty: squared coefficient of variation of the gaps (default 4; Poisson has 1)",
    )
    group.add_argument("--on-s", type=float, metavar="S", help="on-off: mean on time, 0.5")
    group.add_argument("--off-s", type=float, metavar="S", help="on-off: mean off time, 0.5")
    group.add_argument(
        "--recording",
        metavar="FILE",
        help="CSV or JSONL of timestamps [and lengths]; --rate rescales it",
    )
    group.add_argument("--connections", type=int, metavar="N", help="callers of a closed loop")
    group.add_argument("--samples", type=int, metavar="N", help="rows or texts of one query")
    group.add_argument("--duration", type=float, metavar="S", help="seconds")
    group.add_argument("--requests", type=int, metavar="N", help="end after so many")
    group.add_argument(
        "--warmup", type=float, metavar="S", help="uncounted load before the run, 0.5 s"
    )
    group.add_argument(
        "--sweep",
        metavar="R,R,...|auto",
        help="several rates; auto finds where the server saturates",
    )
    group.add_argument("--seed", type=int, default=0, help="repeats schedule and bodies exactly")
    group.add_argument(
        "--max-outstanding",
        type=int,
        metavar="N",
        help="open loop: beyond so many unanswered, requests fail unsent (4096)",
    )
    group.add_argument(
        "--timeout-s", type=float, metavar="S", help="a request unanswered for so long failed (10)"
    )


def _add_payload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests")
    wire = group.add_mutually_exclusive_group()
    wire.add_argument("--binary", action="store_true", help="V2 binary tensor extension")
    wire.add_argument("--openai", action="store_true", help="/v1/embeddings")
    group.add_argument(
        "--input", default="", metavar="FILE", help="a body as JSON, or JSONL with one a line"
    )
    group.add_argument(
        "--shape", action="append", default=[], metavar="NAME=1,16", help="of one input"
    )
    group.add_argument(
        "--range", action="append", default=[], metavar="NAME=LOW,HIGH", help="values of one input"
    )
    group.add_argument(
        "--text-lengths",
        metavar="MEDIAN,SIGMA[,MAX]",
        help="log-normal lengths: words of texts (12,0.7,256), size of tensors' free axes",
    )
    group.add_argument(
        "--distinct", type=int, metavar="N", help="different bodies that are generated (256)"
    )
    group.add_argument(
        "--header", "-H", action="append", default=[], metavar="'NAME: VALUE'", help="may repeat"
    )
    group.add_argument(
        "--allow-remote", action="store_true", help="permit a target other than this machine"
    )
    group.add_argument("--ca-file", default="", metavar="PEM", help="certificates to trust")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument("--slo-ms", type=float, metavar="MS", help="latency bound for goodput")
    group.add_argument("--check", action="store_true", help="exit 1 if the SLO was missed")
    group.add_argument("--plot", type=Path, metavar="PNG", help="of a sweep; needs headrace[plot]")
    group.add_argument("--json", type=Path, metavar="FILE", help="append one JSON line per run")
    group.add_argument(
        "--pid", type=int, help="server process for CPU time; found by itself on this machine"
    )
    group.add_argument("--quiet", "-q", action="store_true", help="no progress display")
    group.add_argument("--ascii", action="store_true", help="no characters beyond ASCII")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit code (see ``--help``).

    Raises:
        ConfigError: the command line is wrong, or this server or model cannot be measured.
        KeyboardInterrupt: Ctrl-C before there was anything to report.
    """
    from headrace.client.flags import read_options

    try:
        options = read_options(args)
        if options.plot is not None:
            from headrace.client.plot import require_matplotlib

            require_matplotlib()
        return _run_on_a_loop(options)
    except ConfigError:
        raise
    except HeadraceError as error:  # exit code 1 is to mean a missed SLO and nothing else
        raise ConfigError(error.message, hint=error.hint) from error
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error


def _run_on_a_loop(options: Options) -> int:
    from headrace.client.benchmark import new_event_loop

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_measure(options))


# the run


async def _measure(options: Options) -> int:
    from headrace.client import journal
    from headrace.client.benchmark import Benchmark

    if options.json is not None:
        journal.append(options.json, [])  # better to fail now than after the run
    benchmark = await Benchmark.open(options.spec)
    with _gentle_interrupt(benchmark):
        await benchmark.warm_up()
        if options.sweep is None:
            met = await _one(benchmark, options)
        else:
            met = await _several(benchmark, options)
    if benchmark.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_OK if met or not options.check else EXIT_SLO_MISSED


@contextmanager
def _gentle_interrupt(benchmark: Benchmark) -> Iterator[None]:
    """The first Ctrl-C ends the run under way and lets it be reported; the next kills."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        if not benchmark.interrupt():
            task.cancel()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _one(benchmark: Benchmark, options: Options) -> bool:
    """One run and its report; True where the SLO, if any, was met."""
    from headrace.client.report import render_run

    progress = _progress(options, benchmark.spec)
    result = await benchmark.run(benchmark.spec, progress)
    if progress is not None:
        progress.close()
    print(render_run(result, unicode=options.unicode))
    _journal(result, options, None)
    return _met(result)


async def _several(benchmark: Benchmark, options: Options) -> bool:
    """A sweep, its table, chart and plot; True where every rate met the SLO."""
    from headrace.client.report import render_point, render_sweep
    from headrace.client.sweep import Sweeper

    shown: list[Progress] = []

    def watch_for(spec: BenchSpec) -> Progress | None:
        progress = _progress(options, spec)
        if progress is not None:
            shown.append(progress)
        return progress

    def on_result(result: RunResult) -> None:
        _journal(result, options, {"rates": options.sweep})
        if shown:
            shown[-1].close()
            print(render_point(result), file=sys.stderr)

    sweeper = Sweeper(benchmark, watch_for, on_result)
    if isinstance(options.sweep, tuple):
        sweep = await sweeper.run(options.sweep)
    else:
        sweep = await sweeper.find()
    print(render_sweep(sweep, unicode=options.unicode))
    if options.plot is not None and sweep.results:
        from headrace.client.plot import plot_sweep

        plot_sweep(sweep.results, options.plot)
        print(f"  {'plot':<12}{options.plot}")
    return bool(sweep.results) and all(_met(result) for result in sweep.results)


def _met(result: RunResult) -> bool:
    return result.summary.slo is None or result.summary.slo.met


def _journal(result: RunResult, options: Options, sweep: dict[str, Any] | None) -> None:
    from headrace.client import journal

    if options.json is not None:
        journal.append(options.json, [journal.record(result, sys.argv, sweep)])


def _progress(options: Options, spec: BenchSpec) -> Progress | None:
    from headrace.client.flags import speaks_unicode
    from headrace.client.progress import Progress

    if options.quiet:
        return None
    duration_s = spec.duration_s
    if duration_s is None and spec.requests is None and spec.arrivals.process != "recorded":
        duration_s = DEFAULT_DURATION_S
    return Progress(
        sys.stderr,
        label=f"{spec.arrivals.rate:g}/s" if spec.arrivals.rate is not None else spec.scenario,
        duration_s=duration_s,
        requests=spec.requests,
        unicode=options.unicode and speaks_unicode(sys.stderr),
    )
