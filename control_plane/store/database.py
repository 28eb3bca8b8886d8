"""What a store needs of a database: about six verbs, and the migrations that make its tables.

A unit of work is a plain function over a synchronous `Tx`; the driver runs it in a thread of its own.
That keeps SQL free of `await`, and one hop per unit of work is what makes thousands of small writes a
second possible.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, Protocol, TypeVar

from shared.errors import FailedPrecondition

T = TypeVar("T")
Row = Mapping[str, Any]
Parameters = Sequence[Any]

_ASKED = 512
"""Rows of values in one statement: a power of two, and few enough for the places that SQLite allows."""


class Tx(Protocol):
    """One transaction: everything in it is committed together or not at all."""

    def one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """The first row, or None."""

    def all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Every row."""

    def run(self, sql: str, parameters: Parameters = ()) -> int:
        """The number of rows changed. Raises `IntegrityViolation` where a constraint forbids it."""

    def many(self, sql: str, rows: Iterable[Parameters]) -> None:
        """The statement has run once per row."""


class IntegrityViolation(Exception):
    """A constraint of the schema forbids the change."""


class Hints(Protocol):
    """What the processes over one database tell each other beside it; any of it may be lost."""

    async def hint(self, text: str) -> None:
        """Whoever listens is told the text (ASCII, at most `HINT_BYTES`), itself too. Raises Unavailable."""

    async def listen(self, told: Callable[[str], None]) -> None:
        """Calls `told` with every hint, and with an empty one whenever some may have been lost; until cancelled."""


HINT_BYTES = 7_900


class Database(Protocol):
    """Where transactions run; `hints` is None where only one process can have it."""

    hints: Hints | None

    async def read(self, work: Callable[[Tx], T]) -> T:
        """What `work` returns over one consistent snapshot; it must not write."""

    async def write(self, work: Callable[[Tx], T]) -> T:
        """What `work` returns; its changes are durable by then, or undone if it raised."""

    async def close(self) -> None:
        """Everything committed is on disk and every thread has ended."""


def migrate(tx: Tx, *, may_change: bool = True) -> list[str]:
    """The schema is the newest; returns the names of the migrations applied now.

    Each migration runs once; one that was applied and has changed since is an error, because nobody
    could say what the schema is. Raises FailedPrecondition for a database of a newer version and, unless it
    `may_change`, for one of an older version.
    """
    tx.run("create table if not exists migration (name text primary key, checksum text not null)")
    applied = {row["name"]: row["checksum"] for row in tx.all("select name, checksum from migration")}
    ran = []
    for name, text in _migrations():
        checksum = hashlib.sha256(text.encode()).hexdigest()
        if name in applied:
            if applied[name] != checksum:
                raise FailedPrecondition(
                    f"migration {name} is not the one this database was made with, by no release of variantd;"
                    " restore a backup",
                    reason="DATABASE_UNUSABLE",
                )
            continue
        if not may_change:
            raise FailedPrecondition(
                "the server that runs over this database is of an older version; restart it first",
                reason="DATABASE_OLDER",
            )
        for statement in _statements(text):
            tx.run(statement)
        tx.run("insert into migration (name, checksum) values (?, ?)", (name, checksum))
        ran.append(name)
    unknown = sorted(set(applied) - {name for name, _ in _migrations()})
    if unknown:
        raise FailedPrecondition(
            f"this database was written by a newer variantd ({unknown[-1]}); run that one,"
            " or restore a backup from before it",
            reason="DATABASE_NEWER",
        )
    return ran


def _migrations() -> list[tuple[str, str]]:
    folder = files("control_plane.store") / "migrations"
    found = [(entry.name, entry.read_text()) for entry in folder.iterdir() if entry.name.endswith(".sql")]
    return sorted(found)


def _statements(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    return [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]


def asked(tx: Tx, sql: str, rows: Sequence[Parameters]) -> Iterator[Row]:
    """The rows that the statement finds for these rows of values, which stand in its `{}` as those of VALUES do.

    Many take several statements, of few lengths, so that each is prepared once: the places that are left over hold
    null. So the statement has to compare with `=` or `in`, which finds nothing there.
    """
    for start in range(0, len(rows), _ASKED):
        some = rows[start : start + _ASKED]
        length, width = 1 << (len(some) - 1).bit_length(), len(some[0])
        places = _places(width, length)
        values = [value for row in some for value in row] + [None] * (width * (length - len(some)))
        yield from tx.all(sql.replace("{}", places), values)


@lru_cache(maxsize=64)
def _places(width: int, length: int) -> str:
    return ", ".join([f"({', '.join('?' * width)})"] * length)


def number(text: str) -> int | None:
    """The number a text is, None where it is none: no key begins with a digit, and no id is so short."""
    return int(text) if re.fullmatch(r"[1-9]\d{0,15}", text) else None


def carries(*columns: str) -> str:
    """SQL: the columns (JSON objects, an earlier one before a later one) hold every label of one JSON parameter."""
    value = ", ".join(f"(select value from json_each({column}) where key = wanted.key)" for column in columns)  # noqa: S608
    first = value if len(columns) == 1 else f"coalesce({value})"
    return f"not exists (select 1 from json_each(?) wanted where {first} is distinct from wanted.value)"  # noqa: S608
