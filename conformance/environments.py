"""Virtual environments for what does not fit into ours: other people's servers and clients.

Made once, below ``build/conformance``; a package that cannot be had is a reason to skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1] / "build" / "conformance"

TRITON = ("nvidia-pytriton==0.5.14",)
"""The wheel carries the server itself, 2.51.0, with its Python backend."""

KSERVE = ("kserve==0.21.0",)

MLSERVER = ("mlserver==1.7.1", "uvloop==0.21.0")
"""It does not pin uvloop, and later ones end its process at start."""

_INSTALL_S = 900


class Unavailable(Exception):
    """The package index has no such package, or not for this machine."""


def python(name: str, packages: tuple[str, ...]) -> Path:
    """The interpreter of the environment ``name`` with ``packages``.

    Raises:
        Unavailable: it cannot be installed here; the message ends with pip's own.
    """
    folder = ROOT / name
    done = folder / "installed.txt"
    interpreter = folder / "bin" / "python"
    if done.exists() and done.read_text() == "\n".join(packages):
        return interpreter
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    try:
        installed = subprocess.run(
            [interpreter, "-m", "pip", "install", "--quiet", *packages],
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"installing {packages} took more than {_INSTALL_S} s") from None
    if installed.returncode:
        last = installed.stderr.strip().splitlines()[-1:]
        raise Unavailable(f"{packages}: {' '.join(last)}")
    done.write_text("\n".join(packages))
    return interpreter


def triton() -> Path:
    """Triton's ``tritonserver``, its Python backend made ready for this interpreter.

    Raises:
        Unavailable: as :func:`python`; or its libraries are not for this machine.
    """
    interpreter = python("triton", TRITON)
    (home,) = interpreter.parents[1].glob("lib/python3*/site-packages/pytriton/tritonserver")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise Unavailable(f"it has no Python backend for Python {version}")
    shutil.copy2(stub, home / "backends" / "python" / stub.name)
    binary = home / "bin" / "tritonserver"
    tried = subprocess.run(
        [binary, "--help"],
        env=triton_environment(binary),
        capture_output=True,
        text=True,
        check=False,
    )
    if "model-repository" not in tried.stdout + tried.stderr:
        raise Unavailable(f"it does not start here: {tried.stderr.strip()[-300:]}")
    return binary


def triton_environment(binary: Path) -> dict[str, str]:
    """What :func:`triton`'s binary must find in its environment."""
    home = binary.parents[1]
    libraries = [triton_packages(binary) / "nvidia_pytriton.libs", home / "external_libs"]
    libraries.append(Path(sys.base_prefix) / "lib")
    return {
        "PYTHONHOME": sys.base_prefix,
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
    }


def triton_packages(binary: Path) -> Path:
    """The ``site-packages`` it was installed in."""
    return binary.parents[3]
