"""Names of runtimes, and which of them can run what. Imports nothing heavy.

Other packages add runtimes through the entry point group ``headrace.runtimes``: the name is
what ``runtime = "..."`` says, the object a class like :class:`headrace.runtimes.base.Runtime`
that passes :class:`headrace.testing.RuntimeKit`. Its module is imported to learn its formats,
so it should import the library behind it only in ``load``. A name of our own cannot be taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import get_ident
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import msgspec

from headrace.errors import ConfigError, MissingExtra, ModelLoadError
from headrace.runtimes.base import Artifact, InstanceConfig, LoadedModel, Runtime
from headrace.runtimes.ending import on_end

if TYPE_CHECKING:
    from importlib import metadata

ENTRY_POINTS = "headrace.runtimes"

_LOG = logging.getLogger(__name__)


class _Known(msgspec.Struct, frozen=True):
    """``module`` must be importable for the runtime to work; one of ``packages`` brings it.

    ``runs_code``: it runs code that belongs to the model.
    """

    target: str
    formats: tuple[str, ...]
    module: str = ""
    packages: tuple[str, ...] = ()
    extra: str = ""
    runs_code: bool = False


_KNOWN: Mapping[str, _Known] = MappingProxyType(
    {
        # The first that can run a format is the reference that others are compared with.
        "onnxruntime": _Known(
            "headrace.runtimes.onnx:OnnxRuntime",
            ("onnx",),
            module="onnxruntime",
            packages=("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
            extra="all",
        ),
        "openvino": _Known(
            "headrace.runtimes.openvino:OpenVinoRuntime",
            ("onnx", "openvino"),
            module="openvino",
            packages=("openvino",),
            extra="openvino",
        ),
        "python": _Known("headrace.runtimes.python:PythonRuntime", ("python",), runs_code=True),
        "null": _Known("headrace.runtimes.null:NullRuntime", ("null",)),
    }
)


class RuntimeInfo(msgspec.Struct, frozen=True):
    """One line of ``headrace doctor``.

    ``version`` is that of the library behind the runtime, "" where there is none. ``formats``
    is empty for other packages' runtimes, which are not imported to ask. ``needs`` says how
    to get the runtime; "" if it is there.
    """

    name: str
    installed: bool
    version: str
    formats: tuple[str, ...]
    needs: str = ""


def create(name: str) -> Runtime:
    """The runtime of this name.

    Raises:
        ConfigError: there is none, and the known names are listed; or another package's
            cannot be imported.
        MissingExtra: the library behind it is not installed.
    """
    known = _KNOWN.get(name)
    if known is not None:
        if not installed(name):
            raise MissingExtra(
                f"the runtime '{name}'", extra=known.extra, package=known.packages[0]
            )
        module, _, attribute = known.target.partition(":")
        return cast("Runtime", getattr(import_module(module), attribute)())
    plugins = _plugins()
    if name not in plugins:
        raise ConfigError(
            f"there is no runtime '{name}'",
            hint=f"the runtimes are auto, {', '.join([*_KNOWN, *plugins])}",
            field="runtime",
            got=name,
        )
    return _create_plugin(plugins[name])


def load(
    name: str,
    artifact: Artifact,
    config: InstanceConfig,
    *,
    isolated: bool = False,
    memory_bytes: int = 0,
) -> LoadedModel:
    """Has the runtime of this name load the model: the only way by which the server opens one.

    Args:
        isolated: in child processes of its own.
        memory_bytes: that each of these may allocate; 0: as much as there is.

    Raises:
        ModelLoadError: the runtime does not declare the model's format (``wrong_format``), or
            runs code that this model may not bring (``code_refused``); nothing of the model has
            been opened then. Else as ``Runtime.load``.
        ConfigError, MissingExtra: as :func:`create`.
    """
    known = _KNOWN.get(name)
    if known is not None:
        _check(name, known.formats, artifact, runs_code=known.runs_code)
    if isolated:
        # Imported here: a server whose models all run inside it does without supervision. Another
        # package's runtime is imported, and checked, by the child alone.
        module = import_module("headrace.runtimes.isolated")
        return cast("LoadedModel", module.IsolatedModel(name, artifact, config, memory_bytes))
    runtime = create(name)
    if known is None:
        _check(name, runtime.formats, artifact, runs_code=_runs_code(runtime))
    model = runtime.load(artifact, config)
    interrupt: Callable[[int, str], None] | None = getattr(model, "interrupt", None)
    if interrupt is not None:  # measuring and warming run it on this thread
        on_end(partial(interrupt, get_ident(), "it was not loaded in time"))
    return model


def _check(name: str, formats: Sequence[str], artifact: Artifact, *, runs_code: bool) -> None:
    if artifact.format not in formats:
        raise ModelLoadError(
            f"the runtime '{name}' cannot run model '{artifact.name}': {artifact.path.name} has "
            f"the format '{artifact.format}', and it runs {', '.join(formats) or 'none'}",
            code="wrong_format",
            hint="leave runtime out, and one that can run the model is chosen",
            model=artifact.name,
        )
    if runs_code and not artifact.may_run_code:
        raise ModelLoadError(
            f"model '{artifact.name}' brings code for the runtime '{name}', which this server does "
            "not run from where the model came from",
            code="code_refused",
            hint='set server.code_from = "anywhere" if you trust the author of the model',
            model=artifact.name,
        )


def _runs_code(runtime: Runtime) -> bool:
    """Of another package's runtime."""
    return bool(getattr(runtime, "runs_code", True))


def installed(name: str) -> bool:
    """Whether the library behind a runtime is there; does not import it."""
    known = _KNOWN.get(name)
    if known is None:
        return name in _plugins()
    return not known.module or find_spec(known.module) is not None


def candidates(model_format: str, *, may_run_code: bool = True) -> tuple[str, ...]:
    """The installed runtimes that can run a format, the reference first.

    Another package's runtime that cannot be imported is left out, and logged. Without
    ``may_run_code`` those that run code of the model's are left out where another one can run it.
    """
    found = {
        name: known.runs_code
        for name, known in _KNOWN.items()
        if model_format in known.formats and installed(name)
    }
    for name, plugin in _plugins().items():
        try:
            runtime = _create_plugin(plugin)
        except ConfigError as error:
            _LOG.warning("%s", error)
        else:
            if model_format in runtime.formats:
                found[name] = _runs_code(runtime)
    safe = tuple(name for name, runs_code in found.items() if not runs_code)
    return tuple(found) if may_run_code or not safe else safe


def fingerprint() -> tuple[str, ...]:
    """Changes when the library of one of our runtimes does. Costs a tenth of asking versions."""
    prints = []
    for name, known in _KNOWN.items():
        spec = find_spec(known.module) if known.module else None
        if spec is not None and spec.origin is not None:
            prints.append(f"{name}={Path(spec.origin).stat().st_mtime_ns}")
    return tuple(prints)


def explain() -> list[RuntimeInfo]:
    """Every runtime known, whether it is there, and what it needs if it is not."""
    infos = []
    for name, known in _KNOWN.items():
        there = installed(name)
        needs = "" if there else f"pip install 'headrace[{known.extra}]'"
        infos.append(RuntimeInfo(name, there, _version(known.packages), known.formats, needs))
    for name, plugin in _plugins().items():
        version = plugin.dist.version if plugin.dist else ""
        infos.append(RuntimeInfo(name, installed=True, version=version, formats=()))
    return infos


def _plugins() -> dict[str, metadata.EntryPoint]:
    from importlib import metadata  # a start-up that remembers its runtime does without

    points = metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in points if point.name not in _KNOWN}


def _create_plugin(plugin: metadata.EntryPoint) -> Runtime:
    try:
        runtime = plugin.load()()
        _ = runtime.name, runtime.formats, runtime.load
    except Exception as error:
        package = plugin.dist.name if plugin.dist else plugin.value
        raise ConfigError(
            f"the runtime '{plugin.name}' of the package {package} cannot be used: {error!r}",
            hint=f"repair or uninstall {package}",
            field="runtime",
        ) from error
    return cast("Runtime", runtime)


def _version(packages: tuple[str, ...]) -> str:
    from importlib import metadata

    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return ""
