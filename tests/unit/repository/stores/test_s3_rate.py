"""An S3 server that sends a file byte by byte: what came is passed on, so that its rate counts."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from headrace.repository.stores.base import RemoteFile
from headrace.repository.stores.s3 import S3Store
from headrace.repository.stores.spec import StoreSpec

pytest.importorskip("boto3")
SIZE = 100_000


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Ten bytes are sent, and the rest once this is set."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def store(held: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    class Drip(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(SIZE))
            self.send_header("ETag", '"tag"')
            self.end_headers()
            self.wfile.write(b"x" * 10)
            self.wfile.flush()
            if held.wait(20):
                self.wfile.write(b"x" * (SIZE - 10))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drip) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        yield S3Store(StoreSpec(kind="s3", place="bucket"))
        server.shutdown()


def test_what_has_come_is_passed_on_at_once(store: S3Store, held: threading.Event) -> None:
    with store.open(RemoteFile(path="m/1/model.onnx", size=SIZE, tag='"tag"'), 0) as body:
        first = next(iter(body.chunks))
        assert len(first) == 10
        held.set()
        assert sum(map(len, body.chunks)) == SIZE - 10
