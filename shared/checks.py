"""What a field of a message may be: bounds that every correct peer keeps to.

Each raises `Invalid` naming the field for what is beyond them, and is the value otherwise.
"""

from shared.errors import Fault, Invalid
from shared.model import MAX_PATH_BYTES, MAX_VALUE_MICROS, NAME_ENDS

MAX_MOMENT = 253_402_300_799_999_999
"""The last microsecond of the year 9999, after which no calendar shows anything."""
MAX_COUNT = 2**40
"""Of anything: what counts for real stays far below, and no sum of them overflows a database's integer."""


def malformed(field: str, message: str) -> Invalid:
    """What a message is refused with whose field no correct peer sends so."""
    fault = Fault(field=field, message=message, remedy="update the older side of the connection")
    return Invalid(f"{field}: {message}", reason="MALFORMED_MESSAGE", faults=[fault])


def uid(value: bytes, field: str) -> bytes:
    """An id of ours."""
    if len(value) != 16:
        raise malformed(field, "an id is 16 bytes")
    return value


def digest(value: bytes, field: str) -> bytes | None:
    """Of a content; None for the absence of one."""
    if len(value) not in (0, 32):
        raise malformed(field, "a digest is 32 bytes")
    return value or None


def fingerprint(value: bytes, field: str) -> bytes:
    """Of a policy: at most 32 bytes."""
    if len(value) > 32:
        raise malformed(field, "at most 32 bytes")
    return value


def text(value: str, field: str, limit: int, *, empty: bool = False) -> str:
    """At most `limit` characters; none at all where it may be `empty`."""
    if len(value) > limit or not (value or empty):
        raise malformed(field, f"{'0' if empty else '1'} to {limit} characters")
    if "\0" in value:
        raise malformed(field, "holds NUL, which not every database takes")
    return value


def event_name(value: str, field: str, *, empty: bool) -> str:
    """Of a conversion."""
    if NAME_ENDS in value:
        raise malformed(field, "holds a character that no name has")
    return text(value, field, 128, empty=empty)


def path(value: str, field: str, *, empty: bool = False) -> str:
    """Of a target, as long as every database has room for."""
    if len(text(value, field, MAX_PATH_BYTES, empty=empty).encode()) > MAX_PATH_BYTES:
        raise malformed(field, f"at most {MAX_PATH_BYTES} bytes")
    return value


def micros(value: int, field: str) -> int:
    """What an event was worth, in micro-units."""
    if abs(value) > MAX_VALUE_MICROS:
        raise malformed(field, f"within ±{MAX_VALUE_MICROS}")
    return value


def moment(value: int, field: str) -> int:
    """From 1970 to 9999, in microseconds; 0 where there is none."""
    if not 0 <= value <= MAX_MOMENT:
        raise malformed(field, "from 1970 to 9999")
    return value


def count(value: int, field: str, *, most: int = MAX_COUNT) -> int:
    """At most so many."""
    if value > most:
        raise malformed(field, f"at most {most}")
    return value
