"""The database beside measured servers: what it takes of the processor, how large it is, and more rows for it.

Hides which engine it is; that PostgreSQL is many processes, some of which end meanwhile; and that looking is work for
one of them too.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg

from tests.bench.stage import cpu_seconds
from tests.support import postgres

TICKS = 100  # of the kernel's accounts, a second


class Beside(Protocol):
    """A connection of whoever measures; what is asked on it counts for nobody."""

    @property
    def cpu(self) -> float:
        """Processor seconds of the database's own processes; 0 where it has none, or they are not on this machine."""

    @property
    def bytes(self) -> int:
        """Of all tables with their indexes."""

    def counted(self, sql: str, *parameters: Any) -> int:
        """A number, in SQL with `?` for parameters."""

    def columns(self, table: str) -> list[str]:
        """Their names."""

    def earlier(self, column: str, milliseconds: int) -> str:
        """SQL: the id in the column, as one of so many milliseconds before."""

    def run(self, *statements: str) -> None:
        """They have run in a transaction."""

    def settle(self) -> None:
        """What the engine does about many new rows in the time after is done."""


class SqliteFile:
    """A file, of which the server does all there is to do."""

    cpu = 0.0

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.create_function("earlier", 2, _earlier, deterministic=True)

    @property
    def bytes(self) -> int:
        return self.counted("select page_count * page_size from pragma_page_count, pragma_page_size")

    def counted(self, sql: str, *parameters: Any) -> int:
        return int(self._connection.execute(sql, parameters).fetchone()[0])

    def columns(self, table: str) -> list[str]:
        return [row[1] for row in self._connection.execute(f"pragma table_info({table})")]

    def earlier(self, column: str, milliseconds: int) -> str:
        return f"earlier({column}, {milliseconds})"

    def run(self, *statements: str) -> None:
        for statement in ("begin immediate", *statements, "commit"):
            self._connection.execute(statement)

    def settle(self) -> None:
        self._connection.execute("pragma wal_checkpoint(passive)")


def _earlier(uid: bytes, milliseconds: int) -> bytes:
    return (int.from_bytes(uid[:6]) - milliseconds).to_bytes(6) + uid[6:]


class Postgres:
    """A database on a server."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection, self._own = connection, connection.info.backend_pid
        self._parent = int(_account(self._own)[1]) if _is_postgres(self._own) else 0

    @property
    def cpu(self) -> float:
        if not self._parent:
            return 0.0
        children = Path(f"/proc/{self._parent}/task/{self._parent}/children").read_text().split()
        ended = sum(map(int, _account(self._parent)[13:15])) / TICKS
        return ended + sum(map(_seconds, {self._parent, *map(int, children)} - {self._own}))

    @property
    def bytes(self) -> int:
        return self.counted(
            "select sum(pg_total_relation_size(oid)) from pg_class"
            " where relkind = 'r' and relnamespace = 'public'::regnamespace"
        )

    def counted(self, sql: str, *parameters: Any) -> int:
        found = self._connection.execute(sql.replace("?", "%s"), parameters).fetchone()
        return int(found[0]) if found else 0

    def columns(self, table: str) -> list[str]:
        return [
            column.name for column in self._connection.execute(f"table {table} limit 0").description or ()
        ]

    def earlier(self, column: str, milliseconds: int) -> str:
        moment = f"('x' || encode(substr({column}, 1, 6), 'hex'))::bit(48)::bigint - {milliseconds}"
        return f"decode(lpad(to_hex({moment}), 12, '0'), 'hex') || substr({column}, 7)"

    def run(self, *statements: str) -> None:
        with self._connection.transaction():
            for statement in statements:
                self._connection.execute(statement)

    def settle(self) -> None:
        self._connection.execute("vacuum analyze")


@contextmanager
def file(path: Path) -> Iterator[Beside]:
    """The database in the file."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as connection:
        yield SqliteFile(connection)


@contextmanager
def server(url: str) -> Iterator[Beside]:
    """The database at the URL."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield Postgres(connection)


@contextmanager
def durable() -> Iterator[None]:
    """PostgreSQL commits to the disk, for whoever measures; its databases are gone at the end."""
    try:
        postgres.be_durable()
        yield
    finally:
        postgres.end()


def _account(pid: int) -> list[str]:
    """What the kernel tells of a process from its state on; 13 and 14 are of children that ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _is_postgres(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("postgres")
    except OSError:
        return False


def _seconds(pid: int) -> float:
    try:
        return cpu_seconds(pid)
    except OSError:  # it has just ended: its parent's account has it at the next look
        return 0.0
