"""What a server refuses to start with: one line that names it, a hint, an exit status."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from headrace.testing import onnx_models
from tests.integration.server_process import ServerProcess, serving
from tests.unit.repository.bert_models import TinyBert

ONNX = ("--runtime", "onnxruntime")


def refused(*arguments: object, script: str = "", env: Any = None) -> tuple[int, list[str]]:
    """Exit status and what was said; never a traceback."""
    with ServerProcess(*arguments, "--port", 0, script=script, env=env) as server:
        status = server.wait()
        assert not [line for line in server.lines if "Traceback" in line]
        return status, [line for line in server.lines if line.startswith(("headrace:", "hint:"))]


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"this is no model\n" * 1000)
    status, (error, hint) = refused(path)
    assert status == 1
    assert "model.onnx" in error
    assert hint.startswith("hint:")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.txt", b"text"),
        ("model.pkl", b"\x80\x04\x95"),
        ("model.pt", b"PK\x03\x04"),
        ("empty.onnx", b""),
    ],
)
def test_a_file_of_a_kind_that_nothing_here_runs(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    status, (error, *_) = refused(tmp_path / name)
    assert status == 1
    assert name in error


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    status, (error, *_) = refused(tmp_path / "nowhere.onnx")
    assert status in (1, 2)
    assert "nowhere.onnx" in error


def external(location: str) -> bytes:
    """A model whose weights are said to be in another file."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2], b"\0" * 8, raw=True)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "8"}.items():
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weights],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]
    )
    return model.SerializeToString()


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link", "hardlink"])
def test_weights_outside_of_the_model_are_not_read(tmp_path: Path, location: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"12345678")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    os.link(secret, folder / "hardlink")
    (folder / "model.onnx").write_bytes(external(location))
    status, (error, *_) = refused(folder / "model.onnx", *ONNX)
    assert status == 1
    assert location.rsplit("/", maxsplit=1)[-1] in error


def test_weights_inside_of_the_model_are(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(np.array([1, 2], dtype="<f4").tobytes())
    (tmp_path / "echo.onnx").write_bytes(external("weights"))
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    with serving(tmp_path / "echo.onnx", *ONNX, env=env) as server:
        tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}
        status, answer = server.json("POST", "/v2/models/echo/infer", {"inputs": [tensor]})
        assert (status, answer["outputs"][0]["data"]) == (200, [2.0, 4.0])


@pytest.mark.parametrize(
    ("package", "runtime", "hint"),
    [("tokenizers", "auto", "headrace[text]"), ("openvino", "openvino", "headrace[openvino]")],
)
def test_an_extra_that_is_not_installed_is_named(
    tmp_path: Path, package: str, runtime: str, hint: str
) -> None:
    """The package is there; the process is told that it is not."""
    if package == "tokenizers":
        model = TinyBert().save(tmp_path / "bert")
    else:
        model = tmp_path / "model.onnx"
        model.write_bytes(onnx_models.mlp())
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from headrace.cli.main import main\n"
        "sys.exit(main())\n"
    )
    env = {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    status, said = refused(model, "--runtime", runtime, script=script, env=env)
    assert status in (1, 2)
    assert package in said[0]
    assert hint in said[1]


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"HEADRACE_SERVER__LIMITS__MAX_BODY_BYTES": "0"}, "MAX_BODY_BYTES"),
        ({"HEADRACE_SERVER__LIMITS__HEADER_TIMEOUT_S": "soon"}, "HEADER_TIMEOUT_S"),
        ({"HEADRACE_SERVER__PRT": "1"}, "PRT"),
    ],
)
def test_a_setting_that_is_wrong(tmp_path: Path, env: dict[str, str], named: str) -> None:
    status, (error, *_) = refused(tmp_path / "nowhere.onnx", env=env)
    assert status == 2
    assert named in error
