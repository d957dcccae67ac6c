"""One wheel from the user's package index, by the user's pip, without anything it depends on.

``pip download`` respects the index, mirror, proxy and certificates that the user has
configured, and checks the index's own digests. ``--only-binary :all:`` is what keeps it from
running a build: a source distribution's metadata may only be known after running its code.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from headrace.errors import PullError
from headrace.repository.sources import Fetched, Source

TIMEOUT_S = 3600.0
"""For one download; pip's own timeout is for silence, not for the whole."""

_VERSIONS = re.compile(r"\(from versions: ([^)]*)\)")
_UNREACHABLE = ("connection broken by", "Could not fetch URL", "Connection to ", "ProxyError")
_SHOWN_VERSIONS = 12


def fetch_pypi(source: Source, folder: Path) -> Fetched:
    """Downloads the wheel into ``folder``.

    Raises:
        PullError: pip is missing, no index answers, there is no such version or no wheel of
            it for this platform, or the disk is full.
    """
    requirement = f"{source.name}=={source.version}"
    # -P keeps a pip.py in the current folder from being what runs. The version of Python that
    # the package wants is of no interest: nothing of it is going to run.
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input",
        "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
        "--ignore-requires-python", "--dest", str(folder), requirement,
    ]  # fmt: skip
    try:
        done = subprocess.run(  # noqa: S603 - no shell; the requirement matched NAME==VERSION
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired:
        raise PullError(f"pip took longer than {TIMEOUT_S:.0f} s for {requirement}") from None
    if done.returncode:
        raise _explain(requirement, done.stderr)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise PullError(f"pip delivered {len(wheels)} wheels for {requirement}, expected 1")
    return Fetched(path=wheels[0], name=wheels[0].name)


def _explain(requirement: str, stderr: str) -> PullError:
    if "No module named pip" in stderr:
        return PullError(
            "pip is not installed beside this Python, and it is what fetches packages",
            hint="python -m ensurepip, or download the wheel yourself and pull it by its path",
        )
    found = _VERSIONS.search(stderr)
    versions = [v for v in found[1].split(", ") if v and v != "none"] if found else []
    if versions:
        newest = ", ".join(versions[-_SHOWN_VERSIONS:])
        name, _, version = requirement.partition("==")
        if version in versions:
            return PullError(f"{requirement} cannot be fetched", hint=_last_error(stderr))
        return PullError(f"{name} has no version {version} as a wheel", hint=f"there is: {newest}")
    if any(sign in stderr for sign in _UNREACHABLE):
        return PullError(
            f"{requirement}: the package index cannot be reached",
            hint="check the network, the proxy and `pip config list`; a downloaded wheel can be "
            "pulled by its path",
        )
    if found:
        return PullError(
            f"there is no package {requirement.partition('==')[0]!r} with a wheel in the index",
            hint="check the name; packages that are only source code cannot be pulled",
        )
    if "No space left on device" in stderr:
        return PullError(
            f"{requirement}: no space left on the disk", hint="nothing was left behind; make room"
        )
    return PullError(f"pip could not fetch {requirement}", hint=_last_error(stderr))


def _last_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return errors[-1].removeprefix("ERROR: ")[:300] if errors else "it said nothing"
