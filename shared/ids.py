"""The one source of ids and chance."""

import secrets
from collections.abc import Callable
from random import Random, SystemRandom
from uuid import UUID

import uuid_utils

NewId = Callable[[], bytes]
"""Makes a UUIDv7 in its 16 bytes; ids made later on one machine sort later."""

ID_BYTES = 16


def new_id() -> bytes:
    """A fresh UUIDv7 in its 16 bytes."""
    return uuid_utils.uuid7().bytes


def new_secret() -> bytes:
    """32 random bytes nobody can guess."""
    return secrets.token_bytes(32)


def system_random() -> Random:
    """Chance for what need not be reproducible, such as jitter."""
    return SystemRandom()


def show_id(value: bytes) -> str:
    """An id as lower-case UUID text."""
    return str(UUID(bytes=value))


def parse_id(text: str) -> bytes | None:
    """The 16 bytes of UUID text; None where `text` is not one."""
    try:
        return UUID(text).bytes
    except ValueError:
        return None
