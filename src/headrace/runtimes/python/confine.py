"""What a child process may not do, and what it is not told.

It runs as the same user as the server, so this contains mistakes of models and of libraries:
a runaway is ended before the server is, a crash leaves no copy of the memory on the disk, and
passwords do not reach code that has no use for them. Code that wants to harm the server can.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
from collections.abc import Collection, Mapping
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h

MAX_OPEN_FILES = 4096
"""File descriptors of a child. The server's own limit is for ten thousand connections; a model
has files and a few sockets, and one that leaks them should find out soon."""

OOM_SCORE = 500
"""Added to ``oom_score_adj``, as if the child used half of the machine's memory more: where
memory runs out, the kernel ends children before the server."""

_SECRET_NAME = re.compile(
    r"(^|_)(TOKENS?|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|(API|ACCESS|PRIVATE)_?KEY)(_|$)",
    re.IGNORECASE,
)
_URL_WITH_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def confine() -> None:
    """Limits this process and what it starts. For a child's first lines; Linux."""
    # Programs with more rights than this process (sudo) are started without them.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    adjust = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # /proc may be read-only
        adjust.write_text(str(min(1000, int(adjust.read_text()) + OOM_SCORE)))


def limit_memory(max_bytes: int) -> None:
    """Private memory of this process: beyond it allocations fail. 0: no limit."""
    if max_bytes:
        _lower(resource.RLIMIT_DATA, max_bytes)


def environment_for(environment: Mapping[str, str], passed: Collection[str]) -> dict[str, str]:
    """Without the server's settings and what looks like a secret, but for the names ``passed``."""
    hidden = hidden_names(environment, passed)
    return {name: value for name, value in environment.items() if name not in hidden}


def hidden_names(environment: Mapping[str, str], passed: Collection[str]) -> set[str]:
    """The names that :func:`environment_for` leaves out."""
    return {
        name
        for name, value in environment.items()
        if name not in passed
        if name.startswith("HEADRACE_")
        or _SECRET_NAME.search(name)
        or _URL_WITH_PASSWORD.search(value)
    }


def _lower(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))
