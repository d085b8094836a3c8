"""Which fields of a Protobuf message are read: by number for the compiled scanner, and as a type of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pool, message_factory, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FeatureSet, FieldDescriptorProto, FileDescriptorProto

from consumers.codecs.fields import Reject
from consumers.codecs.scan import BOOL, FLOAT, INTEGER, MISSING, OTHER, TEXT
from consumers.record import Bytes1, Int64s

VARINT, EIGHT, SIZED, FOUR = 0, 1, 2, 5
"""Wire types."""

DOUBLE, SINGLE, INT64, UINT64, INT32, FIXED64, FIXED32, BOOLEAN, STRING = range(1, 10)
TIMESTAMP, BYTES, UINT32, ENUM, SFIXED32, SFIXED64, SINT32, SINT64 = range(11, 19)
"""FieldDescriptorProto.Type, for compiled loops. The only messages that are values are timestamps, and wrappers, whose
code is that of what they wrap."""

_INT32, _INT64 = (-(2**31), 2**31 - 1), (-(2**63), 2**63 - 1)
_SCALARS = {
    DOUBLE: (EIGHT, FLOAT, *_INT64),
    SINGLE: (FOUR, FLOAT, *_INT64),
    INT64: (VARINT, INTEGER, *_INT64),
    UINT64: (VARINT, INTEGER, 0, 2**63 - 1),
    INT32: (VARINT, INTEGER, *_INT32),
    FIXED64: (EIGHT, INTEGER, 0, 2**63 - 1),
    FIXED32: (FOUR, INTEGER, 0, 2**32 - 1),
    BOOLEAN: (VARINT, BOOL, 0, 1),
    STRING: (SIZED, TEXT, *_INT64),
    TIMESTAMP: (SIZED, INTEGER, *_INT64),
    BYTES: (SIZED, OTHER, *_INT64),
    UINT32: (VARINT, INTEGER, 0, 2**32 - 1),
    SFIXED32: (FOUR, INTEGER, *_INT32),
    SFIXED64: (EIGHT, INTEGER, *_INT64),
    SINT32: (VARINT, INTEGER, *_INT32),
    SINT64: (VARINT, INTEGER, *_INT64),
}
"""Wire type, kind, and the least and greatest that the scanner takes, seen as an integer."""

_F = FieldDescriptorProto
_CODES = {f".{each.full_name}": each.fields[0].type for each in wrappers_pb2.DESCRIPTOR.message_types_by_name.values()}
_CODES[f".{timestamp_pb2.Timestamp.DESCRIPTOR.full_name}"] = TIMESTAMP
"""Of the messages that are values."""


class Layout(NamedTuple):
    """E fields by number, for U slots of `Found`."""

    number_E: Int64s  # ascending; one more behind them is larger than any
    slot_E: Int64s
    code_E: Int64s
    wire_E: Int64s  # of the value within a wrapper
    kind_E: Int64s
    low_E: Int64s
    high_E: Int64s
    message_E: npt.NDArray[np.bool_]  # whether it is a wrapper or a timestamp
    default_U: Bytes1  # what a field is that does not occur: MISSING, or its kind, and then 0, false or empty


class Fields:
    """The fields with these names of a message in this file.

    `type` is a proto3 message with nothing but them, so that all else is skipped as unknown: fields `f0`, `f1`, ...,
    those that can be absent optional, enums as int32.

    Raises Reject if one of them is no single value.
    """

    def __init__(self, file: FileDescriptorProto, message: DescriptorProto, names: Sequence[str]) -> None:
        found = sorted((field for field in message.field if field.name in names), key=lambda field: field.number)
        self.names = {f"f{names.index(field.name)}": field.name for field in found}
        pruned = FileDescriptorProto(name="fields.proto", syntax="proto3")
        pruned.dependency.extend(each.DESCRIPTOR.name for each in (timestamp_pb2, wrappers_pb2))
        target = pruned.message_type.add(name="Fields")
        default_U = np.full(len(names), MISSING, np.uint8)
        entries = []
        for field in found:
            slot, code = names.index(field.name), _code(field)
            entries.append((field.number, slot, code, *_SCALARS[code], field.type_name in _CODES))
            copy = target.field.add(name=f"f{slot}", number=field.number, label=_F.LABEL_OPTIONAL)
            if field.type_name in _CODES:
                copy.type, copy.type_name = _F.TYPE_MESSAGE, field.type_name
            elif _can_be_absent(file, field):
                copy.type, copy.proto3_optional, copy.oneof_index = code, True, len(target.oneof_decl)
                target.oneof_decl.add(name=f"_f{slot}")
            else:
                copy.type, default_U[slot] = code, _SCALARS[code][1]
        number, slots, codes, wires, kinds, low, high, messages = np.array([*entries, (2**62,) + (0,) * 7]).T.copy()
        self.layout = Layout(number, slots, codes, wires, kinds, low, high, messages > 0, default_U)
        self.type: Any = _message_class(pruned)


def _message_class(file: FileDescriptorProto) -> Any:
    pool = descriptor_pool.DescriptorPool()
    for needed in (timestamp_pb2, wrappers_pb2):
        pool.AddSerializedFile(needed.DESCRIPTOR.serialized_pb)
    try:
        pool.AddSerializedFile(file.SerializeToString())
    except TypeError as error:
        raise Reject(f"the Protobuf schema contradicts itself: {error}") from None
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(file.message_type[0].name))


def _code(field: FieldDescriptorProto) -> int:
    """How its value is written. Raises Reject if it is not one."""
    if field.label == _F.LABEL_REPEATED:
        raise Reject(f"field {field.name!r} of the Protobuf schema is repeated, which is no value")
    if field.type_name in _CODES:
        return int(_CODES[field.type_name])
    code = INT32 if field.type == ENUM else int(field.type)
    if not field.HasField("type") or code == TIMESTAMP or code not in _SCALARS:
        raise Reject(f"field {field.name!r} of the Protobuf schema is a {field.type_name[1:]}, which is no value")
    return code


def _can_be_absent(file: FileDescriptorProto, field: FieldDescriptorProto) -> bool:
    """Whether a scalar that does not occur is absent. Else it is 0, false or empty."""
    if field.HasField("oneof_index"):  # of one field, where it is proto3's `optional`
        return True
    if file.syntax == "editions":
        said = field.options.features.field_presence or file.options.features.field_presence
        return bool(said != FeatureSet.IMPLICIT)
    return bool(file.syntax != "proto3")
