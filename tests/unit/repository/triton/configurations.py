"""Any message ModelConfig at all, likely or not."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from headrace.protos import model_config


def any_configuration() -> st.SearchStrategy[Any]:
    def made(values: dict[str, object]) -> Any:
        message = model_config()()
        fill(message, values)
        return message

    return messages_of(model_config().DESCRIPTOR).map(made)


def values_of(field: FieldDescriptor) -> st.SearchStrategy[object]:
    if field.message_type is not None:
        return messages_of(field.message_type)
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    bits = {1: 31, 2: 63, 3: 32, 4: 64}.get(field.cpp_type)
    if bits is not None:
        return st.integers(-(2**bits) if field.cpp_type < 3 else 0, 2**bits - 1)
    if field.cpp_type == 7:
        return st.booleans()
    if field.cpp_type == 9:
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    return st.integers(-1000, 1000).map(lambda number: number / 8)  # exact in 32 bits


def messages_of(kind: Descriptor) -> st.SearchStrategy[dict[str, object]]:
    if not kind.fields:
        return st.just({})
    chosen = st.lists(st.sampled_from(list(kind.fields)), max_size=4, unique_by=lambda f: f.name)

    def drawn(fields: list[FieldDescriptor]) -> st.SearchStrategy[dict[str, object]]:
        one_of = {f.containing_oneof.name: f for f in fields if f.containing_oneof}
        kept = [f for f in fields if not f.containing_oneof] + list(one_of.values())
        return st.fixed_dictionaries(
            {
                f.name: st.lists(values_of(f), max_size=3) if f.is_repeated else values_of(f)
                for f in kept
            }
        )

    return chosen.flatmap(drawn)


def fill(message: object, values: dict[str, object]) -> None:
    for name, value in values.items():
        field = message.DESCRIPTOR.fields_by_name[name]  # type: ignore[attr-defined]
        target = getattr(message, name)
        items = value if isinstance(value, list) else [value]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"].message_type
            for entry in items:
                assert isinstance(entry, dict)
                key = entry.get("key", field.message_type.fields_by_name["key"].default_value)
                if inner is None:
                    target[key] = entry.get("value", "")
                else:
                    target[key].Clear()
                    fill(target[key], entry.get("value", {}))
        elif isinstance(value, list):
            for item in value:
                fill(target.add(), item) if field.message_type else target.append(item)
        elif field.message_type is not None:
            target.SetInParent()
            fill(target, value)  # type: ignore[arg-type]
        else:
            setattr(message, name, value)
