"""The messages: compiled as written, and the numbers that others have published."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from headrace import protos

FOLDER = Path(protos.__file__).parent


def described(compiled: bytes) -> dict[str, Any]:
    files = descriptor_pb2.FileDescriptorSet.FromString(compiled).file
    return {file.name: file for file in files}


def test_the_descriptors_are_those_of_the_files(tmp_path: Path) -> None:
    """``make protos`` after a change of a .proto file."""
    target = tmp_path / "compiled"
    names = sorted(path.name for path in FOLDER.glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER}", "--include_imports"]
    subprocess.run([*command, f"--descriptor_set_out={target}", *names], check=True)
    kept = described((FOLDER / "descriptors.binpb").read_bytes())
    assert kept == described(target.read_bytes())
    assert sorted(kept) == names


def fields(message: Any) -> dict[str, tuple[int, int, bool]]:
    """Name -> number, type, whether it repeats."""
    return {f.name: (f.number, f.type, f.is_repeated) for f in message.fields}


@pytest.mark.parametrize("theirs", [service_pb2, model_config_pb2], ids=["service", "config"])
def test_whatever_tritons_client_knows_has_the_same_number_here(theirs: Any) -> None:
    for name, message in theirs.DESCRIPTOR.message_types_by_name.items():
        ours = fields(protos.message(f"inference.{name}").DESCRIPTOR)
        for field, said in fields(message).items():
            assert ours[field] == said, f"{name}.{field}"


def test_every_method_of_tritons_client_is_in_the_service() -> None:
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    ours = protos.pool().FindServiceByName("inference.GRPCInferenceService")
    for name, method in theirs.methods_by_name.items():
        here = ours.methods_by_name[name]
        assert here.input_type.full_name == method.input_type.full_name
        assert here.output_type.full_name == method.output_type.full_name


def test_both_can_live_in_one_process() -> None:
    """They have the same names, so ours are in a pool of their own."""
    ours = protos.message("inference.ModelInferRequest")(model_name="m", id="1")
    theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert (theirs.model_name, theirs.id) == ("m", "1")


def test_a_name_that_is_none() -> None:
    with pytest.raises(KeyError):
        protos.message("inference.Nothing")
