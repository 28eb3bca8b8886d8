"""SQLite behind `Database`: one writer thread, a few reader threads, WAL, every commit fsynced.

Writers do not wait for each other's fsync one by one: what queued up while a commit was in progress is
run together, each unit of work inside its own savepoint, and committed once (group commit). A caller is
answered after that commit, so durable-before-acknowledged holds for each of them; a unit of work that
raises undoes only itself.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from control_plane.store.database import IntegrityViolation, Parameters, Row, Tx, migrate
from shared.errors import Unavailable

T = TypeVar("T")

READERS = 4
GROUP = 256  # units of work in one commit: bounds how long the first of them waits for the last
BUSY_SECONDS = 5.0


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

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_loop, name="sqlite-writer", daemon=True)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="sqlite-reader")
        self._local = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []
        self._connection = _connect(path)

    @classmethod
    def open(cls, path: Path, *, may_change: bool = True) -> "SqliteDatabase":
        """The database in `path`, ready for work: made and migrated where necessary, if the schema `may_change`."""
        database = cls(path)
        connection = database._connection
        connection.execute("begin immediate")
        try:
            migrate(SqliteTx(connection), may_change=may_change)
            connection.execute("commit")
        except BaseException:
            connection.execute("rollback")
            connection.close()
            raise
        database._writer.start()
        return database

    async def read(self, work: Callable[[Tx], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    def _read(self, work: Callable[[Tx], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = _connect(self._path)
            connection.execute("pragma query_only = on")
            self._reader_connections.append(connection)
        connection.execute("begin")
        try:
            return work(SqliteTx(connection))
        except sqlite3.OperationalError as error:
            raise _unavailable(error) from error
        finally:
            connection.execute("rollback")

    async def write(self, work: Callable[[Tx], T]) -> T:
        item = _Work(work)
        self._queue.put(item)
        # Shielded: a caller that goes away must not leave its unit of work half in a group.
        return await asyncio.shield(asyncio.wrap_future(item.future))

    def _write_loop(self) -> None:
        while (first := self._queue.get()) is not None:
            group = [first]
            stopping = False
            with suppress(queue.Empty):
                while len(group) < GROUP:
                    following = self._queue.get_nowait()
                    if following is None:
                        stopping = True
                        break
                    group.append(following)
            self._commit(group)
            if stopping:
                break
        with suppress(sqlite3.Error):  # what is committed is in the log, which the next start reads
            self._connection.execute("pragma wal_checkpoint(truncate)")
        self._connection.close()

    def _commit(self, group: "list[_Work]") -> None:
        try:
            self._connection.execute("begin immediate")
            for item in group:
                item.run(self._connection)
            self._connection.execute("commit")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._connection.execute("rollback")
            for item in group:
                item.settle(_unavailable(error))
            return
        for item in group:
            item.settle(None)

    async def close(self) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join)
        self._readers.shutdown(wait=True)
        for connection in self._reader_connections:
            connection.close()


class _Work:
    """One unit of work in the writer's queue."""

    def __init__(self, work: Callable[[Tx], Any]) -> None:
        self.future: Future[Any] = Future()
        self._work = work
        self._result: Any = None
        self._failure: BaseException | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        connection.execute("savepoint work")
        try:
            self._result = self._work(SqliteTx(connection))
        except sqlite3.OperationalError:
            raise  # the disk or a lock: the whole group fails, and says so
        except BaseException as error:
            connection.execute("rollback to work")
            self._failure = error
        connection.execute("release work")

    def settle(self, group_failure: BaseException | None) -> None:
        failure = group_failure or self._failure
        if failure is not None:
            self.future.set_exception(failure)
        else:
            self.future.set_result(self._result)


def backup_database(source: Path, target: Path) -> None:
    """`target` is a whole, consistent copy of the database in `source`, taken while others write to it."""
    with closing(sqlite3.connect(source)) as origin, closing(sqlite3.connect(target)) as copied:
        origin.backup(copied)


def _unavailable(error: sqlite3.Error) -> Unavailable:
    return Unavailable(f"the database refused the transaction: {error}", reason="DATABASE_UNAVAILABLE")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    connection.row_factory = sqlite3.Row
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute("pragma foreign_keys = on")
    return connection
