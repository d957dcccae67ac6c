"""Names of runtimes, and which of them can run what. Imports nothing heavy.

Other packages add runtimes through the entry point group ``headrace.runtimes``: the name is
what ``runtime = "..."`` says, the object a class like :class:`headrace.runtimes.base.Runtime`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import cast

import msgspec

from headrace.errors import ConfigError, MissingExtra
from headrace.runtimes.base import Runtime

ENTRY_POINTS = "headrace.runtimes"


class _Known(msgspec.Struct, frozen=True):
    """``module`` is what must be importable, from ``package``, for the runtime to work."""

    target: str
    formats: tuple[str, ...]
    module: str = ""
    package: str = ""
    extra: str = ""


_KNOWN = {
    # The first that can run a format is the reference that others are compared with.
    "onnxruntime": _Known(
        "headrace.runtimes.onnx:OnnxRuntime", ("onnx",), "onnxruntime", "onnxruntime"
    ),
    "openvino": _Known(
        "headrace.runtimes.openvino:OpenVinoRuntime",
        ("onnx", "openvino"),
        "openvino",
        "openvino",
        "openvino",
    ),
    "python": _Known("headrace.runtimes.python:PythonRuntime", ("python",)),
    "null": _Known("headrace.runtimes.null:NullRuntime", ("null",)),
}


class RuntimeInfo(msgspec.Struct, frozen=True):
    """One line of ``headrace doctor``. ``needs`` says how to get it; "" if it is there."""

    name: str
    installed: bool
    version: str
    formats: tuple[str, ...]
    needs: str = ""


def create(name: str) -> Runtime:
    """The runtime of this name.

    Raises:
        ConfigError: there is none; the known names are listed.
        MissingExtra: the library behind it is not installed.
    """
    known = _KNOWN.get(name)
    if known is not None:
        if not installed(name):
            raise MissingExtra(
                f"the runtime '{name}'", extra=known.extra or "all", package=known.package
            )
        module, _, attribute = known.target.partition(":")
        return cast("Runtime", getattr(import_module(module), attribute)())
    plugin = _plugins().get(name)
    if plugin is None:
        raise ConfigError(
            f"there is no runtime '{name}'",
            hint=f"the runtimes are auto, {', '.join([*_KNOWN, *_plugins()])}",
            field="runtime",
            got=name,
        )
    return cast("Runtime", plugin.load()())


def installed(name: str) -> bool:
    """Whether the library behind a runtime is there; does not import it."""
    known = _KNOWN.get(name)
    if known is None:
        return name in _plugins()
    return not known.module or find_spec(known.module) is not None


def candidates(model_format: str) -> tuple[str, ...]:
    """The installed runtimes that can run a format, the reference first."""
    ours = [
        name for name, known in _KNOWN.items() if model_format in known.formats and installed(name)
    ]
    theirs = [
        name for name, plugin in _plugins().items() if model_format in plugin.load()().formats
    ]
    return (*ours, *theirs)


def explain() -> list[RuntimeInfo]:
    """Every runtime known, whether it is there, and what it needs if it is not."""
    infos = []
    for name, known in _KNOWN.items():
        there = installed(name)
        needs = "" if there else f"pip install 'headrace[{known.extra or 'all'}]'"
        infos.append(RuntimeInfo(name, there, _version(known.package), known.formats, needs))
    for name, plugin in _plugins().items():
        version = plugin.dist.version if plugin.dist else ""
        infos.append(RuntimeInfo(name, installed=True, version=version, formats=()))
    return infos


@cache
def _plugins() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}


def _version(package: str) -> str:
    if not package:
        return ""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
