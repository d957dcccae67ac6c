"""A web server of a folder of models, which does what it is told to do wrong."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message


class Asked:
    """One request, as it came."""

    def __init__(self, method: str, path: str, headers: Message) -> None:
        self.method = method
        self.path = path
        self.range = headers.get("Range", "")
        self.if_range = headers.get("If-Range", "")
        self.authorization = headers.get("Authorization", "")


class Site:
    """What the server has, how it misbehaves, and what it was asked.

    Attributes:
        files: path -> content; with ``list_all`` the sums are added.
        asked: every request.
        sent: path -> bytes of content that were written, over all answers.
        cut: path -> after how many bytes of an answer the line drops; one for each answer.
        status: path -> what to answer instead.
        instead: path -> content that is sent instead, under the true ETag and size.
        redirect: path -> where to.
        knows_ranges, knows_head: what it can do.
        before: called with each request before it is answered.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.sent: dict[str, int] = {}
        self.cut: dict[str, list[int]] = {}
        self.status: dict[str, int] = {}
        self.instead: dict[str, bytes] = {}
        self.redirect: dict[str, str] = {}
        self.knows_ranges = self.knows_head = True
        self.before: Callable[[Asked], None] = lambda asked: None
        self.url = ""
        self.stop: Callable[[], None] = lambda: None

    def put(self, files: dict[str, bytes]) -> str:
        """Has these models now, below ``/models/``; returns the digest of their list."""
        self.files = {f"/models/{path}": content for path, content in files.items()}
        lines = [f"{sha256(content)}  {path}\n" for path, content in files.items()]
        return self.list("".join(lines).encode())

    def list(self, sums: bytes) -> str:
        """Says this in ``SHA256SUMS``; returns its digest."""
        self.files["/models/SHA256SUMS"] = sums
        return sha256(sums)

    def downloads(self, since: int = 0) -> list[tuple[str, str]]:
        """(path below the store, range) of each GET of a model's file."""
        return [
            (asked.path.removeprefix("/models/"), asked.range)
            for asked in self.asked[since:]
            if asked.method == "GET" and not asked.path.endswith("SHA256SUMS")
        ]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"

    def stop() -> None:
        if thread.is_alive():
            server.shutdown()
            server.server_close()
            thread.join()

    site.stop = stop
    try:
        yield site
    finally:
        stop()


def _handler(site: Site) -> type[http.server.BaseHTTPRequestHandler]:  # noqa: C901 - one class of answers
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            if site.knows_head:
                self._answer()
            else:
                self._note()
                self.send_error(405)

        def do_GET(self) -> None:
            self._answer()

        def _note(self) -> str:
            asked = Asked(self.command, self.path.partition("?")[0], self.headers)
            site.asked.append(asked)
            site.before(asked)
            return asked.path

        def _answer(self) -> None:
            path = self._note()
            if path in site.redirect:
                self.send_response(302)
                self.send_header("Location", site.redirect[path])
                self.end_headers()
                return
            if path in site.status or path not in site.files:
                self.send_error(site.status.get(path, 404))
                return
            content = site.files[path]
            tag = f'"{sha256(content)[:16]}"'
            begin = self._begin(tag)
            if begin >= len(content) > 0:
                self.send_error(416)
                return
            self.send_response(206 if begin or self._asks_range(tag) else 200)
            if begin or self._asks_range(tag):
                self.send_header(
                    "Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}"
                )
            self.send_header("Content-Length", str(len(content) - begin))
            self.send_header("ETag", tag)
            self.end_headers()
            if self.command == "GET":
                self._send(path, site.instead.get(path, content)[begin:])

        def _asks_range(self, tag: str) -> bool:
            wants = site.knows_ranges and "Range" in self.headers
            return wants and self.headers.get("If-Range", tag) == tag

        def _begin(self, tag: str) -> int:
            found = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            return int(found[1]) if found and self._asks_range(tag) else 0

        def _send(self, path: str, content: bytes) -> None:
            cuts = site.cut.get(path)
            if cuts:
                content = content[: cuts.pop(0)]
                self.close_connection = True
            self.wfile.write(content)
            site.sent[path] = site.sent.get(path, 0) + len(content)

    return Handler
