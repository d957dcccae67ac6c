"""The compiled messages: equal to their source, and to what clients were built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc_tools.protoc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from headrace import protos

FOLDER = Path(protos.__file__).parent


def test_the_descriptors_are_what_the_sources_say(tmp_path: Path) -> None:
    compiled = tmp_path / "descriptors.binpb"
    sources = sorted(FOLDER.glob("*.proto"))
    status = grpc_tools.protoc.main(
        [
            "protoc",
            f"-I{FOLDER}",
            "--include_imports",
            f"--descriptor_set_out={compiled}",
            *map(str, sources),
        ]
    )
    assert status == 0
    expected = FileDescriptorSet.FromString(compiled.read_bytes())
    there = FileDescriptorSet.FromString((FOLDER / "descriptors.binpb").read_bytes())
    assert there == expected, "run `make protos`"
    assert {file.name for file in there.file} == {source.name for source in sources}


def fields_of(message: Any) -> dict[str, tuple[Any, ...]]:
    return {
        field.name: (field.number, field.type, field.is_repeated, kind_of(field))
        for field in message.fields
    }


def kind_of(field: Any) -> str:
    kind = field.message_type or field.enum_type
    return kind.full_name if kind else ""


def messages_of(container: Any) -> list[Any]:
    found = []
    for message in container.values():
        found += [message, *messages_of(message.nested_types_by_name)]
    return found


def published(*files: Any) -> list[Any]:
    return [m for file in files for m in messages_of(file.DESCRIPTOR.message_types_by_name)]


@pytest.mark.parametrize(
    "message",
    published(service_pb2, model_config_pb2, health_pb2, reflection_pb2),
    ids=lambda message: message.full_name,
)
def test_every_field_has_the_number_and_type_that_clients_use(message: Any) -> None:
    ours = protos.pool().FindMessageTypeByName(message.full_name)
    theirs = fields_of(message)
    assert {name: fields_of(ours)[name] for name in theirs} == theirs


@pytest.mark.parametrize(
    "enum",
    [
        *model_config_pb2.DESCRIPTOR.enum_types_by_name.values(),
        *[e for m in published(model_config_pb2, health_pb2) for e in m.enum_types],
    ],
    ids=lambda enum: enum.full_name,
)
def test_every_value_has_its_number(enum: Any) -> None:
    ours = protos.pool().FindEnumTypeByName(enum.full_name)
    assert {v.name: v.number for v in ours.values} == {v.name: v.number for v in enum.values}


def test_every_method_is_there() -> None:
    ours = protos.pool().FindServiceByName("inference.GRPCInferenceService")
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    def methods(service: Any) -> dict[str, tuple[str, str]]:
        return {m.name: (m.input_type.full_name, m.output_type.full_name) for m in service.methods}

    assert methods(ours) == methods(theirs)


def test_what_kserve_has_and_triton_has_not() -> None:
    for name, fields in {
        "RepositoryModelLoadResponse": {"model_name": 1, "isLoaded": 2},
        "RepositoryModelUnloadResponse": {"model_name": 1, "isUnloaded": 2},
    }.items():
        message = protos.pool().FindMessageTypeByName(f"inference.{name}")
        assert {field.name: field.number for field in message.fields} == fields


def test_the_default_pool_is_left_to_clients() -> None:
    ours = protos.message("inference.ModelInferRequest").DESCRIPTOR
    default = descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
    assert ours.file.pool is not default.file.pool


def test_a_message_that_is_not_there() -> None:
    with pytest.raises(KeyError):
        protos.message("inference.Nothing")
