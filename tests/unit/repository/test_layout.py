"""What `headrace serve PATH` finds in files and folders, and what it says of nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.config import BatchConfig, Config, ModelConfig, QueueConfig
from headrace.errors import ConfigError, ModelLoadError
from headrace.repository.layout import scan
from tests.unit.repository.model_files import find, only, put, served


class TestFiles:
    def test_a_file_is_one_model_named_after_itself(self, tmp_path: Path) -> None:
        path = put(tmp_path / "digits.onnx")
        source = only(path)
        assert (source.name, source.version, source.format) == ("digits", "1", "onnx")
        assert (source.path, source.folder, source.task) == (path, tmp_path, "tensor")

    def test_a_file_called_model_is_named_after_its_folder(self, tmp_path: Path) -> None:
        assert only(put(tmp_path / "digits" / "model.onnx")).name == "digits"

    def test_a_file_in_a_version_folder_keeps_name_and_version(self, tmp_path: Path) -> None:
        source = only(put(tmp_path / "digits" / "3" / "model.onnx"))
        assert (source.name, source.version) == ("digits", "3")

    def test_a_relative_path_works(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(tmp_path / "digits" / "model.onnx")
        monkeypatch.chdir(tmp_path / "digits")
        assert only(Path("model.onnx")).name == "digits"
        assert only(Path()).name == "digits"

    def test_a_given_name_wins(self, tmp_path: Path) -> None:
        assert only(put(tmp_path / "digits.onnx"), name="zahlen").name == "zahlen"

    def test_python_and_openvino_files(self, tmp_path: Path) -> None:
        assert only(put(tmp_path / "echo" / "model.py", "")).format == "python"
        put(tmp_path / "vino" / "model.bin", b"\0")
        assert only(put(tmp_path / "vino" / "model.xml", "<net/>")).format == "openvino"

    def test_openvino_needs_its_weights(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match=r"model\.bin is missing"):
            find(put(tmp_path / "model.xml", "<net/>"))

    def test_one_of_several_can_be_chosen(self, tmp_path: Path) -> None:
        put(tmp_path / "a.onnx")
        assert only(put(tmp_path / "b.onnx")).name == "b"

    def test_model_toml_and_labels_beside_the_folders_model_count(self, tmp_path: Path) -> None:
        put(tmp_path / "model.toml", "threads = 3")
        put(tmp_path / "labels.txt", "cat\ndog\n")
        source = only(put(tmp_path / "model.onnx"))
        assert source.config.threads == 3
        assert source.task_options == {"labels": ["cat", "dog"]}

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("model.joblib", "headrace convert"),
            ("model.pkl", "headrace convert"),
            ("model.pt", "torch.onnx.export"),
            ("pytorch_model.bin", "torch.onnx.export"),
            ("model.h5", "model.export"),
            ("model.tflite", "tf2onnx"),
        ],
    )
    def test_other_formats_say_how_to_convert(self, tmp_path: Path, name: str, hint: str) -> None:
        path = put(tmp_path / name, b"anything")
        for given in (path, tmp_path):
            with pytest.raises(ModelLoadError, match=name) as caught:
                find(given)
            assert hint in caught.value.hint

    def test_pickles_are_never_opened(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match="never opens one"):
            find(put(tmp_path / "m.pickle", b"\x80\x04"))

    def test_a_file_that_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match="is not a model: it looks like text"):
            find(put(tmp_path / "README.md", "hello"))

    def test_a_broken_onnx_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match="is not an ONNX model"):
            find(put(tmp_path / "model.onnx", b"\x80\x04\x95 pickle"))

    def test_a_missing_path_lists_what_is_there(self, tmp_path: Path) -> None:
        put(tmp_path / "model.onnx")
        with pytest.raises(ModelLoadError, match="does not exist") as caught:
            find(tmp_path / "modle.onnx")
        assert "model.onnx" in caught.value.hint
        with pytest.raises(ModelLoadError, match="does not exist"):
            find(tmp_path / "no" / "where")
        with pytest.raises(ModelLoadError, match="cannot read"):
            find(tmp_path / ("x" * 300))

    def test_a_link_to_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").symlink_to("gone")
        with pytest.raises(ModelLoadError, match="symbolic link to nothing"):
            find(tmp_path / "model.onnx")

    @pytest.mark.parametrize("name", ["a/b", "a\nb", " a", "..", "x" * 300])
    def test_names_that_cannot_be(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ConfigError, match="cannot be the name"):
            find(put(tmp_path / "m.onnx"), name=name)

    def test_no_path_at_all(self) -> None:
        with pytest.raises(ConfigError, match="no model was given"):
            find()


class TestModelFolders:
    def test_a_folder_with_a_model_file(self, tmp_path: Path) -> None:
        put(tmp_path / "digits" / "model.onnx")
        source = only(tmp_path / "digits")
        assert (source.name, source.version) == ("digits", "1")

    def test_any_name_will_do_if_it_is_the_only_one(self, tmp_path: Path) -> None:
        put(tmp_path / "ocr" / "ch_rec_infer.onnx")
        put(tmp_path / "ocr" / "keys.txt", "a\nb")
        assert only(tmp_path / "ocr").path.name == "ch_rec_infer.onnx"

    def test_model_onnx_wins_over_other_onnx_files(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "model.onnx")
        put(tmp_path / "m" / "model_quantized.onnx")
        assert only(tmp_path / "m").path.name == "model.onnx"

    def test_several_models_are_ambiguous(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "a.onnx")
        put(tmp_path / "m" / "b.onnx")
        with pytest.raises(ModelLoadError, match=r"several models: a\.onnx, b\.onnx"):
            find(tmp_path / "m")

    def test_a_named_runtime_decides_between_formats(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "model.onnx")
        put(tmp_path / "m" / "model.py", "")
        with pytest.raises(ModelLoadError, match=r"model\.onnx, model\.py") as caught:
            find(tmp_path / "m")
        assert 'runtime = "python"' in caught.value.hint
        put(tmp_path / "m" / "model.toml", 'runtime = "python"')
        assert only(tmp_path / "m").format == "python"
        put(tmp_path / "m" / "model.toml", 'runtime = "onnxruntime"')
        assert only(tmp_path / "m").format == "onnx"

    def test_the_null_runtime_needs_no_model(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "model.toml", 'runtime = "null"')
        assert only(tmp_path / "m").format == "null"

    def test_xml_without_weights_is_not_taken_for_a_model(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "model.onnx")
        put(tmp_path / "m" / "pom.xml", "<project/>")
        assert only(tmp_path / "m").format == "onnx"

    def test_columns_make_it_tabular(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "model.onnx")
        put(tmp_path / "m" / "columns.json", '["age", "income"]')
        source = only(tmp_path / "m")
        assert (source.task, source.task_options) == ("tabular", {"columns": ["age", "income"]})

    @pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1, 2]", "[" * 100_000])
    def test_columns_that_are_no_list_of_names(self, tmp_path: Path, content: str) -> None:
        put(tmp_path / "m" / "model.onnx")
        put(tmp_path / "m" / "columns.json", content)
        with pytest.raises(ModelLoadError, match="not a JSON list of columns"):
            find(tmp_path / "m")

    def test_labels_that_are_not_text(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "model.onnx")
        put(tmp_path / "m" / "labels.txt", b"\xff\xfe")
        with pytest.raises(ModelLoadError, match="not UTF-8"):
            find(tmp_path / "m")

    def test_an_empty_folder_and_one_with_other_things(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match="is empty"):
            find(tmp_path)
        put(tmp_path / "notes.txt", "x")
        put(tmp_path / "pictures" / "cat.png", "x")
        with pytest.raises(ModelLoadError, match=r"only notes\.txt, pictures/"):
            find(tmp_path)

    def test_a_task_from_the_configuration_wins(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "model.onnx")
        put(tmp_path / "m" / "labels.txt", "a\nb")
        put(tmp_path / "m" / "model.toml", 'task = "image-classification"')
        source = only(tmp_path / "m")
        assert source.task == "image-classification"
        assert source.task_options == {"labels": ["a", "b"]}


class TestHubFolders:
    """Folders as the Hugging Face hub keeps them; test_huggingface.py looks closer."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        config = {
            "model_type": "bert",
            "architectures": ["BertModel"],
            "vocab_size": 10,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 32,
            "type_vocab_size": 2,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
        }
        put(tmp_path / "root" / "hub" / "config.json", json.dumps(config))
        put(tmp_path / "root" / "hub" / "tokenizer.json", "{}")
        put(tmp_path / "root" / "hub" / "model.safetensors", b"not opened here")
        return tmp_path / "root" / "hub"

    def test_weights_without_a_graph(self, folder: Path) -> None:
        for given in (folder, folder.parent, folder / "model.safetensors"):
            source = only(given)
            assert (source.name, source.format) == ("hub", "safetensors")
            assert source.task == "text-embedding"
            assert source.task_options["tokenizer"] == str(folder / "tokenizer.json")

    def test_another_task_from_the_configuration_drops_what_was_detected(
        self, folder: Path
    ) -> None:
        put(folder / "model.toml", 'task = "tensor"')
        source = only(folder)
        assert (source.task, source.task_options) == ("tensor", {})

    def test_an_export_in_a_folder_of_its_own(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        put(folder / "onnx" / "model.onnx")
        source = only(folder)
        assert (source.name, source.format) == ("hub", "onnx")
        assert source.path == folder / "onnx" / "model.onnx"

    def test_an_unsupported_family_is_a_problem_of_that_model(self, folder: Path) -> None:
        put(folder / "config.json", '{"model_type": "marian"}')
        put(folder.parent / "good" / "model.onnx")
        result = find(folder.parent)
        assert served(result) == [("good", "1")]
        assert "marian" in result.problems[0].reason
        with pytest.raises(ModelLoadError, match="marian"):
            find(folder / "model.safetensors")

    def test_weights_alone_are_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match="is not a model"):
            find(put(tmp_path / "model.safetensors", b"x"))


class TestConfiguration:
    def test_the_strongest_comes_last(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "model.onnx")
        put(
            tmp_path / "m" / "model.toml",
            """
            threads = 2
            instances = 2
            task_options = { labels = ["x"], pooling = "mean" }
            [batching]
            max_batch_size = 8
            """,
        )
        config = Config(
            defaults=ModelConfig(
                threads=1,
                runtime="openvino",
                batching=BatchConfig(max_batch_tokens=512, max_batch_size=4),
                queue=QueueConfig(timeout_s=5),
            ),
            models={"m": ModelConfig(instances=3, task_options={"pooling": "cls"})},
        )
        (source,) = scan([tmp_path / "m"], config=config).models
        assert source.config == ModelConfig(
            threads=2,
            instances=3,
            runtime="openvino",
            batching=BatchConfig(max_batch_tokens=512, max_batch_size=8),
            queue=QueueConfig(timeout_s=5),
            task_options={"labels": ["x"], "pooling": "cls"},
        )

    def test_a_file_may_go_back_to_the_default(self, tmp_path: Path) -> None:
        put(tmp_path / "m" / "model.onnx")
        put(tmp_path / "m" / "model.toml", 'runtime = "auto"')
        assert only(tmp_path / "m", defaults={"runtime": "openvino"}).config.runtime == "auto"

    @pytest.mark.parametrize(
        ("content", "complaint", "hint"),
        [
            ("thraeds = 1", "unknown field 'thraeds'", "did you mean 'threads'?"),
            ("[batching]\nmax_batch = 1", "'batching.max_batch'", "did you mean 'max_batch_size'?"),
            ("zzz = 1", "unknown field 'zzz'", "known: aliases, allow_nonfinite, batch_inputs"),
            ('threads = "two"', "threads: Expected int, got str", ""),
            ("threads = -1", "threads: Expected int >= 0", ""),
            ("batching = 3", "batching: Expected object, got int", ""),
            ("[queue]\ntimeout_s = 0", "queue.timeout_s: Expected float > 0", ""),
            ("threads = ", "is not TOML", ""),
            ("a = " + "[" * 20_000, "is not TOML", ""),
            (b"\xff", "is not TOML", ""),
            ("x" * 1_100_000, "larger than", ""),
        ],
    )
    def test_mistakes_name_file_field_and_remedy(
        self, tmp_path: Path, content: str | bytes, complaint: str, hint: str
    ) -> None:
        put(tmp_path / "m" / "model.onnx")
        path = put(tmp_path / "m" / "model.toml", content)
        with pytest.raises(ConfigError) as caught:
            find(tmp_path / "m")
        assert str(path) in caught.value.message
        assert complaint in caught.value.message
        assert hint in caught.value.hint


def test_scanning_imports_nothing_heavy() -> None:
    script = (
        "import sys, headrace.repository.layout, headrace.repository.huggingface\n"
        "heavy = {'onnx', 'onnxruntime', 'openvino', 'tokenizers', 'safetensors', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
