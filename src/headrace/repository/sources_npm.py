"""One tarball from the user's npm registry, by the user's npm, with no script run.

``npm pack`` respects ``.npmrc`` (registry, proxy, credentials) and checks the registry's
integrity digest. ``--ignore-scripts`` is what keeps it from running the package's own.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec

from headrace.errors import PullError
from headrace.repository.sources import Fetched, Source

TIMEOUT_S = 3600.0
_NETWORK = ("ECONNREFUSED", "ECONNRESET", "ENOTFOUND", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH")


class _NpmError(msgspec.Struct):
    code: str = ""
    summary: str = ""


class _NpmReply(msgspec.Struct):
    error: _NpmError | None = None


def fetch_npm(source: Source, folder: Path) -> Fetched:
    """Downloads the tarball into ``folder``.

    Raises:
        PullError: npm is not installed, the registry cannot be reached, there is no such
            package or version, or the disk is full.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise PullError(
            "npm is not installed, and it is what fetches npm packages",
            hint="install Node.js, or download the .tgz yourself and pull it by its path",
        )
    package = f"{source.name}@{source.version}"
    command = [
        npm, "pack", package, "--ignore-scripts", "--json", "--loglevel=error",
        "--pack-destination", str(folder),
    ]  # fmt: skip
    try:
        done = subprocess.run(  # noqa: S603 - no shell; the package matched NAME@VERSION
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired:
        raise PullError(f"npm took longer than {TIMEOUT_S:.0f} s for {package}") from None
    if done.returncode:
        raise _explain(source, done.stdout, done.stderr)
    tarballs = sorted(folder.glob("*.tgz"))
    if len(tarballs) != 1:
        raise PullError(f"npm delivered {len(tarballs)} tarballs for {package}, expected 1")
    return Fetched(path=tarballs[0], name=tarballs[0].name)


def _explain(source: Source, stdout: str, stderr: str) -> PullError:
    try:
        error = msgspec.json.decode(stdout, type=_NpmReply).error or _NpmError()
    except msgspec.DecodeError:
        lines = [line for line in stderr.splitlines() if line.strip()]
        error = _NpmError(summary=lines[0] if lines else "it said nothing")
    if error.code == "E404":
        return PullError(
            f"there is no npm package {source.name!r}", hint="check the name and `npm config list`"
        )
    if error.code == "ETARGET":
        return PullError(
            f"{source.name} has no version {source.version}",
            hint=f"npm view {source.name} versions",
        )
    if error.code in _NETWORK:
        return PullError(
            f"{source.label}: the npm registry cannot be reached ({error.code})",
            hint="check the network, the proxy and `npm config list`; a downloaded .tgz can be "
            "pulled by its path",
        )
    return PullError(f"npm could not fetch {source.label}", hint=error.summary[:300])
