"""Every benchmark runs, on counts too small to mean anything, and says what it promises."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import (
    coldstart,
    core,
    embedding,
    floor_server,
    isolation,
    load_curve,
    lone_request,
    memory,
    mlp,
    overhead,
    python_path,
    startup,
)
from benchmarks.load import Generator
from benchmarks.memory import Sample, growth_bytes
from benchmarks.overhead import Case
from benchmarks.results import Result, Spread
from benchmarks.served_texts import serve_texts
from benchmarks.servers import ServerFailed, headrace_server
from benchmarks.servers import floor_server as running_floor
from benchmarks.settings import Settings
from headrace.testing import onnx_models
from tests.unit.repository.bert_models import TinyBert


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        rounds=1, seconds=1, scale=0.01, work=tmp_path / "work", out=tmp_path / "results"
    )


def figure(result: Result, name: str) -> float:
    """As a number, which must be one."""
    value = result.figures[name]
    number = value.median if isinstance(value, Spread) else value
    assert isinstance(number, int | float)
    assert math.isfinite(number)
    return number


def test_overhead_compares_cpu_time_with_the_floor(settings: Settings) -> None:
    few, many = overhead.measure(Case("mlp", "json"), [2, 64], settings)
    for result in (few, many):
        ratio = figure(result, "cpu us") / figure(result, "floor cpu us")
        assert figure(result, "cpu ratio") == pytest.approx(ratio)
        assert figure(result, "req/s") > 0
    assert not few.goals
    assert [goal.bound for goal in many.goals] == [1.6]
    assert many.goals[0].value.median == figure(many, "cpu ratio")


def test_the_path_through_python_is_measured_on_both_sides(settings: Settings) -> None:
    result = python_path.measure("json", 4, settings)
    more = figure(result, "us") - figure(result, "floor us")
    assert figure(result, "floor us") > 0
    assert figure(result, "more us") == pytest.approx(more)


def test_a_lone_request_is_compared_with_the_bare_call(settings: Settings) -> None:
    result = lone_request.measure(Case("mlp", "binary"), settings)
    added = figure(result, "p50 us") - figure(result, "bare call us")
    assert figure(result, "over the bare call us") == pytest.approx(added)


@pytest.mark.parametrize("wire", ["json", "binary"])
def test_the_floor_answers_what_the_model_does(wire: mlp.Wire, tmp_path: Path) -> None:
    file = mlp.write_mlp(tmp_path, seed=3)
    call = floor_server.load(str(file))
    with running_floor(str(file), wire) as server:
        for request in mlp.make_requests(wire, seed=3, count=4):
            status, answer = server.post(mlp.PATH, request.body, request.headers)
            assert status == 200
            np.testing.assert_allclose(
                mlp.output_of(answer, wire), call(request.array), rtol=1e-5, atol=1e-6
            )


def test_load_without_wrk_comes_from_our_own_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    generator = Generator(mlp.make_requests("binary", seed=3), tmp_path)
    assert generator.name == "benchmarks.client"
    with running_floor("null", "binary") as server:
        load = generator.run(server, connections=3, seconds=1)
    assert load.requests > 3
    assert 0 < load.p50_us <= load.p99_us


def test_embedding_compares_equal_answers(settings: Settings, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(settings, minilm=TinyBert().save(tmp_path / "minilm"))
    results = {result.case: result for result in embedding.run(settings)}
    batched = results["headrace, 64 connections"]
    assert figure(batched, "rows/batch") > 1
    assert figure(results["headrace, 1 connection"], "rows/batch") == 1
    assert figure(results["bare, one at a time"], "padding") == 0
    assert figure(results["bare, naive 32"], "padding") > 0
    assert len(batched.goals) == 3


def test_embedding_refuses_to_compare_different_answers(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(*arguments: object) -> object:
        served = serve_texts(*arguments)  # type: ignore[arg-type] # passed on as they came
        return msgspec.structs.replace(served, embeddings=served.embeddings + np.float32(1e-3))

    monkeypatch.setattr("benchmarks.embedding.serve_texts", spoilt)
    settings = msgspec.structs.replace(settings, minilm=TinyBert().save(tmp_path / "minilm"))
    with pytest.raises(embedding.WrongAnswer, match="server 0"):
        list(embedding.run(settings))


def test_without_the_model_embedding_is_skipped_with_a_reason(
    settings: Settings, tmp_path: Path
) -> None:
    settings = msgspec.structs.replace(settings, minilm=tmp_path / "nowhere")
    (result,) = embedding.run(settings)
    assert "--minilm" in result.skipped


def test_memory_is_sampled_over_rounds_of_texts(settings: Settings, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(settings, minilm=TinyBert().save(tmp_path / "minilm"))
    result = memory.result_of("texts", list(memory.text_samples(settings, rounds=2, texts=64)))
    assert figure(result, "requests") == 128
    assert figure(result, "last MiB") > 10


def test_growth_is_the_slope_after_warming_up() -> None:
    flat = [Sample(100 * n, 50_000_000 + (9_000_000 if n < 3 else 10_000_000)) for n in range(12)]
    assert growth_bytes(flat) == pytest.approx(0, abs=1)
    leaking = [Sample(100 * n, 50_000_000 + 1000 * 100 * n) for n in range(12)]
    assert growth_bytes(leaking) == pytest.approx(1000 * 1100)


@pytest.mark.slow
def test_the_load_curve_is_a_result_for_every_rate_and_a_picture(
    settings: Settings, tmp_path: Path
) -> None:
    settings = msgspec.structs.replace(settings, minilm=TinyBert().save(tmp_path / "minilm"))
    results = list(load_curve.run(settings))
    offered = [float(result.case.partition("/")[0]) for result in results]
    assert len(offered) > 2
    assert offered == sorted(offered)
    assert figure(results[0], "p50 ms") > 0
    assert (settings.out / "load_curve.svg").read_text().startswith("<?xml")


def test_starts_are_timed_beside_a_bare_session(settings: Settings) -> None:
    file = mlp.write_mlp(settings.work, seed=3)
    result = startup.serve(file, "onnxruntime", settings, first=True)
    assert figure(result, "ratio") > 0
    assert figure(result, "cpu ms") > 0


def test_a_second_start_is_timed_with_and_without_compiled_models(settings: Settings) -> None:
    file = settings.work / "large.onnx"
    settings.work.mkdir()
    file.write_bytes(onnx_models.mlp(widths=(16, 1024, 1024, 512, 2)))
    body = coldstart.v2_body("x", "FP32", [1, 16], [0.0] * 16)
    result = coldstart.starts(coldstart.Case("mlp", "onnxruntime", file, body), settings)
    assert figure(result, "compiled MB") > 4
    ratio = figure(result, "first ms") / figure(result, "second ms")
    assert figure(result, "first/second") == pytest.approx(ratio)
    assert figure(result, "worker PSS MB") > 10
    assert figure(result, "without compiled PSS MB") > 10


def test_importing_headrace_pulls_in_nothing_heavy(settings: Settings) -> None:
    assert startup.import_headrace(settings).figures["pulls in"] == "nothing"


def test_a_server_that_does_not_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerFailed, match="nowhere"),
        headrace_server(tmp_path / "nowhere.onnx", tmp_path),
    ):
        pass


@pytest.mark.parametrize("case", core.CASES, ids=lambda case: case.name)
def test_the_core_completes_everything_it_is_given(case: core.Case) -> None:
    assert core.measure(case, count=300, seed=3) > 0


def test_the_command_prints_a_table_and_appends_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["core", "--quick", "--scale", "0.01", "--rounds", "2", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    assert "rows, 64 at a time" in capsys.readouterr().out
    lines = (tmp_path / "core.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line)["case"] for line in lines] == [c.name for c in core.CASES]


def test_an_unknown_benchmark_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["overheads"])
    assert "there is no benchmark 'overheads'" in capsys.readouterr().err


def test_a_model_in_a_process_is_compared_with_one_inside(settings: Settings) -> None:
    start, *sizes = isolation.run(settings)
    assert figure(start, "start ms") > 0
    assert len(sizes) == len(isolation.SIZES)
    for result in sizes:
        more = figure(result, "p50 us") - figure(result, "inside p50 us")
        assert figure(result, "more us") == pytest.approx(more)
        assert figure(result, "cpu us") > 0
    assert [goal.bound for result in sizes for goal in result.goals] == [150.0]
