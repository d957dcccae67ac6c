from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from headrace.errors import ConfigError, MissingExtra, ModelLoadError
from headrace.runtimes import registry
from headrace.runtimes.base import Artifact, InstanceConfig


def test_nothing_heavy_is_imported_until_it_is_used():
    script = """
        import sys
        from headrace.runtimes import registry
        registry.explain(), registry.candidates("onnx"), registry.create("openvino")
        print({"onnxruntime", "openvino"} & set(sys.modules))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "python", "null"])
def test_a_runtime_has_the_name_it_is_found_by(name):
    runtime = registry.create(name)
    assert runtime.name == name
    (info,) = (info for info in registry.explain() if info.name == name)
    assert info.formats == tuple(runtime.formats)
    assert info.installed
    assert info.needs == ""


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="'onyx'") as caught:
        registry.create("onyx")
    for name in ("auto", "onnxruntime", "openvino", "python", "null"):
        assert name in caught.value.hint


def test_candidates_begin_with_the_reference():
    assert registry.candidates("onnx") == ("onnxruntime", "openvino")
    assert registry.candidates("openvino") == ("openvino",)
    assert registry.candidates("python") == ("python",)
    assert registry.candidates("null") == ("null",)
    assert registry.candidates("pickle") == ()


def test_a_missing_library_is_said_without_importing_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    assert not registry.installed("openvino")
    assert registry.candidates("onnx") == ("onnxruntime",)
    (info,) = (info for info in registry.explain() if info.name == "openvino")
    assert info.needs == "pip install 'headrace[openvino]'"
    with pytest.raises(MissingExtra) as caught:
        registry.create("openvino")
    assert caught.value.hint == info.needs


class TestOtherPackages:
    @pytest.fixture
    def install(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)

        def install(name: str, source: str) -> None:
            module = f"headrace_test_{name}"
            monkeypatch.delitem(sys.modules, module, raising=False)  # of an earlier test
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
            info = tmp_path / f"{module}-1.2.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2\n")
            (info / "entry_points.txt").write_text(
                f"[{registry.ENTRY_POINTS}]\n{name} = {module}:Runtime\n"
            )

        return install

    RUNTIME = """
        class Runtime:
            name = "turbine"
            formats = ("onnx", "water")
            def load(self, artifact, config): ...
    """

    def test_a_runtime_is_found_by_its_entry_point(self, install):
        install("turbine", self.RUNTIME)
        assert registry.installed("turbine")
        assert registry.create("turbine").name == "turbine"
        assert registry.candidates("water") == ("turbine",)
        assert registry.candidates("onnx")[-1] == "turbine"
        assert registry.candidates("python") == ("python",)
        (info,) = (info for info in registry.explain() if info.name == "turbine")
        assert info.version == "1.2"

    @pytest.mark.parametrize(
        "source", ["import no_such_library", "class Runtime: name = 'turbine'", "Runtime = 3"]
    )
    def test_a_broken_one_takes_nothing_else_down(self, install, source, caplog):
        install("turbine", source)
        with caplog.at_level(logging.WARNING):
            assert registry.candidates("onnx") == ("onnxruntime", "openvino")
        assert "headrace_test_turbine" in caplog.text
        with pytest.raises(ConfigError, match="headrace_test_turbine"):
            registry.create("turbine")

    def test_our_names_cannot_be_taken(self, install):
        install("null", self.RUNTIME)
        assert registry.create("null").name == "null"
        assert registry.candidates("water") == ()


def artifact(model_format: str, *, may_run_code: bool = False) -> Artifact:
    path = Path("no such folder") / "model.file"
    return Artifact("m", "1", path, path.parent, model_format, may_run_code=may_run_code)


class TestLoad:
    """The one door by which a model is opened. None of these files exists."""

    @pytest.mark.parametrize("isolated", [False, True])
    @pytest.mark.parametrize(
        ("runtime", "model_format"),
        [
            ("python", "openvino"),
            ("python", "onnx"),
            ("onnxruntime", "openvino"),
            ("onnxruntime", "python"),
            ("openvino", "python"),
            ("null", "onnx"),
        ],
    )
    def test_a_runtime_is_given_no_format_that_it_does_not_declare(
        self, runtime, model_format, isolated
    ):
        with pytest.raises(ModelLoadError, match=f"'{model_format}'") as caught:
            registry.load(
                runtime,
                artifact(model_format, may_run_code=True),
                InstanceConfig(),
                isolated=isolated,
            )
        assert caught.value.code == "wrong_format"

    @pytest.mark.parametrize("isolated", [False, True])
    def test_code_is_run_only_where_that_is_allowed(self, isolated):
        with pytest.raises(ModelLoadError, match="brings code") as caught:
            registry.load("python", artifact("python"), InstanceConfig(), isolated=isolated)
        assert caught.value.code == "code_refused"
        with pytest.raises(ModelLoadError, match=r"model\.file") as caught:
            registry.load("python", artifact("python", may_run_code=True), InstanceConfig())
        assert caught.value.code != "code_refused"


class TestOtherPackagesCode:
    SAFE = TestOtherPackages.RUNTIME.replace('name = "turbine"', 'name = "turbine"; runs_code = 0')
    install = TestOtherPackages.install

    def test_a_runtime_that_says_nothing_may_run_code(self, install):
        install("turbine", TestOtherPackages.RUNTIME)
        assert registry.candidates("onnx", may_run_code=True)[-1] == "turbine"
        assert "turbine" not in registry.candidates("onnx", may_run_code=False)
        assert registry.candidates("water", may_run_code=False) == ("turbine",)  # to be refused
        with pytest.raises(ModelLoadError) as caught:
            registry.load("turbine", artifact("water"), InstanceConfig())
        assert caught.value.code == "code_refused"
        registry.load("turbine", artifact("water", may_run_code=True), InstanceConfig())

    def test_a_runtime_may_say_that_it_runs_none(self, install):
        install("turbine", self.SAFE)
        assert registry.candidates("onnx", may_run_code=False)[-1] == "turbine"
        registry.load("turbine", artifact("water"), InstanceConfig())

    def test_formats_count_for_it_too(self, install):
        install("turbine", self.SAFE)
        with pytest.raises(ModelLoadError, match="onnx, water") as caught:
            registry.load("turbine", artifact("python", may_run_code=True), InstanceConfig())
        assert caught.value.code == "wrong_format"
