"""One worker of ``headrace serve --workers N``; started by the supervisor, never by hand."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Sequence

import msgspec
import uvloop

from headrace.config import Config
from headrace.errors import HeadraceError
from headrace.loading import cache_folder
from headrace.repository.layout import scan
from headrace.repository.mirrors import Mirrors
from headrace.server import ports
from headrace.server.app import serve
from headrace.server.group import Group
from headrace.server.link import Seat
from headrace.server.stopping import run_until_stopped
from headrace.telemetry import logs

SPEC = "HEADRACE_WORKER_SPEC"
"""The variable that has the :class:`WorkerSpec`."""


class WorkerSpec(msgspec.Struct, frozen=True):
    """What every worker is told: the same for all, as JSON in its environment.

    Not on the command line, which every user of the machine can read: the configuration may have a
    password in it.

    ``config.server.port`` is the port that the supervisor reserved.
    """

    config: Config
    paths: tuple[str, ...]
    name: str = ""
    log_format: logs.LogFormat = "auto"
    log_level: str = "info"
    access_log: bool = False

    def command(self, seat: Seat) -> list[str]:
        """The command line of the worker for ``seat``."""
        # -P: the current directory may be a repository, and is no place to import from.
        return [sys.executable, "-P", "-m", "headrace.server.worker", seat.encode()]

    def environment(self) -> dict[str, str]:
        """Beside that of the supervisor."""
        return {SPEC: msgspec.json.encode(self).decode()}


def main(arguments: Sequence[str]) -> int:
    """Runs one worker to its end. The exit status is that of :func:`serve`."""
    seat = Seat.decode(arguments[0])
    spec = msgspec.json.decode(os.environ.pop(SPEC), type=WorkerSpec)
    # Sent by a supervisor that is about to kill a worker that hangs.
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    logs.configure(level=spec.log_level, format=spec.log_format, access=spec.access_log)
    if spec.config.server.log_file:
        logs.log_to(spec.config.server.log_file)
    return run_until_stopped(lambda: uvloop.run(_run(seat, spec)))


async def _run(seat: Seat, spec: WorkerSpec) -> int:
    group = Group(seat)
    try:
        server = spec.config.server
        cache_dir = cache_folder(spec.config, os.environ)
        mirrors = Mirrors(
            spec.paths,
            cache_dir,
            spec.config.store_cache_bytes,
            spec.config.store_redirect_hosts,
        )
        paths = mirrors.paths
        found = scan(paths, config=spec.config, name=spec.name)
        listeners = ports.bind(server)
        return await serve(
            spec.config,
            found,
            listeners,
            group=group,
            paths=paths,
            name=spec.name,
            fetch=mirrors.fetch if mirrors.mirrors else None,
        )
    except Exception as error:
        # The supervisor shows the reason once for all workers.
        group.link.failed(error)
        if isinstance(error, HeadraceError):
            return 1
        raise
    finally:
        group.link.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
