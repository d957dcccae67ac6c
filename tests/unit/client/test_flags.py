"""Flags: defaults, bounds, and refusals that name the flag."""

from __future__ import annotations

import argparse

import pytest

from headrace.cli import bench
from headrace.client.flags import Options, read_options
from headrace.client.spec import Lengths, scenario_of
from headrace.errors import ConfigError


def parse(*words: str) -> Options:
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    return read_options(parser.parse_args(["bench", "http://127.0.0.1:8000", *words]))


def test_the_plain_command_is_a_single_stream():
    options = parse("--model", "m")
    assert options.spec.scenario == "single-stream"
    assert scenario_of(options.spec).connections == 1
    assert not options.check
    assert options.sweep is None


@pytest.mark.parametrize(
    ("words", "process", "rate"),
    [
        (("--rate", "200"), "poisson", 200.0),
        (("--sweep", "50,100"), "poisson", 50.0),
        (("--recording", "trace.csv"), "recorded", None),
        (("--rate", "5", "--arrivals", "bursty", "--burst-scv", "9"), "bursty", 5.0),
    ],
)
def test_a_rate_a_sweep_or_a_recording_is_the_server_scenario(words, process, rate):
    spec = parse(*words).spec
    assert spec.scenario == "server"
    assert spec.arrivals.process == process
    assert spec.arrivals.rate == rate


def test_every_flag_reaches_the_specification():
    spec = parse(
        "-m", "m", "--model-version", "3", "--scenario", "closed", "--connections", "64",
        "--duration", "2.5", "--requests", "100", "--warmup", "0", "--slo-ms", "50", "--seed", "9",
        "--timeout-s", "3", "--binary", "--shape", "x=1,16", "--range", "x=-1,1",
        "--text-lengths", "40,0.5,100", "--distinct", "8", "--samples", "2",
        "-H", "Authorization: Bearer t", "--allow-remote", "--pid", "1",
    ).spec  # fmt: skip
    assert (spec.model, spec.model_version, spec.connections) == ("m", "3", 64)
    assert (spec.duration_s, spec.requests, spec.warmup_s, spec.slo_ms) == (2.5, 100, 0, 50)
    assert (spec.seed, spec.timeout_s, spec.pid, spec.allow_remote) == (9, 3, 1, True)
    payload = spec.payload
    assert (payload.wire, payload.distinct, payload.samples) == ("binary", 8, 2)
    assert payload.shapes == {"x": (1, 16)}
    assert payload.ranges == {"x": (-1.0, 1.0)}
    assert payload.lengths == Lengths(40, 0.5, 100)
    assert spec.headers == (("Authorization", "Bearer t"),)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--scenario", "server"), "needs a rate"),
        (("--rate", "5", "--connections", "3"), "--connections belongs to the closed loops"),
        (("--scenario", "closed", "--rate", "5"), "belong to the open loop"),
        (("--scenario", "single-stream", "--connections", "2"), "another scenario"),
        (("--arrivals", "recorded", "--scenario", "server"), "need a file"),
        (("--arrivals", "poisson", "--rate", "5", "--recording", "f"), "contradicts"),
        (("--rate", "1000000", "--duration", "60"), "at most 5,000,000"),
        (("--rate", "0"), "--rate or --sweep: expected float > 0"),
        (("--rate", "nan"), "--rate"),
        (("--rate", "5", "--burst-scv", "0"), "--burst-scv: expected"),
        (("--duration", "0"), "--duration: expected"),
        (("--duration", "1e9"), "--duration: expected"),
        (("--requests", "0"), "--requests: expected"),
        (("--requests", "5000001"), "--requests: expected"),
        (("--connections", "0"), "--connections: expected"),
        (("--distinct", "0"), "--distinct: expected"),
        (("--seed", "-1"), "--seed: expected"),
        (("--sweep", "1,x"), "expected numbers"),
        (("--sweep", "1,-2"), "rates above 0"),
        (("--sweep", "5,nan"), "expected finite"),
        (("--sweep", "5", "--rate", "5"), "contradict"),
        (("--plot", "a.png"), "--plot shows a sweep"),
        (("--check",), "something to check"),
        (("--sweep", "auto", "--check", "--slo-ms", "5"), "contradicts --sweep auto"),
        (("--text-lengths", "5,1,inf"), "expected finite"),
        (("--shape", "x"), "expected NAME=NUMBER"),
        (("--shape", "x=1.5"), "whole numbers"),
        (("--range", "x=2,1"), "expected LOW,HIGH"),
        (("--range", "x=nan,1"), "expected finite"),
        (("--text-lengths", "5"), "expected MEDIAN,SIGMA"),
        (("--text-lengths", "5,nan"), "expected finite"),
        (("--text-lengths", "5,9"), "--text-lengths: expected"),
        (("--openai", "--shape", "x=1"), "takes texts"),
        (("-H", "no colon"), "expected 'Name: value'"),
        (("-H", "a: b\r\nc: d"), "expected 'Name: value'"),
        (("-H", "Host: b"), "sets this one itself"),
    ],
)
def test_contradictions_and_bounds_name_the_flag(words, message):
    with pytest.raises(ConfigError) as caught:
        parse(*words)
    assert message in caught.value.message


def test_flags_are_not_abbreviated_so_that_recorded_commands_hide_every_header(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--head", "Authorization: Bearer t")
    assert caught.value.code == 2
