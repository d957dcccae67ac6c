"""Who may import what, where the import linter has no words for it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import pytest

from tests.tidy.source import ROOT, modules

HEAVY = {
    "httptools", "matplotlib", "numpy", "onnx", "onnxruntime", "openvino", "pandas",
    "PIL", "safetensors", "scipy", "sklearn", "skl2onnx", "starlette", "tokenizers", "torch",
    "uvloop",
}  # fmt: skip
"""Runtimes, web and array libraries: each costs more than the rest of us together."""

RUNTIME_LIBRARIES = {"onnxruntime", "openvino", "tensorflow", "tensorrt", "torch"}

NOT_SERVING = {
    "repository/demo_model.py": "fits the demo's fallback model with operators of ONNX",
}
"""Where a runtime's library is used for something else than running a user's model."""

LATE_IMPORTS_OF_OURS = {
    "__init__.py": "the public names are looked up when they are first used",
    "cli/": "a command imports what it needs when it runs, so that --help is quick",
    "repository/scanner.py": "models without a config.pbtxt start without its readers",
    "runtimes/python/__init__.py": "a child process imports the package, and not our side of it",
    "runtimes/python/worker.py": "a child imports what it needs for the kind of model that it has",
    "runtimes/registry.py": "a runtime is imported when it is asked for",
    "server/app.py": "the composition root builds only what is configured",
    "tasks/registry.py": "a task is imported when a model needs it",
}
"""Where our own package may be imported inside a function, and why there."""


@pytest.mark.parametrize(
    "statement",
    [
        "import headrace",
        "import headrace.cli.main",
        "from headrace.cli.main import build_parser; build_parser()",
    ],
    ids=["package", "command-line", "help"],
)
def test_a_first_look_is_light(statement: str) -> None:
    """CPU time is printed (``pytest -rP``), not asserted: a busy machine is no defect."""
    script = (
        f"import json, sys, time\n{statement}\n"
        "print(json.dumps([sorted(sys.modules), time.process_time()]))"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded, cpu_s = json.loads(ran.stdout)
    print(f"{statement!r}: {cpu_s * 1000:.0f} ms of CPU, interpreter included")
    assert not HEAVY & {name.partition(".")[0] for name in loaded}


def test_a_runtimes_library_is_known_to_that_runtime_alone() -> None:
    importers: dict[str, set[str]] = {}
    for module in modules():
        for name, _ in module.imports():
            top = name.partition(".")[0]
            if top in RUNTIME_LIBRARIES and module.name not in NOT_SERVING:
                importers.setdefault(top, set()).add(module.name)
    assert importers, "the base install has a runtime"
    for library, files in importers.items():
        assert len(files) == 1, f"{library} is imported by {sorted(files)}"
        assert next(iter(files)).startswith("runtimes/"), f"{library} is imported by {files}"


def test_our_own_modules_are_imported_at_the_top() -> None:
    """A late import hides a dependency, and often a cycle."""
    late = {
        f"{module.name} imports {name}"
        for module in modules()
        for name, within_function in module.imports()
        if within_function and (name.startswith(".") or name.partition(".")[0] == "headrace")
        if not module.name.startswith(tuple(LATE_IMPORTS_OF_OURS))
    }
    assert not late


def test_every_library_we_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {*project["dependencies"], *(item for name in extras for item in extras[name])}
    distributions = {_distribution(requirement) for requirement in declared}
    provided_by = {
        "PIL": "pillow",
        "google": "protobuf",
        "grpc": "grpcio",
        "sklearn": "scikit-learn",
    }
    imported = {
        name.partition(".")[0]
        for module in modules()
        for name, _ in module.imports()
        if not name.startswith(".")
    } - set(sys.stdlib_module_names) - {"headrace"}  # fmt: skip
    assert {provided_by.get(name, name) for name in imported} <= distributions


def _distribution(requirement: str) -> str:
    return requirement.partition(";")[0].partition("[")[0].partition(">")[0].strip()
