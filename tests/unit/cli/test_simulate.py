"""The command as people type it."""

from __future__ import annotations

import json

import pytest

from headrace.cli.main import main


def test_a_load_and_what_it_comes_to(capsys):
    assert main(["simulate", "--rate", "200", "--seconds", "3", "--slo", "p99=50ms"]) == 0
    out = capsys.readouterr().out
    assert "requests/s offered" in out
    assert "100.00%" in out


def test_policies_side_by_side_as_json_and_as_a_picture(tmp_path, capsys):
    plot = tmp_path / "goodput.svg"
    flags = ["--sweep", "200,900", "--seconds", "2", "--slo", "20ms", "--json", "--plot", str(plot)]
    for policy in ("ours", "fixed:5ms", "greedy", "none"):
        flags += ["--policy", policy]

    assert main(["simulate", *flags]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 8
    ours, *others = [line for line in lines if line["offered_rps"] > 500]
    assert all(ours["good_rps"] > 2 * other["good_rps"] for other in others)
    assert plot.read_text().count("<path") > 10


def test_the_check_fails_where_the_slo_is_missed(capsys):
    assert main(["simulate", "--rate", "900", "--seconds", "1", "--slo", "20ms", "--check"]) == 1


def test_an_slo_below_the_cost_of_one_is_said(capsys):
    assert main(["simulate", "--rate", "9", "--seconds", "2", "--slo", "2ms", "--strict"]) == 0
    captured = capsys.readouterr()
    assert "below the cost of a single request" in captured.err
    assert "slo_unattainable" in captured.out


def test_random_scenarios(capsys):
    assert main(["simulate", "--fuzz", "3", "--seed", "5"]) == 0
    assert "3 seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "expected one of --trace, --rate and --sweep"),
        (["--rate", "0"], "above 0"),
        (["--rate", "nan"], "above 0"),
        (["--sweep", "1,x"], "'x'"),
        (["--rate", "1", "--slo", "p99=soon"], "--slo p99=soon"),
        (["--rate", "1", "--slo=-5ms"], "--slo -5ms"),
        (["--rate", "1", "--instances", "0"], "--instances must be at least 1"),
        (["--rate", "1", "--seconds", "0"], "--seconds"),
        (["--rate", "1", "--policy", "fixed:x"], "--policy fixed:x"),
        (["--rate", "1", "--policy", "best"], "unknown --policy"),
        (["--rate", "1", "--cost", "0+0b"], "must cost something"),
        (["--rate", "1", "--lengths", "3"], "MEDIAN,SIGMA"),
        (["--trace", "nowhere.csv"], "cannot read the trace"),
        (["--rate", "1e7", "--seconds", "1e5"], "20 million"),
        (["--rate", "0.001", "--seconds", "1"], "no request"),
    ],
)
def test_bad_flags(flags, problem, capsys):
    assert main(["simulate", *flags]) == 2
    assert problem in capsys.readouterr().err
