"""How answers look: the JSON that REST shows too, and tables for people.

Hides the descriptors behind the JSON shape, and that text from hosts and other people is never trusted
with a terminal.
"""

import codecs
import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.moment import SECOND, to_rfc3339

# Descriptors are `Any` below: the pure and the C implementation have unrelated types.

_AS_TEXT = frozenset({"revision"})
"""64-bit numbers that JSON holds as decimal text; the others are counts, which are numbers."""
_ONLY_WHEN_THERE = frozenset({"assignments"})
"""Fields that only the answer to create has."""

NAMED = 20
"""Names in a sentence; the others are counted."""
LISTED = 50
"""Things that have a line of their own where people read; the others share one. `--json` has all."""


def to_json(message: Message) -> dict[str, Any]:
    """The resource as REST shows it: camelCase, `null` for what is unknown or does not apply."""
    return {
        field.json_name: _value(message, field)
        for field in message.DESCRIPTOR.fields
        if field.name not in _ONLY_WHEN_THERE or getattr(message, field.name)
    }


def page(entities: Iterable[Message]) -> dict[str, Any]:
    """A whole list as REST shows its last page."""
    return {
        "entities": [to_json(entity) for entity in entities],
        "pagination": {"nextCursor": None, "hasMore": False},
    }


def _value(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if field.is_repeated:
        return [_one(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _one(field, value)


def _one(field: Any, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return to_rfc3339(value.seconds * SECOND + value.nanos // 1000)
    if isinstance(value, Struct):
        return _whole(MessageToDict(value))
    if isinstance(value, Message):
        return to_json(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b64encode(value).decode()
    return str(value) if field.name in _AS_TEXT else value


def _whole(value: Any) -> Any:
    """The value with 1.0 as 1, as REST shows it: a Struct knows no other number."""
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def enum_word(enum: Any, number: int) -> str | None:
    """The value in lower case without its prefix, as JSON has it; None where it was never set."""
    if number == 0 or number not in enum.values_by_number:
        return None
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(enum.values_by_number[number].name.removeprefix(prefix).lower())


def word(message: Message, name: str) -> str:
    """An enum field of a message as a word; `-` where it was never set."""
    field: Any = message.DESCRIPTOR.fields_by_name[name]
    return enum_word(field.enum_type, getattr(message, name)) or "-"


# -- for people


def clean(text: object) -> str:
    """Text that cannot steer a terminal: what is not printable shows as �."""
    return "".join(character if character.isprintable() else "�" for character in str(text))


def console(*, error: bool = False) -> Console:
    """Standard output (or error): colours only on a terminal, never wrapped into nothing elsewhere."""
    made = Console(stderr=error, markup=False, highlight=False, emoji=False, soft_wrap=False)
    if not made.is_terminal:
        made.width = 400  # lines are for another program then, not for a screen
    return made


_PLAIN = str.maketrans("✓…✗≠●○├─┤→·", "+.x#*o|-|>*")
"""For what has only ASCII; one character for one, so that what fitted fits."""


def plain(text: str) -> str:
    """The text in ASCII: marks and bars have characters of their own, what has none is a question mark."""
    return text.translate(_PLAIN).encode("ascii", "replace").decode()


def degrade(stream: TextIO) -> None:
    """What the stream's encoding lacks is written as `plain` has it, instead of an error."""
    codecs.register_error("variantctl", _instead)
    stream.reconfigure(errors="variantctl")  # type: ignore[attr-defined]  # real streams here


def _instead(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return plain(error.object[error.start : error.end]), error.end


def print_json(out: Console, value: object) -> None:
    """The value as JSON, indented, on `out`."""
    print(json.dumps(value, indent=2, ensure_ascii=False), file=out.file)


def print_table(
    out: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    empty: str,
    right: Sequence[str] = (),
) -> None:
    """The rows under their columns, or the sentence `empty`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.upper(), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(_shown(cell)) for cell in row))
    if not table.row_count:
        say(out, empty)
        return
    with out.capture() as captured:
        out.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip(), file=out.file)


def print_facts(out: Console, facts: Mapping[str, object]) -> None:
    """One fact a line, names aligned."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        say(out, f"{name:<{width}}  {_shown(value)}")


def say(out: Console, sentence: str) -> None:
    """One line."""
    print(clean(sentence), file=out.file)


def _shown(cell: object) -> str:
    return "-" if cell is None or cell == "" else clean(cell)


def named(names: Iterable[str], *, most: int = NAMED) -> str:
    """The first `most` of them in order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def labels(values: Mapping[str, str]) -> str:
    """`role=support, tier=gold`."""
    return ", ".join(f"{name}={value}" for name, value in sorted(values.items()))


def moment(message: Message, name: str) -> str | None:
    """A Timestamp field to the second; None where it is not set."""
    if not message.HasField(name):
        return None
    stamp: Timestamp = getattr(message, name)
    return to_rfc3339(stamp.seconds * SECOND)[:19].replace("T", " ") + "Z"
