"""Many models and many versions: what is broken, private or led astray by links."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import ConfigError, ModelLoadError
from tests.unit.repository.model_files import find, only, put, served


class TestVersions:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        for version in (1, 2, 3, 10):
            put(tmp_path / "m" / str(version) / "model.onnx")
        return tmp_path / "m"

    @pytest.mark.parametrize(
        ("policy", "versions"),
        [
            ("latest", ["10"]),
            ("latest:2", ["10", "3"]),
            ("latest:99", ["10", "3", "2", "1"]),
            ("all", ["10", "3", "2", "1"]),
            ("1,3", ["3", "1"]),
            (" 2 ", ["2"]),
        ],
    )
    def test_policies(self, model: Path, policy: str, versions: list[str]) -> None:
        result = find(model, defaults={"versions": policy})
        assert [source.version for source in result.models] == versions
        assert result.models[0].folder == model / versions[0]

    @pytest.mark.parametrize("policy", ["", "newest", "latest:0", "1;2", "0", "01", "1,,2", "-1"])
    def test_policies_that_are_none(self, model: Path, policy: str) -> None:
        with pytest.raises(ConfigError, match="not a version policy"):
            find(model, defaults={"versions": policy})

    def test_a_version_that_is_not_there(self, model: Path) -> None:
        result = find(model, defaults={"versions": "1,7"})
        assert served(result) == [("m", "1")]
        (problem,) = result.problems
        assert (problem.version, "only 1, 2, 3, 10" in problem.reason) == ("7", True)
        with pytest.raises(ModelLoadError, match="version 7"):
            find(model, defaults={"versions": "7"})

    def test_half_copied_folders_are_not_seen(self, model: Path) -> None:
        for name in (".11", "_11", "11.tmp", "11.part", "011", "0", "v11"):
            put(model / name / "model.onnx")
        assert served(find(model)) == [("m", "10")]

    def test_a_broken_newer_version_does_not_take_the_older_down(self, model: Path) -> None:
        put(model / "11" / "model.onnx", b"cut o")
        (model / "12").mkdir()
        result = find(model)
        assert served(result) == [("m", "10")]
        assert [problem.version for problem in result.problems] == ["12", "11"]
        assert "is empty" in result.problems[0].reason

    def test_nothing_but_broken_versions(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "1" / "model.onnx", b"cut o")
        with pytest.raises(ModelLoadError, match="not an ONNX model"):
            find(tmp_path / "m")

    def test_a_version_may_have_a_configuration_of_its_own(self, model: Path) -> None:
        put(model / "model.toml", 'threads = 2\nversions = "latest:2"')
        put(model / "10" / "model.toml", "threads = 4")
        result = find(model)
        assert [source.config.threads for source in result.models] == [4, 2]

    def test_versions_and_a_model_beside_them_are_ambiguous(self, model: Path) -> None:
        put(model / "model.onnx")
        with pytest.raises(ModelLoadError, match="both versions"):
            find(model)


class TestRepositories:
    def test_models_by_name(self, tmp_path: Path) -> None:
        put(tmp_path / "b" / "model.onnx")
        put(tmp_path / "a" / "1" / "model.onnx")
        put(tmp_path / "README.md", "x")
        (tmp_path / ".git").mkdir()
        assert served(find(tmp_path)) == [("a", "1"), ("b", "1")]

    def test_one_broken_model_does_not_hide_the_others(self, tmp_path: Path) -> None:
        put(tmp_path / "good" / "model.onnx")
        put(tmp_path / "broken" / "model.onnx", b"PK\x03\x04")
        put(tmp_path / "pickled" / "model.pkl", b"x")
        put(tmp_path / "typo" / "model.toml", "thread = 1")
        put(tmp_path / "typo" / "model.onnx")
        (tmp_path / "empty").mkdir()
        result = find(tmp_path)
        assert served(result) == [("good", "1")]
        reasons = {problem.name: problem.reason for problem in result.problems}
        assert sorted(reasons) == ["broken", "empty", "pickled", "typo"]
        assert "a zip archive" in reasons["broken"]
        assert "is empty" in reasons["empty"]
        assert "headrace convert" in reasons["pickled"]
        assert "did you mean 'threads'?" in reasons["typo"]

    def test_a_repository_of_broken_models_is_still_one(self, tmp_path: Path) -> None:
        put(tmp_path / "a" / "model.onnx", b"")
        result = find(tmp_path)
        assert not result.models
        assert [problem.name for problem in result.problems] == ["a"]

    def test_several_paths(self, tmp_path: Path) -> None:
        put(tmp_path / "one" / "a" / "model.onnx")
        lone = put(tmp_path / "lone.onnx")
        assert served(find(tmp_path / "one", lone)) == [("a", "1"), ("lone", "1")]

    def test_two_models_of_one_name(self, tmp_path: Path) -> None:
        put(tmp_path / "one" / "a" / "model.onnx")
        put(tmp_path / "two" / "a" / "model.onnx")
        with pytest.raises(ConfigError, match="two models are called 'a'"):
            find(tmp_path / "one", tmp_path / "two")

    def test_one_name_for_several_models(self, tmp_path: Path) -> None:
        put(tmp_path / "a" / "model.onnx")
        put(tmp_path / "b" / "model.onnx")
        with pytest.raises(ConfigError, match="repository of 2 models"):
            find(tmp_path, name="x")

    def test_a_lone_file_among_model_folders_is_ambiguous(self, tmp_path: Path) -> None:
        put(tmp_path / "lone.onnx")
        put(tmp_path / "a" / "1" / "model.onnx")
        with pytest.raises(ModelLoadError, match=r"holds a model \(lone\.onnx\) and folders"):
            find(tmp_path)

    def test_python_models_keep_what_they_like_beside_them(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "model.py", "")
        put(tmp_path / "m" / "weights" / "model.onnx")
        assert only(tmp_path / "m").format == "python"

    def test_configured_models_that_are_not_there_are_told(self, tmp_path: Path) -> None:
        put(tmp_path / "a" / "model.onnx")
        assert find(tmp_path, models={"a": {}, "aa": {}}).unused == ("aa",)


class TestLinks:
    def test_links_inside_the_repository_are_fine(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "..data" / "model.onnx")  # as Kubernetes mounts volumes
        (tmp_path / "m" / "1").symlink_to("..data")
        assert served(find(tmp_path / "m")) == [("m", "1")]

    @pytest.mark.parametrize(
        "link", ["m", "m/1", "m/1/model.onnx", "m/1/labels.txt", "m/model.toml"]
    )
    def test_links_out_of_the_repository_are_refused(self, tmp_path: Path, link: str) -> None:
        outside = tmp_path / "outside"
        put(outside / "m" / "1" / "model.onnx")
        put(outside / "m" / "1" / "labels.txt", "secret")
        put(outside / "m" / "model.toml", "threads = 1")
        root = tmp_path / "root"
        put(root / "good" / "model.onnx")
        if link != "m":
            put(root / "m" / "2" / "model.onnx")
            (root / "m" / "1").mkdir()
        if link == "m/1":
            (root / link).rmdir()
        (root / link).symlink_to(outside / link)
        result = find(root, defaults={"versions": "1"})
        assert served(result) == [("good", "1")]
        (problem,) = result.problems
        assert problem.name == "m"
        assert "symbolic link that leaves" in problem.reason
        assert "cp -rL" in problem.reason

    def test_links_in_circles(self, tmp_path: Path) -> None:
        put(tmp_path / "good" / "model.onnx")
        (tmp_path / "loop").symlink_to("loop")
        result = find(tmp_path)
        assert served(result) == [("good", "1")]
        assert "cannot read" in result.problems[0].reason

    def test_what_may_not_be_read_is_reported(self, anybodys_folder: Path) -> None:
        put(anybodys_folder / "good" / "model.onnx")
        put(anybodys_folder / "closed" / "model.onnx")
        put(anybodys_folder / "shut" / "model.onnx")
        (anybodys_folder / "closed").chmod(0)
        (anybodys_folder / "shut" / "model.onnx").chmod(0)
        script = textwrap.dedent(
            """
            import os, sys
            from pathlib import Path
            from headrace.config import Config
            from headrace.repository import huggingface
            from headrace.repository.layout import scan
            if os.geteuid() == 0:  # root may read everything; nobody may not
                os.setegid(65534)
                os.seteuid(65534)
            result = scan([Path(sys.argv[1])], config=Config())
            print([m.name for m in result.models], [p.name for p in result.problems])
            print(*(p.reason for p in result.problems))
            """
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(anybodys_folder)],
            capture_output=True,
            text=True,
            check=True,
        )
        first, second = done.stdout.splitlines()
        assert first == "['good'] ['closed', 'shut']"
        assert second.count("Permission denied") == 2

    @pytest.fixture
    def anybodys_folder(self) -> Iterator[Path]:
        """pytest's own folders cannot be entered by anybody else, whatever is in them."""
        folder = Path(tempfile.mkdtemp())
        folder.chmod(0o755)
        yield folder
        for entry in folder.iterdir():
            entry.chmod(0o700)
        shutil.rmtree(folder)
