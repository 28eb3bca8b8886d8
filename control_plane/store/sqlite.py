"""SQLite behind `Database`: one writer, a few reader threads, WAL, every commit fsynced."""

import errno
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from control_plane.store.database import Hints, IntegrityViolation, Parameters, Row, Tx, migrate
from control_plane.store.reading import Readers
from control_plane.store.writing import Unit, Writer
from shared.errors import FailedPrecondition, Unavailable

T = TypeVar("T")

BUSY_SECONDS = 5.0
LOG_BYTES = 64 * 1_048_576
"""Readers that follow each other without a gap keep the log from being begun anew; beyond this they are waited for."""
CACHE_BYTES = 64 * 1_048_576
"""Of the writer, once the database is as large: units and events are spread over all of their tables, and with SQLite's
own 2 MiB a report among a hundred thousand others took a quarter more processor time."""
LOG_PAGES = 4_096
"""In the log, 16 MiB of it, and the writer carries them over into the file. A batch of reports changes a page or more
for each record, many of them again and again: with SQLite's own thousand, each was carried over several times as often.
"""
LOG_SECONDS = 0.1
"""So long the writer waits for them, and for a busy lock's time once the log has four times the size."""


class SqliteTx:
    """A transaction on one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        row: Row | None = self._connection.execute(sql, parameters).fetchone()
        return row

    def all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def run(self, sql: str, parameters: Parameters = ()) -> int:
        try:
            return self._connection.execute(sql, parameters).rowcount
        except sqlite3.IntegrityError as error:
            raise IntegrityViolation(str(error)) from None

    def many(self, sql: str, rows: Iterable[Parameters]) -> None:
        try:
            self._connection.executemany(sql, rows)
        except sqlite3.IntegrityError as error:
            raise IntegrityViolation(str(error)) from None


class SqliteDatabase:
    """A database in one file; open it with `SqliteDatabase.open`."""

    hints: Hints | None = None  # one process has the file

    def __init__(self, path: Path, *, log_bytes: int = LOG_BYTES) -> None:
        self._log, self._log_bytes = Path(f"{path}-wal"), log_bytes
        self._log_next = log_bytes
        self._readers = Readers("sqlite-reader", lambda: _reader(path))
        self._connection = _connect(path)
        self._connection.execute(f"pragma cache_size = -{CACHE_BYTES // 1024}")
        self._connection.execute(f"pragma wal_autocheckpoint = {LOG_PAGES}")
        self._writer: Writer

    @classmethod
    def open(cls, path: Path, *, may_change: bool = True, log_bytes: int = LOG_BYTES) -> "SqliteDatabase":
        """The database in `path`, ready for work: made and migrated where necessary, if the schema `may_change`."""
        migrate_file(path, may_change=may_change)
        database = cls(path, log_bytes=log_bytes)
        database._writer = Writer("sqlite-writer", database._commit, at_end=database._end_writing)
        return database

    async def read(self, work: Callable[[Tx], T]) -> T:
        def read(connection: sqlite3.Connection) -> T:
            connection.execute("begin")
            try:
                return work(SqliteTx(connection))
            except sqlite3.OperationalError as error:
                raise _unavailable(error) from error
            finally:
                connection.execute("rollback")

        return await self._readers.run(read)

    async def write(self, work: Callable[[Tx], T]) -> T:
        return await self._writer.write(work)

    def _commit(self, group: Iterable[Unit]) -> None:
        tx = SqliteTx(self._connection)
        try:
            self._connection.execute("begin immediate")
            for unit in group:
                # The disk or a lock: then all of them fail, and say so.
                unit.run(tx, lost=(sqlite3.OperationalError,))
            self._connection.execute("commit")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._connection.execute("rollback")
            raise _unavailable(error) from error
        with suppress(sqlite3.Error, OSError):  # what is committed is committed, and the log only longer
            self._shorten_log()

    def _shorten_log(self) -> None:
        """A log that has grown long is begun anew, unless readers are still in it; then it is tried again later."""
        size = self._log.stat().st_size
        if size < self._log_next:
            return
        patience = LOG_SECONDS if size < 4 * self._log_bytes else BUSY_SECONDS
        self._connection.execute(f"pragma busy_timeout = {round(patience * 1000)}")
        try:
            busy = self._connection.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
        finally:
            self._connection.execute(f"pragma busy_timeout = {round(BUSY_SECONDS * 1000)}")
        self._log_next = size + self._log_bytes // 4 if busy else self._log_bytes

    def _end_writing(self) -> None:
        with suppress(sqlite3.Error):  # what is committed is in the log, which the next start reads
            self._connection.execute("pragma wal_checkpoint(truncate)")
        self._connection.close()

    async def close(self) -> None:
        await self._writer.close()
        self._readers.close()


def migrate_file(path: Path, *, may_change: bool = True) -> list[str]:
    """The database in `path` is there and has the newest schema; returns the names of the migrations applied now."""
    with _usable(path), closing(_connect(path)) as connection:
        connection.execute("begin immediate")
        try:
            applied = migrate(SqliteTx(connection), may_change=may_change)
            connection.execute("commit")
        except BaseException:
            with suppress(sqlite3.Error):  # a full disk has ended the transaction already
                connection.execute("rollback")
            raise
        return applied


def backup_database(source: Path, target: Path) -> None:
    """`target` is a whole, consistent copy of the database in `source`, taken while others write to it.

    Raises OSError where there is no room for it.
    """
    with (
        _usable(source),
        closing(sqlite3.connect(source)) as origin,
        closing(sqlite3.connect(target)) as copied,
    ):
        try:
            origin.backup(copied)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise FailedPrecondition(
            f"the database {path} cannot be used: {error}; is there room on the disk, and is it variantd's own?",
            reason="DATABASE_UNUSABLE",
        ) from error


def _unavailable(error: sqlite3.Error) -> Unavailable:
    return Unavailable(f"the database refused the transaction: {error}", reason="DATABASE_UNAVAILABLE")


def _reader(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path, reads_only=True)
    except sqlite3.OperationalError as error:  # no descriptor is left, or a lock: readers share what there is
        raise _unavailable(error) from error


def _connect(path: Path, *, reads_only: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    connection.row_factory = sqlite3.Row
    # Its lower() knows the letters of ASCII only. No index may stand on ours: other programs read the file as well.
    connection.create_function("folded", 1, str.lower, deterministic=True)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute("pragma foreign_keys = on")
    if reads_only:
        connection.execute("pragma query_only = on")
    return connection
