"""The messages of gRPC and of ``config.pbtxt``, as classes of the protobuf library.

The ``.proto`` files beside this one are the source; ``make protos`` compiles them into
``descriptors.binpb``, and a test compares the two. The classes live in a descriptor pool of
their own: in the default one a program that also imports a client of the same protocol would
define every name twice.

``google.protobuf`` is imported when a message is first asked for, because a server without gRPC
and without a ``config.pbtxt`` never needs it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

_DESCRIPTORS = Path(__file__).with_name("descriptors.binpb")


@cache
def pool() -> DescriptorPool:
    """Every file, message and service described here."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool

    found = DescriptorPool()
    for file in FileDescriptorSet.FromString(_DESCRIPTORS.read_bytes()).file:
        found.AddSerializedFile(file.SerializeToString())
    return found


@cache
def message(name: str) -> Any:
    """The class of a message by its full name, such as ``inference.ModelInferRequest``.

    Raises:
        KeyError: there is none.
    """
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(pool().FindMessageTypeByName(name))


def model_config() -> Any:
    """The class of ``inference.ModelConfig``."""
    return message("inference.ModelConfig")
