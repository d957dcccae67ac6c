"""Folders of other servers: what comes of them, and what is said of the rest."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.main import main
from headrace.errors import ConfigError, HeadraceError, ModelLoadError
from headrace.repository.importing.detect import read
from headrace.repository.importing.plan import ModelPlan, to_toml, write
from headrace.testing.onnx_models import identity
from tests.unit.repository.model_files import find, only, put

IDENTITY = identity("FP32")


def settings(folder: Path, **fields: Any) -> Path:
    return put(folder / "model-settings.json", json.dumps(fields))


def archive(path: Path, file: str = "net.onnx", content: bytes = IDENTITY, **model: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = {"model": {"modelName": path.stem, "serializedFile": file, **model}}
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        if file:
            opened.writestr(file, content)
    return path


def one(path: Path) -> ModelPlan:
    (model,) = read(path).models
    return model


class TestMlserver:
    def test_an_mlflow_model_with_an_onnx_flavour(self, tmp_path: Path) -> None:
        settings(
            tmp_path / "m",
            name="iris",
            implementation="mlserver_mlflow.MLflowRuntime",
            parameters={"uri": "./mlflow", "version": "v3.1"},
            max_batch_size=16,
            max_batch_time=0.5,
            cache_enabled=True,
        )
        put(
            tmp_path / "m" / "mlflow" / "MLmodel",
            "flavors:\n  onnx:\n    code: null\n    data: net.onnx\n"
            "  python_function:\n    data: x\n",
        )
        put(tmp_path / "m" / "mlflow" / "net.onnx", IDENTITY)
        plan = read(tmp_path)
        (model,) = plan.models
        assert (plan.kind, model.name, model.version) == ("MLServer", "iris", "3")
        assert model.source == str(tmp_path / "m" / "mlflow" / "net.onnx")
        (note,) = model.notes
        assert "max_batch_time is not carried over: a batch never waits" in note
        write(plan, tmp_path / "out")
        source = only(tmp_path / "out")
        assert (source.name, source.version, source.format) == ("iris", "3", "onnx")
        assert source.config.batching.max_batch_size == 16
        assert source.config.response_cache

    def test_weights_beside_the_model_come_along(self, tmp_path: Path) -> None:
        settings(tmp_path, name="m", implementation="my.Onnx", parameters={"uri": "net.onnx"})
        put(tmp_path / "net.onnx", IDENTITY)
        put(tmp_path / "net.onnx.data", "weights")
        put(tmp_path / "other.txt", "no")
        write(read(tmp_path), tmp_path / "out")
        there = sorted(path.name for path in (tmp_path / "out" / "m" / "1").iterdir())
        assert there == ["model.onnx", "net.onnx.data"]

    @pytest.mark.parametrize(
        ("implementation", "uri", "obstacle", "hint"),
        [
            ("mlserver_sklearn.SKLearnModel", "./m.joblib", "is a Python pickle", "convert"),
            ("mlserver_sklearn.SKLearnModel", "", "is a Python pickle", "headrace convert"),
            ("mlserver_xgboost.XGBoostModel", "./m.bst", "library that trained it", "onnxmltools"),
            ("mlserver_mlflow.MLflowRuntime", ".", "has no ONNX flavour", "mlflow.onnx"),
            ("mlserver_huggingface.HuggingFaceRuntime", "", "hub", "headrace pull"),
            ("models.Mine", "", "is a Python class written for MLServer", "model.py"),
            ("", "", "names no implementation", ""),
        ],
    )
    def test_what_cannot_be_served(
        self, tmp_path: Path, implementation: str, uri: str, obstacle: str, hint: str
    ) -> None:
        settings(tmp_path, name="m", implementation=implementation, parameters={"uri": uri})
        model = one(tmp_path)
        assert obstacle in model.obstacle
        assert hint in model.hint

    def test_the_servers_own_settings(self, tmp_path: Path) -> None:
        settings(tmp_path / "m", name="m", implementation="x.Y")
        said = {"http_port": 9000, "host": "0.0.0.0", "debug": True, "cors_settings": {}}
        put(tmp_path / "settings.json", json.dumps(said | {"load_models_at_startup": False}))
        plan = read(tmp_path)
        server = plan.server["server"]
        assert (server["port"], server["host"]) == (9000, "0.0.0.0")
        assert server["model_control"] == "explicit"
        (note,) = plan.notes
        assert "cors_settings is not carried over" in note


class TestTorchserve:
    def test_an_archive_with_onnx(self, tmp_path: Path) -> None:
        archive(tmp_path / "store" / "net.mar", modelVersion="2.0", handler="image_classifier")
        said = {"net": {"2.0": {"marName": "net.mar", "batchSize": 4, "responseTimeout": 12}}}
        put(
            tmp_path / "config.properties",
            "# ours\ninference_address=http://0.0.0.0:8085\nmodel_store=store\n"
            f"job_queue_size = 77\nmodels={json.dumps(said)}\nfoo=\\\n  bar\n",
        )
        plan = read(tmp_path)
        (model,) = plan.models
        assert (plan.kind, model.name, model.version) == ("TorchServe", "net", "2")
        assert any("handler is not carried over" in note for note in model.notes)
        assert [note.partition(": ")[2] for note in plan.notes] == [
            "foo is not carried over: there is no setting like it"
        ]
        write(plan, tmp_path / "out")
        source = only(tmp_path / "out")
        assert (source.name, source.version) == ("net", "2")
        assert source.path.read_bytes() == IDENTITY
        assert source.config.batching.max_batch_size == 4
        assert source.config.queue.timeout_s == 12
        assert plan.server["server"] == {"host": "0.0.0.0", "port": 8085}
        assert plan.server["defaults"] == {"queue": {"max_queue_size": 77}}

    @pytest.mark.parametrize(
        ("file", "obstacle", "hint"),
        [
            ("net.pt", "is a Python pickle", "torch.onnx.export"),
            ("", "holds code only", "model.py"),
            ("net.bin", "needs TorchServe", "ONNX"),
        ],
    )
    def test_what_cannot_be_served(
        self, tmp_path: Path, file: str, obstacle: str, hint: str
    ) -> None:
        model = one(archive(tmp_path / "a.mar", file))
        assert obstacle in model.obstacle
        assert hint in model.hint

    def test_one_broken_archive_does_not_hide_the_others(self, tmp_path: Path) -> None:
        put(tmp_path / "broken.mar", "no zip")
        archive(tmp_path / "fine.mar")
        broken, fine = read(tmp_path).models
        assert (bool(broken.obstacle), fine.obstacle) == (True, "")

    def test_load_models_chooses(self, tmp_path: Path) -> None:
        for name in ("a", "b", "c"):
            archive(tmp_path / f"{name}.mar")
        put(tmp_path / "config.properties", "load_models=a.mar, x=c.mar\n")
        assert [model.name for model in read(tmp_path).models] == ["a", "c"]

    def test_a_name_cannot_leave_the_folder(self, tmp_path: Path) -> None:
        archive(tmp_path / "a.mar", modelName="../../evil")
        with pytest.raises(ConfigError, match="cannot be the name of a model"):
            write(read(tmp_path), tmp_path / "out")
        assert not (tmp_path.parent / "evil").exists()

    @pytest.mark.parametrize("line", ["no assignment", "job_queue_size=many"])
    def test_broken_properties(self, tmp_path: Path, line: str) -> None:
        put(tmp_path / "config.properties", line)
        with pytest.raises(ConfigError, match=r"config\.properties"):
            read(tmp_path)


class TestTensorflowServing:
    CONFIG = (
        'model_config_list: { config: { name: "half", base_path: "/models/half", '
        'model_platform: "tensorflow", model_version_policy { specific { versions: 42 } } } '
        'config { name: "gone" base_path: "/models/gone" } }'
    )

    def test_what_was_converted_is_served(self, tmp_path: Path) -> None:
        put(tmp_path / "models.config", self.CONFIG)
        put(tmp_path / "half" / "42" / "model.onnx", IDENTITY)
        half, gone = read(tmp_path).models
        assert (half.version, half.settings) == ("42", {"versions": "42"})
        assert "model_platform is not carried over" in half.notes[0]
        assert "has no version folders" in gone.obstacle

    def test_a_saved_model_needs_converting(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "3" / "saved_model.pb", b"x")
        model = one(tmp_path)
        assert (model.name, model.version) == ("m", "3")
        assert "SavedModel" in model.obstacle
        assert "tf2onnx.convert" in model.hint


class TestTriton:
    def test_it_is_served_as_it_is(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "config.pbtxt", 'backend: "onnxruntime" zork: 1')
        put(tmp_path / "m" / "1" / "model.onnx", IDENTITY)
        put(tmp_path / "t" / "config.pbtxt", 'backend: "tensorrt"')
        plan = read(tmp_path)
        assert [(m.name, bool(m.obstacle)) for m in plan.models] == [("m", False), ("t", True)]
        assert "zork" in plan.models[0].notes[0]
        assert plan.as_it_is == f"headrace serve --model-repository={tmp_path}"


class TestCommand:
    def test_it_writes_a_repository_and_says_how_to_serve_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        archive(tmp_path / "in" / "net.mar")
        out = tmp_path / "out"
        assert main(["import", str(tmp_path / "in")]) == 0
        assert not out.exists()
        assert main(["import", str(tmp_path / "in"), "--out", str(out)]) == 0
        assert f"headrace serve {out}" in capsys.readouterr().out.splitlines()[-1]
        assert [source.name for source in find(out).models] == ["net"]
        assert main(["import", str(tmp_path / "in"), "--out", str(out)]) == 2  # not empty

    def test_nothing_that_can_be_served_is_a_failure(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings(tmp_path, name="m", implementation="x.Y")
        assert main(["import", str(tmp_path)]) == 1
        assert "nothing of it can be served" in capsys.readouterr().out

    @pytest.mark.parametrize("content", ["", "model.onnx", "readme.txt"])
    def test_what_is_not_known(self, tmp_path: Path, content: str) -> None:
        if content:
            put(tmp_path / content)
        with pytest.raises(ModelLoadError, match="is no repository of Triton, MLServer"):
            read(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[]", '{"a": ' * 100_000])
    def test_files_that_are_not_json(self, tmp_path: Path, text: str) -> None:
        put(tmp_path / "model-settings.json", text)
        with pytest.raises(HeadraceError, match=r"model-settings\.json is not"):
            read(tmp_path)


def test_toml_reads_back() -> None:
    import tomllib

    table = {
        "a": 1,
        "b c": 'x"\n',
        "list": ["y", 2, True],
        "server": {"port": 1, "limits": {"max": 2.5}},
        "empty": {},
    }
    without_empty = {key: value for key, value in table.items() if key != "empty"}
    assert tomllib.loads(to_toml(table)) == without_empty
