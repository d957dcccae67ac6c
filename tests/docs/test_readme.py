"""What README.md and the examples tell people to type, typed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli.demo_server import serving
from tests.tidy.source import ROOT
from tests.tidy.test_docs import blocks
from tests.unit.repository.bert_models import TinyBert

README = ROOT / "README.md"
CLIENTS = ROOT / "examples" / "clients"

URL, ADDRESS = "http://127.0.0.1:8000", "127.0.0.1:8000"
TIMEOUT_S = 120

PYTHON = list(blocks(README, "python"))
SHELL = "".join(blocks(README, "sh")).replace("\\\n", " ").splitlines()


def run(command: list[str], **where: Path) -> str:
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **where
    )
    assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
    return ran.stdout


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The repository that README.md builds up, served; a tiny model in the place of MiniLM."""
    pytest.importorskip("skl2onnx")
    folder = tmp_path_factory.mktemp("readme")
    models = folder / "models"
    TinyBert().save(models / "minilm")
    for code in PYTHON:
        if code.startswith("# models/"):
            path = folder / code.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(parents=True)
            path.write_text(code)
        elif ADDRESS not in code:
            run([sys.executable, "-W", "ignore", "-c", code], cwd=folder)
    with serving(models, "", cache=folder / "cache", port=0) as server:
        yield server.url


@pytest.mark.parametrize("code", [code for code in PYTHON if ADDRESS in code])
def test_python_clients_work(code: str, url: str) -> None:
    code = code.replace(ADDRESS, url.removeprefix("http://"))
    assert "2" in run([sys.executable, "-W", "ignore", "-c", code])


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("curl ")])
def test_curl_commands_work(line: str, url: str) -> None:
    words = shlex.split(line.replace(URL, url))
    answer = run([*words, "--fail-with-body"])
    if "/metrics" in line:
        assert "headrace_requests_total" in answer
        return
    answered = json.loads(answer)
    assert {"outputs", "data", "predictions"} & set(answered)


def test_every_way_to_ask_is_tried() -> None:
    assert len([code for code in PYTHON if ADDRESS in code]) == 3
    assert len([line for line in SHELL if line.startswith("curl ")]) == 4


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("headrace bench")])
def test_bench_commands_work(line: str, url: str) -> None:
    words = shlex.split(line.replace(URL, url))[1:]
    words[words.index("--duration") + 1] = "0.3"
    report = run([sys.executable, "-m", "headrace", *words, "--warmup", "0.1", "--quiet"])
    assert "p99" in report


def test_a_model_says_what_it_should(url: str) -> None:
    (infer,) = [line for line in SHELL if "/words/infer" in line]
    (predict,) = [line for line in SHELL if "iris:predict" in line]
    counted = json.loads(run(shlex.split(infer.replace(URL, url))))
    assert counted["outputs"][0]["data"] == [4]
    predicted = json.loads(run(shlex.split(predict.replace(URL, url))))
    assert predicted["predictions"][0]["label"] == "setosa"


def test_what_is_installed_and_made_is_there() -> None:
    """Extras of ``pip install``, and targets of ``make``."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    text = README.read_text()
    named = re.findall(r"(?:'\.|`headrace)\[([\w,]+)\]", text)
    assert len(named) >= 3
    assert {extra for each in named for extra in each.split(",")} <= set(extras)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = re.findall(r"^make ([a-z-]+)$|`make ([a-z-]+)`", text, re.MULTILINE)
    assert asked
    assert {first or second for first, second in asked} <= set(targets)


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("search.py", [str(CLIENTS / "search.py"), "vectors"], r"-?\d\.\d\d  \S"),
        ("embed_openai.py", [], r"1\.00  The ferry leaves at noon"),
        ("infer_tritonclient.py", [], r"float32 \(1, 24\) one"),
    ],
)
def test_example_clients_work(script: str, arguments: list[str], expected: str, url: str) -> None:
    command = [sys.executable, "-W", "ignore", str(CLIENTS / script), *arguments, "--url", url]
    assert re.search(expected, run(command))


def test_every_example_is_in_the_table_and_in_a_test() -> None:
    table = (ROOT / "examples" / "README.md").read_text()
    folders = [path for path in (ROOT / "examples").iterdir() if path.is_dir()]
    scripts = [path for path in (ROOT / "examples").rglob("*.py") if path.name != "model.py"]
    examples = [*scripts, *(folder for folder in folders if (folder / "model.py").exists())]
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for example in examples:
        name = example.relative_to(ROOT / "examples").as_posix()
        assert f"]({name}" in table
        assert f'"{example.name}"' in tests
