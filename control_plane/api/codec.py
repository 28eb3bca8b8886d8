"""JSON-shaped resources ↔ operator messages, for any message, by its descriptor.

REST shows the JSON shape; gRPC shows the same words in snake_case. Both come from this one translation, so
the two cannot drift apart: a resource that names a field its message does not have fails here.

Rules: camelCase ↔ snake_case; an enum value is its name in lower case without the prefix; a Timestamp is
RFC 3339 with milliseconds; bytes are base64; null is absent. Whether a 64-bit number is a JSON string (a
revision) or a number (a count) is the resource's own choice; both are understood.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from shared.errors import Fault, Invalid
from shared.moment import SECOND, from_rfc3339, to_rfc3339
from shared.pb.variantd.operator.v1 import operator_pb2

M = TypeVar("M", bound=Message)

# Descriptors are `Any` below: the pure and the C implementation have unrelated types.

_WIDE = (
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT64,
)


def to_message(resource: Mapping[str, Any], kind: type[M]) -> M:
    """The message of a JSON-shaped resource. Raises KeyError for a field the message does not have."""
    message = kind()
    _fill(message, resource)
    return message


def _fill(message: Message, resource: Mapping[str, Any]) -> None:
    fields = {field.json_name: field for field in message.DESCRIPTOR.fields}
    for name, value in resource.items():
        if value is None:
            continue
        field = fields[name]
        if is_map(field):
            getattr(message, field.name).update(value)
        elif field.is_repeated:
            for item in value:
                _add(message, field, item)
        elif field.message_type is not None:
            _fill_sub(getattr(message, field.name), value)
        else:
            setattr(message, field.name, _scalar(field, value))


def _add(message: Message, field: Any, item: Any) -> None:
    repeated = getattr(message, field.name)
    if field.message_type is not None:
        _fill_sub(repeated.add(), item)
    else:
        repeated.append(_scalar(field, item))


def _fill_sub(message: Message, value: Any) -> None:
    message.SetInParent()
    if isinstance(message, Timestamp):
        moment = from_rfc3339(value)
        message.seconds, message.nanos = moment // SECOND, moment % SECOND * 1000
    elif isinstance(message, Struct):
        ParseDict(value, message)
    elif isinstance(message, FieldMask):
        message.paths.extend(value)
    else:
        _fill(message, value)


def _scalar(field: Any, value: Any) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values_by_name[prefix(field.enum_type) + value.upper()].number
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b64decode(value)
    return int(value) if field.cpp_type in _WIDE else value


def from_message(message: Message) -> dict[str, Any]:
    """The JSON-shaped values of the fields that are set; an unspecified enum or an empty list is absent."""
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        if is_map(field):
            values[field.json_name] = dict(value)
        elif field.is_repeated:
            values[field.json_name] = [_shown(field, item) for item in value]
        else:
            values[field.json_name] = _shown(field, value)
    return values


def request_values(message: Message, named: Collection[str] = ()) -> dict[str, Any]:
    """The JSON-shaped values of a request, as REST would have sent them.

    Pages go by `limit` and `cursor`. With an `update_mask` the values are what names the resource (`named`) and
    the masked fields, null or empty where they are not set: AIP-134, with null as REST means it. Raises Invalid
    for a field that this version does not know, in the message or in the mask.
    """
    _refuse_unknown(message, "")
    values = from_message(message)
    for ours, theirs in (("limit", "pageSize"), ("cursor", "pageToken")):
        if theirs in values:
            values[ours] = values.pop(theirs)
    mask = values.pop("updateMask", None)
    if mask is None:
        return values
    kept = {name: value for name, value in values.items() if name in named or name == "requestId"}
    fields = {
        field.name: field
        for field in message.DESCRIPTOR.fields
        if field.json_name not in named and field.name not in ("request_id", "update_mask")
    }
    for path in mask:
        if path not in fields:
            raise _refusal("updateMask", f"there is no {path!r} to change", f"known are {', '.join(fields)}")
        field = fields[path]
        kept[field.json_name] = values.get(field.json_name, _emptied(field))
    return kept


def _emptied(field: Any) -> Any:
    if is_map(field):
        return {}
    if field.is_repeated:
        return []
    return None if field.has_presence or field.enum_type is not None else field.default_value


def _refuse_unknown(message: Message, where: str) -> None:
    unknown: Any = UnknownFieldSet(message)
    for item in unknown:
        remedy = "use a client of this version, or a newer control plane"
        raise _refusal(f"{where}{item.field_number}", "is not a known field", remedy)
    fields: Any = message.ListFields()
    for field, value in fields:
        if field.message_type is None or is_map(field):
            continue
        for item in value if field.is_repeated else (value,):
            _refuse_unknown(item, f"{where}{field.json_name}.")


def _refusal(field: str, message: str, remedy: str) -> Invalid:
    fault = Fault(field=field, message=message, remedy=remedy)
    return Invalid(f"{field}: {message}", reason="INVALID_FIELDS", faults=[fault])


def _shown(field: Any, value: Any) -> Any:
    try:
        if isinstance(value, Timestamp):
            return to_rfc3339(value.seconds * SECOND + value.nanos // 1000)
        if isinstance(value, Struct):
            return MessageToDict(value)
    except (ValueError, OverflowError, OSError):
        remedy = "years are 1 to 9999, numbers finite"
        raise _refusal(field.json_name, "holds what JSON cannot say", remedy) from None
    if isinstance(value, FieldMask):
        return list(value.paths)
    if isinstance(value, Message):
        return from_message(value)
    if field.enum_type is not None:
        name = field.enum_type.values_by_number.get(value)
        return name.name.removeprefix(prefix(field.enum_type)).lower() if name else str(value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b64encode(value).decode()
    return value


def is_map(field: Any) -> bool:
    """Whether the field is a map."""
    entry = field.message_type
    return entry is not None and bool(entry.GetOptions().map_entry)


def prefix(enum: Any) -> str:
    """What every value's name of an enum begins with."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"


def answer_kind(rpc: str) -> Any:
    """The descriptor of what `Service.Method` answers."""
    service, method = rpc.split(".")
    return operator_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method].output_type
