"""A model file as a module, and the object in it that answers.

Nothing is written into the model's folder, and no stale bytecode is read from it: a model
file is compiled anew each time, so editing and reloading within one second works.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import re
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from headrace.errors import ModelLoadError

_serial = itertools.count(1)


class _SourceLoader(SourceFileLoader):
    """Compiles the source and leaves ``__pycache__`` alone."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - the protocol's own shape
        return self.source_to_code(self.get_data(self.path), self.path)


def load_module(path: Path, model: str) -> ModuleType:
    """Runs ``path`` as a module under a name of its own, so that models do not meet.

    The module counts as a package, so files beside it are ``from . import helper``.

    Args:
        path: the model file.
        model: name of the model, for the module's name.

    Raises:
        ModelLoadError: no such file, a syntax error (with its line), or whatever the
            module's own statements raised.
    """
    path = path.absolute()
    if not path.is_file():
        raise ModelLoadError(f"{path} is not a file", hint="a Python model is a file model.py")
    name = f"headrace_model_{re.sub(r'[^0-9A-Za-z_]', '_', model)}_{next(_serial)}"
    loader = _SourceLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(
        name, path, loader=loader, submodule_search_locations=[str(path.parent)]
    )
    if spec is None:
        raise ModelLoadError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except SyntaxError as error:
        forget_module(module)
        where = f"{error.filename or path}, line {error.lineno}"
        raise ModelLoadError(
            f"{where}: {type(error).__name__}: {error.msg}",
            hint="the file must run under the Python that runs headrace: "
            f"{sys.version_info.major}.{sys.version_info.minor}",
            file=str(error.filename or path),
            line=error.lineno,
        ) from error
    except (Exception, SystemExit) as error:
        forget_module(module)
        raise ModelLoadError(
            f"importing {path} raised {describe(error, path)}", hint=_import_hint(error, path)
        ) from error
    return module


def forget_module(module: ModuleType) -> None:
    """Takes a module of :func:`load_module`, and what it imported relatively, out again."""
    prefix = module.__name__ + "."
    for name in [name for name in sys.modules if name.startswith(prefix)]:
        del sys.modules[name]
    sys.modules.pop(module.__name__, None)


def find_entry(module: ModuleType, entry: str) -> Any:
    """The class, function or object of ``module`` that is the model.

    Args:
        module: a loaded model file.
        entry: its name; "" for the only class with a ``predict`` method, else the function
            ``predict``. A class that another candidate inherits from does not count.

    Raises:
        ModelLoadError: there is none, or more than one; the candidates are listed.
    """
    candidates = _candidates(module)
    listed = ", ".join(candidates) or "none"
    if entry:
        if not hasattr(module, entry):
            raise ModelLoadError(
                f"{module.__file__} has no {entry!r}, which runtime_options.entry names",
                hint=f"candidates: {listed}",
                candidates=list(candidates),
            )
        return getattr(module, entry)
    if not candidates:
        raise ModelLoadError(
            f"{module.__file__} has neither a class with a predict method nor a function predict, "
            "and no TritonPythonModel",
            hint="define one of them, or name another object in runtime_options.entry",
            candidates=[],
        )
    if len(candidates) > 1:
        raise ModelLoadError(
            f"{module.__file__} has more than one candidate for the model: {listed}",
            hint=f'say which: runtime_options.entry = "{next(iter(candidates))}"',
            candidates=list(candidates),
        )
    return next(iter(candidates.values()))


def describe(error: BaseException, path: Path) -> str:
    """``ValueError: text (model.py, line 12)``: the last line of ``path`` it came through.

    The text is made one line, for logs and command lines; a traceback keeps its shape.
    """
    text = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
    line = line_of(error, path)
    return f"{text} ({path.name}, line {line})" if line else text


def line_of(error: BaseException, path: Path) -> int | None:
    """The last line of ``path`` in the error's traceback."""
    lines = [
        number
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == str(path)
    ]
    return lines[-1] if lines else None


def _candidates(module: ModuleType) -> dict[str, Any]:
    classes = {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and callable(getattr(value, "predict", None))
        and not inspect.isabstract(value)
    }
    found: dict[str, Any] = {
        name: value
        for name, value in classes.items()
        if not any(value is not other and issubclass(other, value) for other in classes.values())
    }
    function = vars(module).get("predict")
    if callable(function) and not inspect.isclass(function):
        found["predict"] = function
    return found


def _import_hint(error: BaseException, path: Path) -> str:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return "the traceback is in the log"
    module = error.name.partition(".")[0]
    if (path.parent / f"{module}.py").is_file() or (path.parent / module / "__init__.py").is_file():
        return f'write "from . import {module}", or use isolation = "process"'
    return f"install {module} into the environment that runs headrace"
