"""Folders with a ``config.pbtxt``: what is found in them, and what is told of the rest."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import Config, ModelConfig
from headrace.errors import (
    ConfigError,
    HeadraceError,
    InvalidRequest,
    ModelLoadError,
    ModelNotFound,
    OperatorError,
)
from headrace.protos import model_config
from headrace.repository.control import discard, list_models, scan_model
from headrace.repository.triton.described import described
from headrace.repository.triton.schema import read
from headrace.repository.triton.text_format import parse
from headrace.testing.onnx_models import identity
from tests.unit.repository.model_files import find, only, put, served
from tests.unit.repository.triton.configurations import any_configuration

IDENTITY = identity("FP32")
ONNX = (
    'backend: "onnxruntime" max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: 4 } '
    'output { name: "y" data_type: TYPE_FP32 dims: 4 } '
)
ENSEMBLE = (
    'platform: "ensemble" max_batch_size: 8 input { name: "a" data_type: TYPE_FP32 dims: 4 } '
    'output { name: "b" data_type: TYPE_FP32 dims: 4 } ensemble_scheduling { step { '
    'model_name: "m" input_map { key: "x" value: "a" } output_map { key: "y" value: "b" } } }'
)


def model(root: Path, config: str, name: str = "m", file: str = "1/model.onnx") -> Path:
    put(root / name / "config.pbtxt", config)
    put(root / name / file, IDENTITY if file.endswith(".onnx") else "class TritonPythonModel: ...")
    return root / name


class TestModels:
    def test_the_folder_alone_and_in_its_repository(self, tmp_path: Path) -> None:
        folder = model(tmp_path, ONNX)
        for path in (tmp_path, folder):
            source = only(path)
            assert (source.name, source.version, source.format) == ("m", "1", "onnx")
            assert source.path == folder / "1" / "model.onnx"
            assert source.config.inputs[0].shape == (-1, 4)
            assert source.config.runtime == "onnxruntime"

    def test_triton_shows_its_own_defaults(self, tmp_path: Path) -> None:
        shown = only(model(tmp_path, ONNX + "dynamic_batching { }")).config.triton_config
        assert shown["name"] == "m"
        assert shown["platform"] == "onnxruntime_onnx"
        assert shown["default_model_filename"] == "model.onnx"
        assert shown["version_policy"] == {"latest": {"num_versions": 1}}
        assert shown["dynamic_batching"]["preferred_batch_size"] == [8]
        assert shown["input"][0]["dims"] == [4]
        assert [(g["name"], g["kind"], g["count"]) for g in shown["instance_group"]] == [
            ("m", "KIND_CPU", 2)
        ]
        assert shown["optimization"]["input_pinned_memory"] == {"enable": True}
        assert shown["parameters"] == {}

    def test_what_is_shown_is_a_message_again(self, tmp_path: Path) -> None:
        shown = only(model(tmp_path, ONNX)).config.triton_config
        message = ParseDict(shown, model_config()())
        assert message.max_batch_size == 8
        assert message.input[0].dims == [4]

    def test_what_it_leaves_out_is_the_files_to_tell(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "labels.txt", "a\nb")
        source = only(model(tmp_path, ""))
        assert source.config.inputs == ()
        assert source.config.runtime == "onnxruntime"
        assert "max_batch_size" not in source.config.triton_config

    def test_python_models_may_keep_other_files_beside_them(self, tmp_path: Path) -> None:
        folder = model(tmp_path, 'backend: "python"', file="1/model.py")
        put(folder / "1" / "weights.onnx", IDENTITY)
        source = only(tmp_path)
        assert (source.format, source.path.name) == ("python", "model.py")

    @pytest.mark.parametrize(
        ("config", "file"),
        [
            ('platform: "onnxruntime_onnx"', "1/model.onnx"),
            ('backend: "onnxruntime"', "1/other.onnx"),
            ('backend: "onnxruntime" default_model_filename: "x.onnx"', "1/x.onnx"),
            ('backend: "onnxruntime"', "1/model.onnx/model.onnx"),
            ('default_model_filename: "model.onnx"', "1/model.onnx"),
        ],
    )
    def test_where_the_file_is(self, tmp_path: Path, config: str, file: str) -> None:
        assert only(model(tmp_path, config, file=file)).path == tmp_path / "m" / file

    def test_version_policies(self, tmp_path: Path) -> None:
        folder = model(tmp_path, ONNX + "version_policy { specific { versions: [1, 3] } }")
        for version in (2, 3):
            put(folder / str(version) / "model.onnx", IDENTITY)
        assert served(find(tmp_path)) == [("m", "3"), ("m", "1")]

    @pytest.mark.parametrize("versions", [(), (1,), (1, 4)])
    def test_ensembles_need_no_version_folder(self, tmp_path: Path, versions: tuple[int]) -> None:
        put(tmp_path / "e" / "config.pbtxt", ENSEMBLE)
        for version in versions:
            (tmp_path / "e" / str(version)).mkdir()
        source = only(tmp_path)
        assert (source.format, source.version) == ("ensemble", str(max(versions, default=1)))
        assert source.path == tmp_path / "e" / "config.pbtxt"
        assert source.config.ensemble[0].model == "m"
        assert source.config.triton_config["instance_group"] == []

    def test_stronger_words_are_heard(self, tmp_path: Path) -> None:
        folder = model(tmp_path, ONNX + "instance_group { count: 2 }")
        put(folder / "model.toml", "instances = 3\n[batching]\nmax_batch_size = 4")
        weakest = {"instances": 7, "threads": 2}
        source = only(tmp_path, defaults=weakest)
        assert (source.config.instances, source.config.threads) == (3, 2)
        assert source.config.batching.max_batch_size == 4
        assert only(tmp_path, models={"m": {"instances": 5}}).config.instances == 5

    def test_notes_are_told_once_for_all_versions(self, tmp_path: Path) -> None:
        folder = model(tmp_path, ONNX + "version_policy { all { } } zork: 1")
        put(folder / "2" / "model.onnx", IDENTITY)
        (note,) = find(tmp_path).notes
        assert "there is no field 'zork'" in note


@given(any_configuration(), st.sampled_from(["", "onnxruntime", "python", "openvino"]))
def test_any_configuration_is_taken_or_refused(message: Any, backend: str) -> None:
    message.ClearField("name")
    message.backend, message.platform = backend, ""
    said = parse(text_format.MessageToString(message), where="c")
    with suppress(OperatorError):  # anything else would be a crash
        table = described(read(said, model_config().DESCRIPTOR, where="c"), Path("c"), "m", ())
        assert ParseDict(table.over(ModelConfig()).triton_config, model_config()()).name == "m"


class TestProblems:
    @pytest.mark.parametrize(
        ("config", "message", "hint"),
        [
            ('name: "other"', "unexpected directory name 'm' for model 'other'", "rename"),
            ('platform: "tensorrt_plan"', "not a backend that runs here", "the ONNX file"),
            ('backend: "pytorch"', "not a backend that runs here", "torch.onnx.export"),
            ('backend: "nobody"', "not a backend that runs here", "known here"),
            ('platform: "ensemble" backend: "python"', "expected nothing beside", ""),
            ('platform: "onnxruntime_onnx" backend: "python"', "does not go with backend", ""),
            ('backend: "openvino"', "has no model.xml: it holds model.onnx", "config.pbtxt"),
            ('backend: "python"', "has no model.py", ""),
            ("max_batch_size: many", "config.pbtxt:1: max_batch_size: expected a whole", ""),
            ("name", "config.pbtxt:1: expected ':' or '{'", ""),
        ],
    )
    def test_a_broken_one_does_not_hide_the_others(
        self, tmp_path: Path, config: str, message: str, hint: str
    ) -> None:
        folder = model(tmp_path, config)
        model(tmp_path, ONNX, name="fine")
        found = find(tmp_path)
        assert served(found) == [("fine", "1")]
        (problem,) = found.problems
        assert message in problem.error.message
        assert hint in problem.error.hint
        with pytest.raises((ConfigError, ModelLoadError)):
            find(folder)

    def test_a_link_out_is_not_followed(self, tmp_path: Path) -> None:
        outside = put(tmp_path / "outside.pbtxt", ONNX)
        folder = model(tmp_path / "models", ONNX)
        (folder / "config.pbtxt").unlink()
        (folder / "config.pbtxt").symlink_to(outside)
        (problem,) = find(tmp_path / "models").problems
        assert "leaves" in problem.error.message

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        folder = model(tmp_path, ONNX)
        (folder / "config.pbtxt").write_bytes(b'name: "m"\n\xff')
        with pytest.raises(ConfigError, match=r"config\.pbtxt:2: it is not UTF-8"):
            find(folder)


class TestExplicitControl:
    def explicit(self, *names: str) -> dict[str, object]:
        return {"model_control": "explicit", "load_models": names}

    @pytest.fixture
    def repository(self, tmp_path: Path) -> Path:
        for name in ("a", "b"):
            model(tmp_path, ONNX, name=name)
        model(tmp_path, "broken", name="c")
        return tmp_path

    def test_only_what_is_named(self, repository: Path) -> None:
        found = find(repository, server=self.explicit("b"))
        assert (served(found), found.problems) == ([("b", "1")], ())

    def test_none_or_all(self, repository: Path) -> None:
        nothing = find(repository, server=self.explicit())
        assert (nothing.models, nothing.problems) == ((), ())
        everything = find(repository, server=self.explicit("*"))
        assert (len(everything.models), len(everything.problems)) == (2, 1)

    def test_an_ensemble_brings_its_steps(self, repository: Path) -> None:
        put(repository / "e" / "config.pbtxt", ENSEMBLE.replace('"m"', '"a"'))
        put(repository / "f" / "config.pbtxt", ENSEMBLE.replace('"m"', '"e"'))
        found = find(repository, server=self.explicit("f"))
        assert [name for name, _ in served(found)] == ["a", "e", "f"]

    def test_a_name_that_is_not_there(self, repository: Path) -> None:
        (problem,) = find(repository, server=self.explicit("a", "z")).problems
        assert problem.name == "z"
        assert "failed to poll from model repository" in problem.reason

    def test_an_empty_repository_may_be_filled_later(self, tmp_path: Path) -> None:
        assert find(tmp_path, server={"model_control": "poll"}).models == ()
        with pytest.raises(ModelLoadError, match="is empty"):
            find(tmp_path)


class TestControl:
    @pytest.fixture
    def repository(self, tmp_path: Path) -> Path:
        root = tmp_path / "repository"
        model(root, ONNX, name="a")
        model(root, ONNX, name="b")
        model(root, "broken", name="broken")
        (root / "notes").mkdir()
        return root

    def test_names_of_everything_meant_as_a_model(self, repository: Path, tmp_path: Path) -> None:
        assert list_models([repository, tmp_path / "missing"]) == ("a", "b", "broken")
        assert list_models([repository / "a"]) == ()

    def test_one_model_again(self, repository: Path) -> None:
        assert served(scan_model([repository], "a", config=Config())) == [("a", "1")]
        put(repository / "a" / "2" / "model.onnx", IDENTITY)
        assert served(scan_model([repository], "a", config=Config())) == [("a", "2")]

    def test_a_broken_one_says_why(self, repository: Path) -> None:
        (problem,) = scan_model([repository], "broken", config=Config()).problems
        assert "expected ':'" in problem.reason

    def test_one_that_is_not_there(self, repository: Path) -> None:
        with pytest.raises(ModelNotFound, match="failed to poll from model repository"):
            scan_model([repository], "z", config=Config())

    def test_a_configuration_in_place_of_the_file(self, repository: Path) -> None:
        override = json.dumps({"backend": "onnxruntime", "max_batch_size": 3})
        (source,) = scan_model([repository], "a", config=Config(), override=override).models
        assert source.config.batching.max_batch_size == 3
        assert source.config.inputs == ()

    @pytest.mark.parametrize(
        "more", ["", "dynamic_batching { }", "sequence_batching { oldest { } }"]
    )
    def test_what_is_shown_can_be_sent_back(self, repository: Path, more: str) -> None:
        put(repository / "a" / "config.pbtxt", ONNX + "instance_group { count: 3 }" + more)
        (shown,) = scan_model([repository], "a", config=Config()).models
        override = json.dumps(shown.config.triton_config)
        (again,) = scan_model([repository], "a", config=Config(), override=override).models
        assert again.config.triton_config == shown.config.triton_config
        assert again.config.inputs == shown.config.inputs
        assert again.config.batching == shown.config.batching
        assert again.config.sequence == shown.config.sequence
        assert again.notes == ()

    def test_files_in_place_of_the_folder(self, repository: Path) -> None:
        found = scan_model(
            [repository],
            "a",
            config=Config(),
            override='{"backend": "onnxruntime"}',
            files={"file:7/model.onnx": IDENTITY},
        )
        (source,) = found.models
        assert source.version == "7"
        assert source.path.read_bytes() == IDENTITY
        assert not source.path.is_relative_to(repository)
        discard(found)
        assert not source.path.exists()
        discard(scan_model([repository], "b", config=Config()))
        assert (repository / "b" / "1" / "model.onnx").exists()

    @pytest.mark.parametrize(
        ("override", "files", "error", "message"),
        [
            (None, {"file:1/model.onnx": b"x"}, InvalidRequest, "configuration must be provided"),
            ("{}", {"file:../x": b"x"}, InvalidRequest, "is not a path within"),
            ("{}", {"file:/etc/x": b"x"}, InvalidRequest, "is not a path within"),
            ("{}", {"file:": b"x"}, InvalidRequest, "is not a path within"),
            ("[]", None, ConfigError, "not a JSON object"),
            ("{", None, ConfigError, "not a JSON object"),
            ('{"max_batch_size": "x"}', None, ConfigError, "max_batch_size: expected a whole"),
            ('{"name": "z"}', None, ModelLoadError, "unexpected directory name 'a'"),
        ],
    )
    def test_requests_that_cannot_be(
        self,
        repository: Path,
        override: str | None,
        files: dict[str, bytes] | None,
        error: type[HeadraceError],
        message: str,
    ) -> None:
        def scan() -> None:
            found = scan_model([repository], "a", config=Config(), override=override, files=files)
            raise found.problems[0].error

        with pytest.raises(error, match=message):
            scan()
